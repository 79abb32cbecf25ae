"""Speeds of kernels for tests, made up."""

from __future__ import annotations

from zeropoint.runtime.native.format_speeds import FORMATS, ROWS, FormatSpeeds


def speeds_of(ratios: dict[str, float], *, level: str = "avx2", threads: int = 2) -> FormatSpeeds:
    """Return speeds at one level: 10 for every format and kind of work, times the ratio of "format work" if given.

    `{"int4 decode": 2.5}` makes int4 decode at 25. A ratio of 0 leaves the format out.
    """
    formats = {
        f: {work: 10.0 * ratios.get(f"{f} {work}", 1.0) for work in ROWS}
        for f in FORMATS
        if ratios.get(f, 1.0)
    }
    return FormatSpeeds("a processor", threads, "2026-01-01T00:00+00:00", 0.0, {level: formats})
