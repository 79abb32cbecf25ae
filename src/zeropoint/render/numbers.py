"""Numbers as text: three significant digits, with units, without exponents in running text."""

from __future__ import annotations

import math

MISSING = "–"
_BYTE_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def plain(value: float, digits: int = 3) -> str:
    """Return `digits` significant digits without an exponent: 0.00015, 5.80, 1,320."""
    if not math.isfinite(value):
        return "infinite" if value > 0 else MISSING
    if value == 0:
        return "0"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{min(decimals, 9)}f}"


def size(value: float) -> str:
    """Return bytes in decimal units: 89.0 MB, 1.25 GB."""
    for unit, factor in _BYTE_UNITS:
        if value >= factor:
            return f"{plain(value / factor)} {unit}"
    return f"{value:.0f} B"


def seconds(value: float) -> str:
    """Return a time in seconds or milliseconds."""
    return f"{plain(value)} s" if value >= 1 else f"{plain(value * 1000)} ms"


def duration(value: float) -> str:
    """Return a time in the two largest of its hours, minutes and seconds: 2 h 5 min, 3 min 20 s, 40 s."""
    whole = max(round(value), 1)
    if whole < 60:
        return f"{whole} s"
    minutes, seconds = divmod(whole, 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def rate(value: float) -> str:
    """Return a rate in tokens per second."""
    return f"{plain(value)} tok/s"


def nats(value: float) -> str:
    """Return a divergence: 0.25, 0.0012, and with an exponent below 1e-4: 7.9e-6."""
    if 0 < value < 1e-4:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return plain(value, 2)


def percent(value: float) -> str:
    """Return a share as percent with one decimal, or two from 99 % on: 67.6 %, 99.92 %."""
    digits = 2 if 0.99 <= value < 1 else 1
    return f"{100 * value:.{digits}f} %"


def times(ratio: float) -> str:
    """Return a ratio as a factor: 3.0×, 12×."""
    return f"{ratio:.1f}×" if ratio < 9.95 else f"{ratio:.0f}×"


def one_in(share: float) -> str:
    """Return a share in words: 1 in 4, 1 in 2, 2 in 3, 9 in 10."""
    if share <= 0:
        return "none"
    if share < 0.001:
        return "fewer than 1 in 1000"
    if share < 0.4:
        return f"1 in {round(1 / share)}"
    near = min(
        ((a, b) for b in (2, 3, 4, 5, 10) for a in range(1, b)), key=lambda f: abs(f[0] / f[1] - share)
    )
    return f"{near[0]} in {near[1]}"
