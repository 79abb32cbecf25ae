"""`QuantizeTarget`: an export target as `quantize --for` uses it, to make a plan and to check it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zeropoint import exporters
from zeropoint.artifact.outline import Outline
from zeropoint.errors import UsageError
from zeropoint.exporters._refusals import refusal
from zeropoint.values.scheme import Scheme


class QuantizeTarget:
    """An export target for `quantize --for`. Implements the protocol `zeropoint.quantization.for_target.Target`.

    - `name`: the name that the user wrote, of a target ("gguf") or of its runtime ("llama.cpp");
    - `export_name`: the name of the target, for `export --to`;
    - `embedding`, `lm_head`: `EMBEDDING` and `LM_HEAD` of the target's module, see `zeropoint.exporters`.

    Raises `UsageError` for an unknown name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.export_name = exporters.RUNTIMES.get(name, name)
        if name not in exporters.runtimes():
            raise UsageError(
                f"there is no runtime {name!r} to quantize for: use {', '.join(exporters.runtimes())}"
            )
        self._exporter = exporters.load(self.export_name)
        self.embedding, self.lm_head = self._exporter.EMBEDDING, self._exporter.LM_HEAD

    def formats(self, config: Mapping[str, Any]) -> Mapping[str, str]:
        """Return the scheme of each short name of a format, the default first."""
        return self._exporter.formats(config)

    def refusals(self, outline: Outline, name: str, scheme: Scheme) -> list[str]:
        """Return the reasons why the target does not support this weight in this scheme."""
        return self._exporter.refusals(outline, name, scheme)

    def check(self, source: str, outline: Outline) -> None:
        """Raise `UnsupportedError` if the planned artifact of the model `source` cannot be exported to the target."""
        reasons = self._exporter.problems(outline)
        if not reasons:
            return
        embeddings = outline.layout.embeddings  # `TAKES` names the formats of layers only
        layers = {name: s for name, s in outline.plan.quantized.items() if name not in embeddings}
        if any(self.refusals(outline, name, scheme) for name, scheme in layers.items()):
            reasons = [*reasons, f"it takes {self._exporter.TAKES}"]
        raise refusal(source, self.name, reasons, verb="quantized for")
