"""The formats that `fit` chooses from when the user names none.

With a bound on prefill, formats with 8-bit inputs are offered too, if this machine reads prompts faster in them. They
lose more; the search decides for each layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zeropoint.fitting.result import FORMATS, Settings
from zeropoint.fitting.target import Target
from zeropoint.progress import Progress
from zeropoint.runtime.native.format_speeds import VARIANTS, FormatSpeeds, measured
from zeropoint.values.budget import Budget

#: How many times as fast at prefill a format must be as those of its width that lose less.
_WORTH = 1.1


@dataclass(frozen=True, slots=True)
class Offered:
    """The formats besides 16 bits, widest first, and a note for each that is no default."""

    formats: tuple[str, ...]
    notes: tuple[str, ...] = ()


def offered(budget: Budget, settings: Settings, target: Target, step: Progress) -> Offered:
    """Return the formats of the settings, or the default ones for this budget and target."""
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
    """Yield the preset's variants that are worth offering at prefill, with their speed relative to the preset's."""
    best = 1.0
    for variant in VARIANTS.get(preset, ()):
        if {preset, variant} <= speeds.levels.get(level, {}).keys():
            ratio = speeds.ratio(level, "prefill", variant, preset)
            if ratio >= best * _WORTH:
                best = ratio
                yield variant, ratio
