"""`QuantizeTarget`: a target's rules in the form that `quantize --for` makes a plan with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zeropoint import exporters
from zeropoint.artifact.outline import Outline
from zeropoint.errors import UsageError
from zeropoint.exporters._refusals import refusal
from zeropoint.values.scheme import Scheme


class QuantizeTarget:
    """A target of `quantize --for`, which is a `zeropoint.quantization.for_target.Target`.

    - `name`: as the user writes it: a target or its runtime (`llama.cpp`);
    - `export_name`: as `export --to` takes it;
    - `embedding`, `lm_head`: default formats, see `zeropoint.exporters`.

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
        """Return the reasons why the target does not take this weight in this scheme."""
        return self._exporter.refusals(outline, name, scheme)

    def check(self, source: str, outline: Outline) -> None:
        """Raise `UnsupportedError` if the target does not take the planned artifact of the model `source`."""
        reasons = self._exporter.problems(outline)
        if not reasons:
            return
        embeddings = outline.layout.embeddings  # kept or not: no matter of the formats of layers
        layers = {name: c.scheme for name, c in outline.plan.choices.items() if name not in embeddings}
        if any(s and not s.is_float and self.refusals(outline, name, s) for name, s in layers.items()):
            reasons = [*reasons, f"it takes {self._exporter.TAKES}"]
        raise refusal(source, self.name, reasons, verb="quantized for")
