"""The quality card, `zeropoint.json`: how an artifact was made, and its measured quality.

The format is strict: an unknown field, a missing field or a wrong type raises `ArtifactError`. A card has no time and
no path, so the same inputs give the same bytes. It has digests of the tensors, of config.json and of itself, which tie
a verdict to the weights that it judges (`zeropoint.files.identity`).

`write` in writer.py creates the card, without quality and verdict, from a `Card` that quantization/to_artifact.py,
importers/__init__.py or runtime/torch_engine/saving.py made. `update_card` adds quality and verdict later. It is called
by `Verdict.write` in evaluate/gate/verdict.py after `check` or `fit`, and by runtime/torch_engine/saving.py, which
copies quality and verdict when an unchanged model is saved again.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zeropoint.artifact.layout import Layout
from zeropoint.errors import ArtifactError, ZeropointError
from zeropoint.files import atomic, identity
from zeropoint.files.json_file import CARD_NAME, MAX_CARD_BYTES, load_json
from zeropoint.values.plan import Plan

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1

#: Field -> allowed types of its value.
FIELDS: dict[str, tuple[type, ...]] = {
    "format_version": (int,),
    "plan": (dict,),
    "layout": (dict,),
    "source": (dict,),
    "versions": (dict,),
    "machine": (dict, type(None)),
    "layer_errors": (list,),
    "notes": (list,),
    "quality": (dict, type(None)),
    "verdict": (dict, type(None)),
    "calibration": (dict, type(None)),
    "engine": (dict, type(None)),
    "training": (dict, type(None)),
    identity.FIELD: (dict, type(None)),
}
#: Fields that a card may lack: calibration text, engine and digests, because the release was earlier, and training,
#: because the weights were not trained.
LATER_FIELDS = {"calibration", "engine", "training", identity.FIELD}
SOURCE_FIELDS = {"name": str, "sha256": str, "tensor_bytes": int}
ERROR_FIELDS = {"name": (str,), "scheme": (str,), "relative": (int, float), "sqnr_db": (int, float)}


@dataclass(frozen=True, slots=True)
class Card:
    """The content of a card when the artifact is written: everything but quality, verdict and digests."""

    plan: Plan
    layout: Layout
    source: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, Any] | None = None
    layer_errors: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    calibration: Mapping[str, Any] | None = None
    engine: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        training = {} if self.training is None else {"training": dict(self.training)}
        return {
            "format_version": FORMAT_VERSION,
            "source": dict(self.source),
            "versions": dict(self.versions),
            "machine": None if self.machine is None else dict(self.machine),
            "quality": None,
            "verdict": None,
            "notes": list(self.notes),
            "calibration": None if self.calibration is None else dict(self.calibration),
            "engine": dict(self.engine),
            "layout": self.layout.to_json(),
            "plan": self.plan.to_json(),
            "layer_errors": [dict(error) for error in self.layer_errors],
            **training,
        }


def dumps(card: Mapping[str, Any]) -> str:
    """Return a card as JSON text. Raises `ValueError` for NaN or infinity."""
    return json.dumps(card, indent=1, allow_nan=False) + "\n"


def read_card(folder: Path) -> dict[str, Any]:
    """Read and validate the card of an artifact folder. Raises `ArtifactError` if it is missing or malformed."""
    path = folder / CARD_NAME
    data = load_json(path, MAX_CARD_BYTES)
    try:
        check_card(data)
    except (ZeropointError, ValueError, TypeError) as cause:
        raise ArtifactError(f"{path} is malformed: {cause}") from cause
    return data


def check_card(data: Mapping[str, Any]) -> tuple[Plan, Layout]:
    """Validate a card's content and return its plan and layout. Raises a `ZeropointError` if it is malformed."""
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise ArtifactError(f"format version {version!r} is not {FORMAT_VERSION}, the one this release reads")
    missing, unknown = sorted(set(FIELDS) - LATER_FIELDS - set(data)), sorted(set(data) - set(FIELDS))
    if missing or unknown:
        raise ArtifactError(f"it lacks {missing}" if missing else f"it has unknown fields {unknown}")
    for key, kinds in FIELDS.items():
        if not isinstance(data.get(key), kinds):
            raise ArtifactError(f"{key} must not be a {type(data[key]).__name__}")
    for key, kind in SOURCE_FIELDS.items():
        if not isinstance(data["source"].get(key), kind):
            raise ArtifactError(f"source.{key} must be a {kind.__name__}")
    _check_errors(data["layer_errors"])
    for key, texts in (("notes", data["notes"]), ("engine", (data.get("engine") or {}).values())):
        if not all(isinstance(text, str) for text in texts):
            raise ArtifactError(f"every value in {key} must be a text")
    _check_digests(data.get(identity.FIELD))
    return Plan.from_json(data["plan"]), Layout.from_json(data["layout"])


def _check_errors(errors: Sequence[Any]) -> None:
    for error in errors:
        if not isinstance(error, dict) or set(error) != set(ERROR_FIELDS):
            raise ArtifactError(f"a layer error must hold {sorted(ERROR_FIELDS)}")
        for key, types in ERROR_FIELDS.items():
            if not isinstance(error[key], types):
                raise ArtifactError(f"a layer error's {key} must not be a {type(error[key]).__name__}")


def _check_digests(digests: Mapping[str, Any] | None) -> None:
    if digests is None:
        return
    texts = [value for value in digests.values() if isinstance(value, str)]
    if set(digests) != set(identity.KEYS) or not all(re.fullmatch("[0-9a-f]{64}", text) for text in texts):
        raise ArtifactError(f"{identity.FIELD} must hold the sha256 of {', '.join(identity.KEYS)}")
    if len(texts) != len(digests):
        raise ArtifactError(f"every value in {identity.FIELD} must be a text")


def update_card(
    path: str | Path,
    *,
    quality: Mapping[str, Any] | None = None,
    verdict: Mapping[str, Any] | None = None,
    machine: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    judged: Mapping[str, str] | None = None,
) -> None:
    """Replace the given sections of an artifact's card atomically; sections that are None stay unchanged.

    `judged`: digests of the measured tensors and config. If the card has no digests, these are written into it.

    Raises `ArtifactError` if the card is malformed, was edited or cannot be written, if its digests differ from
    `judged`, or if a section is not plain JSON.
    """
    folder = Path(path)
    card = read_card(folder)
    digests = card.get(identity.FIELD)
    if digests is not None and digests["card"] != identity.card_digest(card):
        raise ArtifactError(
            f"{folder / CARD_NAME} was edited after it was written, so it is not updated: make the artifact again"
        )
    sections = {"quality": quality, "verdict": verdict, "machine": machine, "training": training}
    for key, value in sections.items():
        if value is not None:
            card[key] = dict(value)
    subject = {key: digests[key] for key in ("tensors", "config")} if digests is not None else judged
    if judged is not None and dict(judged) != dict(subject or {}):
        raise ArtifactError(
            f"the measured weights or config are not those of {folder / CARD_NAME}: make the artifact again"
        )
    try:
        text = dumps(card if subject is None else identity.sealed(card, **subject))
    except (TypeError, ValueError) as cause:
        raise ArtifactError(f"the card's new section is not plain JSON: {cause}") from cause
    atomic.replace_text(folder / CARD_NAME, text)
