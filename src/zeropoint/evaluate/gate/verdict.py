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
    """The gate's answer for one artifact, with everything that the artifact's card stores of the check.

    `units` and `unit_kind`: how many pieces of text the bootstrap resamples, and what they are (documents, or runs of
    128 tokens or fewer).
    """

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
    """False if the artifact's card named no digests, as cards of older releases do."""

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
        if judged_digests(where).by_name != self.judged:
            raise ArtifactError(
                f"{where} changed while it was judged, so no verdict is written: judge it again"
            )
        fields = self.to_json()
        quality = fields.pop("quality")
        update_card(where, quality=quality, verdict=fields | more, judged=self.judged)


class Digests(NamedTuple):
    """An artifact's digests by name. `in_card`: False if the artifact has a card without digests."""

    by_name: Mapping[str, str]
    in_card: bool


def judged_digests(folder: Path) -> Digests:
    """Read every byte of an artifact's tensors and return its digests; for an external runtime's file, no digests.

    Raises `ArtifactError` if the artifact differs from the digests in its card.
    """
    if not (folder / CARD_NAME).is_file():
        return Digests({}, in_card=True)
    digests = identity.verify(folder)
    by_name = {"tensors": digests.tensors, "config": identity.config_digest(folder)}
    return Digests(by_name, in_card=digests.known)
