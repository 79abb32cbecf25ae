"""Descriptions of models from their folders, without loading weights: name, dtype, card, limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zeropoint.dtypes import BY_NAME
from zeropoint.errors import UnsupportedError, ZeropointError
from zeropoint.files import identity
from zeropoint.files.json_file import CARD_NAME, MAX_CARD_BYTES, load_json
from zeropoint.runtime import external
from zeropoint.sources import locate, open_source, records
from zeropoint.sources.folder import find_gguf
from zeropoint.sources.notes import tell
from zeropoint.values.scheme import parse

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")


@dataclass(frozen=True, slots=True)
class Model:
    """A model to measure.

    `name`: unique in its report. `path`: path on this machine. `given`: path or hub name from the user. `card`: the
    artifact's card, empty for a checkpoint. `runtime`: the external runtime of the file, "" for Zeropoint's own
    engines. `doubts`: differences between the artifact and the digests in its card (`zeropoint.files.identity`); if
    there are any, the quality in the card is about other weights.
    """

    name: str
    path: str
    is_reference: bool
    config: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    runtime: str = ""
    external_format: str = ""
    given: str = ""
    doubts: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """The checkpoint's own dtype: bfloat16, float16 or float32."""
        dtype = self.config.get("dtype", self.config.get("torch_dtype", "float32"))
        return dtype if dtype in BY_NAME and BY_NAME[dtype].format else "float32"

    @property
    def format(self) -> str:
        """The number format in words: the plan's label, the checkpoint's dtype, or an external runtime's name."""
        if self.external_format:
            return self.external_format
        if not self.card:
            return BY_NAME[self.dtype].format.upper()
        plan = self.card.get("plan")
        label = plan.get("label") if isinstance(plan, Mapping) else None
        return str(label or self.card.get("format") or "quantized")

    @property
    def context(self) -> int | None:
        """The longest sequence of the model, in tokens; None if the config does not say."""
        text = self.config.get("text_config", self.config)
        limits = [text[k] for k in _CONTEXT_KEYS if isinstance(text.get(k), int) and text[k] > 0]
        return min(limits, default=None)

    @property
    def smallest_bits(self) -> int:
        """The width in bits of the narrowest weight format in the card's plan; 16 for a checkpoint."""
        plan = self.card.get("plan")
        choices = plan.get("choices", {}) if isinstance(plan, Mapping) else {}
        schemes = [c.get("scheme") for c in choices.values() if isinstance(c, Mapping)]
        widths = [parse(s).bits for s in schemes if isinstance(s, str)]
        return min(widths, default=16)

    def to_json(self) -> dict[str, Any]:
        """Return the model's entry in a report."""
        entry: dict[str, Any] = {
            "path": self.given or self.path,
            "format": self.format,
            "is_reference": self.is_reference,
        }
        entry |= {"runtime": self.runtime} if self.runtime else {}
        return entry | ({"doubts": list(self.doubts)} if self.doubts else {})


def describe(reference: str, artifacts: Sequence[str] = (), *, revision: str | None = None) -> list[Model]:
    """Return the reference model and the artifacts in order, named after folder or hub name; equal names are numbered.

    Models on the hub are downloaded, the reference model in `revision`. Notes on a checkpoint's files (for example
    tensors that are left out) are logged here, because the log of a measuring process is shown only if it fails. Raises
    `CheckpointError` if a model is neither on this machine nor on the hub.
    """
    names: list[str] = []
    models = []
    for index, argument in enumerate((reference, *artifacts)):
        path = str(locate(argument, revision=None if index else revision))
        stem = Path(path).resolve().name if Path(argument).is_dir() else argument.rstrip("/").split("/")[-1]
        count = sum(n == stem or n.startswith(f"{stem} (") for n in names)
        names.append(stem if count == 0 else f"{stem} ({count + 1})")
        gguf = find_gguf(Path(path)) if index == 0 else None
        # a GGUF file as the reference model is read as a checkpoint, with its exact values
        source = None if gguf is None or not artifacts else open_source(gguf)
        other = None if source is not None else external.identify(path)
        card = _read_json(path, CARD_NAME)
        if other is None:
            tell(notes(path, argument))
        models.append(
            Model(
                names[-1],
                path,
                index == 0,
                _read_json(path, "config.json") if source is None else source.config,
                card,
                other.runtime if other else "",
                other.format if other else "",
                argument,
                identity.doubts(Path(path), card),
            )
        )
    return models


def notes(path: str, given: str) -> tuple[str, ...]:
    """Return notes for the user on a checkpoint's files, from their headers; the notes name the model `given`.

    torch is imported only for a model family outside the native engine. Artifacts have no notes. A model that cannot
    be opened has none either, because the measuring process reports the reason.
    """
    if (Path(path) / CARD_NAME).is_file():
        return ()
    try:
        source = open_source(path)
        named = tuple(note.replace(path, given, 1) for note in source.notes)
        source = replace(source, name=given, notes=named)
        try:
            return records.describe(source).notes
        except UnsupportedError:
            from zeropoint.checkpoint import open_checkpoint

            return tuple(note.replace(path, given, 1) for note in open_checkpoint(path).notes)
    except (ZeropointError, OSError, ImportError):
        return ()


def _read_json(path: str, name: str) -> dict[str, Any]:
    """Return a JSON object from the model's folder, {} if there is no such file."""
    file = Path(path) / name
    return load_json(file, MAX_CARD_BYTES) if file.is_file() else {}
