"""`Verdict`: the gate's answer for one artifact, and the digests of what was judged.

`check` in check.py computes it, from intervals that `judge` in bounds.py compares with bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from zeropoint.artifact import update_card
from zeropoint.errors import ArtifactError
from zeropoint.evaluate.gate.bounds import BoundResult
from zeropoint.evaluate.tasks.accuracy import TaskResult
from zeropoint.files import identity
from zeropoint.files.json_file import CARD_NAME

NO_DIGESTS = (
    "an older release made this artifact, and its card named no digests: earlier measurements in the card may be of "
    "other weights; this verdict records the digests of the weights it judged"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer for one artifact, with everything that the artifact's card stores of the check."""

    artifact: str
    against: str
    passed: bool
    bounds: tuple[BoundResult, ...]
    bounds_are_defaults: bool
    noise_floor_kl: float
    minimal_detectable_kl: float
    quality: Mapping[str, Any]
    scored_tokens: int
    units: int
    unit_kind: str
    text: str
    text_digest: str
    context: int
    seed: int
    tasks: tuple[TaskResult, ...] = ()
    judged: Mapping[str, str] = field(default_factory=dict)
    """Digests of the judged artifact: `tensors` (all tensors) and `config` (config.json)."""
    had_digests: bool = True
    """Whether the artifact's card named digests. Cards of older releases name none."""

    def sentences(self) -> list[str]:
        """Return the verdict as sentences for a person, the decision first."""
        first = "Passed" if self.passed else "Failed"
        source = "default bounds for this format" if self.bounds_are_defaults else "the bounds given"
        return [
            f"{first}: {self.artifact} against {self.against}, {source}.",
            *(bound.sentence() for bound in self.bounds),
            *(task.sentence() for task in self.tasks),
            *(() if self.had_digests else (NO_DIGESTS,)),
            f"noise floor: mean KL {self.noise_floor_kl:.2g} (the original model in 16 bits against itself in float32)",
            f"smallest change of mean KL this text can show: {self.minimal_detectable_kl:.2g} "
            f"({self.scored_tokens} tokens, {self.units} {self.unit_kind})",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON values, without `had_digests`."""
        fields = asdict(self) | {"bounds": [asdict(bound) for bound in self.bounds]}
        del fields["had_digests"]
        return fields

    def write(self, folder: str | Path, **more: Any) -> None:
        """Write the verdict and the entries `more` into the card of the artifact in `folder`.

        Raises `ArtifactError` if the artifact's tensors or config changed since they were judged.
        """
        where = Path(folder)
        if judged_digests(where).judged != self.judged:
            raise ArtifactError(
                f"{where} changed while it was judged, so no verdict is written: judge it again"
            )
        fields = self.to_json()
        quality = fields.pop("quality")
        update_card(where, quality=quality, verdict=fields | more, judged=self.judged)


class Judged(NamedTuple):
    """Digests by name, and whether the artifact's card already named digests."""

    judged: Mapping[str, str]
    known: bool


def judged_digests(folder: Path) -> Judged:
    """Read every byte of an artifact's tensors and return its digests; return none for an external runtime's file.

    Raises `ArtifactError` if the artifact differs from the digests in its card.
    """
    if not (folder / CARD_NAME).is_file():
        return Judged({}, known=True)
    digests = identity.verify(folder)
    return Judged({"tensors": digests.tensors, "config": identity.config_digest(folder)}, known=digests.known)
