"""Llama 3's scaled rotation from a table of factors, as llama.cpp's converter writes it (`rope_freqs.weight`).

The table holds, for each pair of channels, the plain frequency divided by the scaled one: 1 for short wavelengths, the
factor for long ones, a blend between. config.json holds the four numbers that the table was made from. What can be
known of them is the factor and the two wavelengths at which the blend begins and ends, which is all that the rotation
depends on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UnsupportedError
from zeropoint.models.rope import RopeParameters

#: How far a table may be from the one that the numbers found for it give: float32 twice over.
TOLERANCE = 2e-6

#: The context that numbers are given for where any will do: Llama 3's.
REFERENCE = 8192


def fit_llama3(factors: NDArray[np.float32], theta: float, dim: int, max_positions: int) -> dict[str, Any]:
    """Return rope parameters whose table, divided into the plain one, is `factors` (float32 `[dim / 2]`).

    Raises `UnsupportedError` when no such numbers are found.
    """
    if factors.shape != (dim // 2,) or not np.isfinite(factors).all() or factors.min() < 1:
        raise UnsupportedError("its rotation's table of factors does not fit its heads")
    default = {"rope_theta": theta, "rope_type": "default"}
    if factors.max() == 1:
        return default
    plain = RopeParameters(default, max_positions=max_positions).table(dim).inverse_frequency
    for numbers in _candidates(factors.astype(np.float64), plain.astype(np.float64)):
        rope = {"rope_theta": theta, "rope_type": "llama3", **numbers}
        try:
            table = RopeParameters(rope, max_positions=max_positions).table(dim).inverse_frequency
        except UnsupportedError:
            continue
        if np.allclose(plain / table, factors, rtol=TOLERANCE, atol=0):
            return rope
    raise UnsupportedError("its rotation is scaled by a table of factors, which config.json cannot express")


def _candidates(factors: NDArray[np.float64], plain: NDArray[np.float64]) -> Iterator[dict[str, Any]]:
    """Numbers that might give the table: the published ones of Llama 3, then what the blended channels say."""
    factor = float(str(np.float32(factors.max())))
    for exponent in range(13, 21):
        yield _numbers(factor, 1.0, 4.0, 1 << exponent)
    for exponent in range(4, 13):
        yield _numbers(factor, 1.0, 4.0, 1 << exponent)
    blended = (factors > 1) & (factors < factors.max())
    inverse = plain / (2 * np.pi)  # turns a position: one over the wavelength
    if blended.sum() >= 2:  # the blend is linear in it: smooth = (context * inverse - low) / (high - low)
        smooth = (1 / factors[blended] - 1 / factor) / (1 - 1 / factor)
        slope, start = np.polyfit(inverse[blended], smooth, 1)
        low_at, high_at = -start / slope, (1 - start) / slope  # where smooth is 0 and 1
        if 0 < low_at < high_at:
            yield _numbers(factor, 1.0, float(f"{high_at / low_at:.6g}"), round(1 / low_at))
            for context in (1 << exponent for exponent in range(4, 21)):
                low, high = float(f"{low_at * context:.5g}"), float(f"{high_at * context:.5g}")
                yield _numbers(factor, low, high, context)
        return
    # One channel lies between, or none: any blend that gives it its value and parts the other two kinds will do.
    long = inverse[factors == factors.max()].max(initial=0.0)
    short = inverse[factors == 1].min(initial=np.inf)
    between = float(inverse[blended][0]) if blended.any() else float(np.sqrt(long * min(short, 1.0)))
    smooth_there = (1 / float(factors[blended][0]) - 1 / factor) / (1 - 1 / factor) if blended.any() else 0.5
    for part in (0.5, 0.75, 0.9, 0.99, 0.999, 0.25, 0.1):
        low_at = between * (max(long, between / 64) / between) ** (1 - part)
        high_at = low_at + (between - low_at) / smooth_there
        if long < low_at < high_at < short:
            yield _numbers(factor, low_at * REFERENCE, high_at * REFERENCE, REFERENCE)


def _numbers(factor: float, low: float, high: float, context: int) -> dict[str, Any]:
    return {
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }
