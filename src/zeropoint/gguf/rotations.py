"""Recovery of Llama 3's rope parameters from the factor table in a GGUF file (`rope_freqs.weight`).

For each pair of channels the table holds the unscaled frequency divided by the scaled one: 1 for short wavelengths,
`factor` for long ones, a blend between. llama.cpp's converter computes the table from four numbers of config.json. The
rotation depends only on `factor` and on the two wavelengths at which the blend starts and ends, so any four numbers
that give the same three values are correct.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UnsupportedError
from zeropoint.models.rope import RopeParameters

#: Largest relative difference between the file's table and that of the recovered parameters: two float32 roundings.
TOLERANCE = 2e-6

#: `original_max_position_embeddings` to use where any value will do: Llama 3's.
REFERENCE = 8192


def fit_llama3(factors: NDArray[np.float32], theta: float, dim: int, max_positions: int) -> dict[str, Any]:
    """Return rope parameters of config.json that produce the table `factors` (float32 `[dim / 2]`).

    Raises `UnsupportedError` if no candidate reproduces the table.
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
    """Yield parameters that may produce the table: Llama 3's published ones, then estimates from blended channels."""
    factor = float(str(np.float32(factors.max())))
    for exponent in range(13, 21):
        yield _numbers(factor, 1.0, 4.0, 1 << exponent)
    for exponent in range(4, 13):
        yield _numbers(factor, 1.0, 4.0, 1 << exponent)
    blended = (factors > 1) & (factors < factors.max())
    inverse = plain / (2 * np.pi)  # 1 / wavelength
    if (
        blended.sum() >= 2
    ):  # the blend is linear in `inverse`: smooth = (context * inverse - low) / (high - low)
        smooth = (1 / factors[blended] - 1 / factor) / (1 - 1 / factor)
        slope, start = np.polyfit(inverse[blended], smooth, 1)
        low_at, high_at = -start / slope, (1 - start) / slope  # where smooth is 0 and 1
        if 0 < low_at < high_at:
            yield _numbers(factor, 1.0, float(f"{high_at / low_at:.6g}"), round(1 / low_at))
            for context in (1 << exponent for exponent in range(4, 21)):
                low, high = float(f"{low_at * context:.5g}"), float(f"{high_at * context:.5g}")
                yield _numbers(factor, low, high, context)
        return
    # At most one blended channel: any blend works that passes through its value and separates long from short.
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
    """Return the four numbers by their names in config.json."""
    return {
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }
