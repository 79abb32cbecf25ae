"""The rope parameters of config.json, from a GGUF header.

A header states theta, and the kind and factor of a scaling. A Llama 3 scaling is a tensor instead, `rope_freqs.weight`:
for each pair of channels the unscaled frequency divided by the scaled one, which is 1 for short wavelengths, `factor`
for long ones, a blend between. llama.cpp's converter computes this table from four numbers of config.json. The rotation
depends only on `factor` and on the two wavelengths at which the blend starts and ends, so any four numbers that give
the same three values are correct (`fit_llama3`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UnsupportedError
from zeropoint.gguf.architecture.families import FAMILIES
from zeropoint.gguf.architecture.header import Header
from zeropoint.gguf.architecture.to_header import ROPE_FACTORS
from zeropoint.models.rope import RopeParameters

Factors = Callable[[], NDArray[np.float32]]

#: Largest relative difference between the file's table and that of the recovered parameters: two float32 roundings.
TOLERANCE = 2e-6

#: `original_max_position_embeddings` to use where any value will do: Llama 3's.
REFERENCE = 8192


def rope_parameters(
    header: Header, model_type: str, config: Mapping[str, Any], factors: Factors | None
) -> dict[str, Any]:
    """Return the config field `rope_parameters`."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    size = config.get("head_dim", hidden // heads)
    rotary_dim = header.whole("rope.dimension_count", size)
    rope = _scaling(header)
    if ROPE_FACTORS in header.tensors:
        if rope["rope_type"] != "default" or factors is None:
            raise UnsupportedError("its rotation is scaled twice, by a table of factors and by its header")
        rope = fit_llama3(factors(), rope["rope_theta"], rotary_dim, config["max_position_embeddings"])
    if rotary_dim != size:
        if not FAMILIES[model_type].partial or rotary_dim > size:
            raise UnsupportedError(f"its rotation turns {rotary_dim} of {size} channels of a head")
        rope["partial_rotary_factor"] = _share(rotary_dim, size)
    if model_type in ("gemma3_text", "olmo3"):
        base = 10_000.0 if model_type == "gemma3_text" else rope["rope_theta"]
        sliding = {"rope_theta": header.number("rope.freq_base_swa", base), "rope_type": "default"}
        return {"rope_parameters": {"full_attention": rope, "sliding_attention": sliding}}
    return {"rope_parameters": rope}


def _share(rotary_dim: int, size: int) -> float:
    """Return the shortest decimal `share` with `int(size * share) == rotary_dim`."""
    for digits in range(1, 18):
        share = round(rotary_dim / size, digits)
        if int(size * share) == rotary_dim:
            return share
    return math.nextafter(rotary_dim / size, 1.0)


def _scaling(header: Header) -> dict[str, Any]:
    """Return the rope parameters that the header states: theta, and the scaling if there is one."""
    kind = header.get("rope.scaling.type")
    rope: dict[str, Any] = {"rope_theta": header.number("rope.freq_base", 10_000.0), "rope_type": "default"}
    old = header.number("rope.scale_linear", 0.0)  # the key in files of 2023
    if kind is None and old not in (0.0, 1.0):
        return rope | {"rope_type": "linear", "factor": old}
    factor = header.number("rope.scaling.factor", 1.0)
    if "rope_factors_long.weight" in header.tensors:
        raise UnsupportedError(
            "its rotation is scaled by one table up to its first context and by another beyond it"
        )
    if kind is None or kind == "none" or factor in (0.0, 1.0):
        return rope
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise UnsupportedError(f"its rotation is scaled by {str(kind)[:40]!r}, which is not supported")
    return rope | _yarn(header, factor)


def _yarn(header: Header, factor: float) -> dict[str, Any]:
    """Return the rope parameters of YaRN scaling."""
    parameters: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    parameters["original_max_position_embeddings"] = header.whole(
        "rope.scaling.original_context_length", header.whole("context_length")
    )
    for key in ("yarn_ext_factor", "yarn_log_multiplier"):
        if header.number(f"rope.scaling.{key}", 1.0 if key == "yarn_ext_factor" else 0.0) not in (1.0, 0.0):
            raise UnsupportedError(f"its rotation sets {key}, which is not supported")
    for key in ("beta_fast", "beta_slow"):
        if header.has(f"rope.scaling.yarn_{key}"):
            parameters[key] = header.number(f"rope.scaling.yarn_{key}")
    own = header.number("rope.scaling.yarn_attn_factor", header.number("rope.scaling.attn_factor", 1.0))
    if own != 1.0:  # config.json's factor includes YaRN's own, the header's does not
        parameters["attention_factor"] = own * (0.1 * math.log(factor) + 1)
    return parameters


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
