"""Texts about the measured speeds of weight formats: the cells of `doctor`'s tables, its advice, `quantize`'s note."""

from __future__ import annotations

from zeropoint.runtime.native.format_speeds import BASELINE, ROWS, TIE, VARIANTS, FormatSpeeds
from zeropoint.values.scheme import parse

#: Advice names a format with 8-bit inputs, which loses more accuracy, if its prefill is this many times as fast.
_NOTABLE = 1.1


def cells(speeds: FormatSpeeds, level: str, format: str) -> list[tuple[str, bool]]:
    """Return a format's table cells, one for each kind of work.

    A cell is the text (speed and ratio to FP16), and whether the format is the fastest one.
    """
    found = speeds.levels[level]
    return [
        (
            f"{found[format][work]:.1f} ({speeds.ratio(level, work, format):.2f}x)",
            format == speeds.fastest(level, work, tuple(found)),
        )
        for work in ROWS
    ]


def advice(speeds: FormatSpeeds, level: str) -> str:
    """Return one sentence: the fastest preset for each kind of work, and the best gain of 8-bit inputs at prefill."""
    winners: dict[str, list[str]] = {}
    for work in ROWS:
        best = speeds.fastest(level, work, tuple(VARIANTS))
        ratio = speeds.ratio(level, work, best)
        if ratio >= TIE:
            winners.setdefault(best, []).append(f"{work} ({ratio:.1f} times FP16)")
        else:
            winners.setdefault("", []).append(work)
    parts = [
        f"{name} is the fastest preset at {_listed(works)}"
        if name
        else f"none beats FP16 at {_listed(works)}"
        for name, works in winners.items()
    ]
    with_instructions = (
        f"Here, with {level} instructions and {speeds.threads} thread{'s' * (speeds.threads != 1)}"
    )
    return f"{with_instructions}, {', '.join(parts)}{_of_variants(speeds, level)}."


def _of_variants(speeds: FormatSpeeds, level: str) -> str:
    """Return the end of the advice, on the variant of a preset that gains most at prefill; "" if none gains enough."""
    gains = {
        variant: (speeds.ratio(level, "prefill", variant, preset), preset)
        for preset, variants in VARIANTS.items()
        for variant in variants
        if {preset, variant} <= speeds.levels[level].keys()
    }
    variant, (ratio, preset) = max(gains.items(), key=lambda item: item[1], default=("", (0.0, "")))
    if ratio < _NOTABLE:
        return ""
    return (
        f"; {variant} prefills {ratio:.1f} times as fast as {preset}, but rounds inputs to 8 bits: "
        "`zeropoint compare` shows what that loses"
    )


def note_on(speeds: FormatSpeeds, level: str, format: str) -> str:
    """Return a sentence that names the presets or FP16 that are faster than `format` at decode or prefill.

    Return "" if none is faster, or if `format` is neither a preset nor FP16.
    """
    names = [name for name in (BASELINE, *VARIANTS) if name in speeds.levels.get(level, {})]
    chosen = next((name for name in names if parse(name) == parse(format)), None)
    if chosen is None:
        return ""
    parts = []
    for work, verb in (("decode", "decodes"), ("prefill", "reads prompts")):
        best = speeds.fastest(level, work, names)
        ratio = speeds.ratio(level, work, best, chosen)
        if ratio >= TIE:
            parts.append(f"{best} {verb} {ratio:.1f} times as fast as {chosen}")
    return f"on this machine {' and '.join(parts)}, as `zeropoint doctor` measured" if parts else ""


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
