"""The formats that `fit` chooses from when the user names none.

With `--min-prefill`, these include formats with 8-bit inputs, if their prefill is faster on this machine. They lose
more accuracy, and the search decides for each layer whether to use them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zeropoint.fitting.result import FORMATS, Settings
from zeropoint.fitting.target import Target
from zeropoint.progress import Progress
from zeropoint.runtime.native.format_speeds import VARIANTS, FormatSpeeds, measured
from zeropoint.values.budget import Budget

#: A variant is offered if its prefill is at least this many times as fast as the preset and as the variants before it.
_WORTH = 1.1


@dataclass(frozen=True, slots=True)
class Offered:
    """The formats besides 16 bits, widest first, and a note on each that is not in `FORMATS`."""

    formats: tuple[str, ...]
    notes: tuple[str, ...] = ()


def offered(budget: Budget, settings: Settings, target: Target, step: Progress) -> Offered:
    """Return the formats that the settings name; if they name none, the formats for this budget and target."""
    if settings.formats is not None:
        return Offered(settings.formats)
    if budget.min_prefill is None:
        return Offered(FORMATS)
    speeds = measured(settings.cache, threads=target.threads, step=step)
    ratios = {f: dict(_faster_variants(speeds, target.isa, f)) for f in FORMATS}
    notes = [
        f"{variant} is on offer too: it reads prompts {ratio:.1f} times as fast as {preset} here"
        for preset, variants in ratios.items()
        for variant, ratio in variants.items()
    ]
    return Offered(tuple(f for preset in FORMATS for f in (preset, *ratios[preset])), tuple(notes))


def _faster_variants(speeds: FormatSpeeds, level: str, preset: str) -> Iterator[tuple[str, float]]:
    """Yield each variant of the preset that is worth offering, and how many times as fast as the preset it prefills."""
    best = 1.0
    for variant in VARIANTS.get(preset, ()):
        if {preset, variant} <= speeds.levels.get(level, {}).keys():
            ratio = speeds.ratio(level, "prefill", variant, preset)
            if ratio >= best * _WORTH:
                best = ratio
                yield variant, ratio
