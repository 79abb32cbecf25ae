"""Rotary position tables, each scaling computed as transformers computes it (in float32 where it does).

default: Su et al., RoFormer, arXiv:2104.09864; linear: Chen et al., arXiv:2306.15595; llama3: Dubey et al.,
arXiv:2407.21783 (section 3.4); yarn: Peng et al., arXiv:2309.00071.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.models.config import Config
from zeropoint.models.record import RopeTable

Floats = NDArray[np.float32]

DEFAULT_THETA = 10_000.0

#: rope type -> the parameters it has beside `rope_theta` and `partial_rotary_factor`, True where needed.
PARAMETERS: dict[str, dict[str, bool]] = {
    "default": {},
    "linear": {"factor": True},
    "llama3": {
        "factor": True,
        "low_freq_factor": True,
        "high_freq_factor": True,
        "original_max_position_embeddings": False,
    },
    "yarn": {
        "factor": True,
        "original_max_position_embeddings": False,
        "attention_factor": False,
        "beta_fast": False,
        "beta_slow": False,
        "mscale": False,
        "mscale_all_dim": False,
    },
}


class RopeParameters:
    """One rotation's checked parameters, from `rope_parameters` (transformers 5) or `rope_scaling` and
    `rope_theta` (before)."""

    def __init__(self, given: Mapping[str, Any], *, max_positions: int) -> None:
        values = {key: value for key, value in given.items() if value is not None}
        old = values.pop("type", "default")
        self.kind = values.pop("rope_type", old)
        check = Config({f"rope_parameters.{key}": value for key, value in values.items()})
        if not isinstance(self.kind, str) or self.kind not in PARAMETERS:
            check.refuse("the rope type", self.kind)
        self.theta = check.positive("rope_parameters.rope_theta")
        self.partial = check.positive("rope_parameters.partial_rotary_factor", 1.0)
        if self.partial > 1:
            check.refuse("rope_parameters.partial_rotary_factor", self.partial)
        self.numbers: dict[str, float] = {}
        for key, needed in PARAMETERS[self.kind].items():
            if needed or key in values:
                self.numbers[key] = check.positive(f"rope_parameters.{key}")
        if self.kind == "default":  # some checkpoints carry a factor that their type does not use
            check.get("rope_parameters.factor")
        if "original_max_position_embeddings" in PARAMETERS[self.kind]:
            self.numbers.setdefault("original_max_position_embeddings", max_positions)
        check.finish()

    def rotary_dim(self, head_dim: int) -> int:
        return int(head_dim * self.partial)

    def table(self, head_dim: int) -> RopeTable:
        """Inverse frequencies `[rotary_dim / 2]` and the factor on cosine and sine."""
        return replace(self._table(self.rotary_dim(head_dim)), parameters=self)

    def _table(self, dim: int) -> RopeTable:
        if self.kind == "yarn":
            return _yarn(self.theta, dim, self.numbers)
        plain = _inverse_frequency(self.theta, dim)
        if self.kind == "linear":
            return RopeTable(plain / np.float32(self.numbers["factor"]))
        if self.kind == "llama3":
            return RopeTable(_llama3(plain, self.numbers))
        return RopeTable(plain)


def read_rope(
    config: Config, *, max_positions: int, theta: float = DEFAULT_THETA, partial: float = 1.0
) -> RopeParameters:
    """The rotation of a model that has one for all layers. `theta` and `partial` (the share of each head that
    turns) are what the family assumes."""
    old, new = _dictionary(config, "rope_scaling"), _dictionary(config, "rope_parameters")
    given = old or new
    values = {"rope_theta": config.number("rope_theta", theta), **given}
    values.setdefault("partial_rotary_factor", config.number("partial_rotary_factor", partial))
    original = config.get("original_max_position_embeddings")
    if original is not None and values.get("rope_type", values.get("type")) in ("llama3", "yarn"):
        values["original_max_position_embeddings"] = original
    return RopeParameters(values, max_positions=max_positions)


def read_rope_by_layer_type(
    config: Config, *, max_positions: int, full_theta: float, sliding_theta: float
) -> tuple[RopeParameters, RopeParameters]:
    """The rotations of full and of sliding attention layers."""
    given = _dictionary(config, "rope_parameters")
    full = {**_dictionary(config, "rope_scaling"), **(given.pop("full_attention", None) or {})}
    sliding = dict(given.pop("sliding_attention", None) or {})
    if given:
        config.refuse("rope_parameters", given)
    full.setdefault("rope_theta", config.number("rope_theta", full_theta))
    sliding.setdefault("rope_theta", config.number("rope_local_base_freq", sliding_theta))
    return (
        RopeParameters(full, max_positions=max_positions),
        RopeParameters(sliding, max_positions=max_positions),
    )


def standing_still(head_dim: int) -> RopeTable:
    """A table that turns nothing, for the layers of a model that have no rotation."""
    return RopeTable(np.zeros(head_dim // 2, np.float32))


def _dictionary(config: Config, name: str) -> dict[str, Any]:
    value = config.get(name, {})
    if not isinstance(value, dict):
        config.refuse(name, value)
    return dict(value)


def _inverse_frequency(theta: float, dim: int) -> Floats:
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.asarray(1 / np.power(np.float32(theta), exponent), np.float32)


def _llama3(plain: Floats, numbers: Mapping[str, float]) -> Floats:
    """Wavelengths beyond the trained context are stretched, short ones kept, those between blended."""
    factor, context = numbers["factor"], numbers["original_max_position_embeddings"]
    low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
    wavelength = 2 * math.pi / plain
    smooth = (context / wavelength - low) / (high - low) if high != low else np.zeros_like(plain)
    blended = (1 - smooth) * plain / factor + smooth * plain
    result = np.where(wavelength > context / low, plain / factor, plain)
    between = (wavelength >= context / high) & (wavelength <= context / low)
    return np.where(between, blended, result).astype(np.float32)


def _yarn(theta: float, dim: int, numbers: Mapping[str, float]) -> RopeTable:
    factor, context = numbers["factor"], numbers["original_max_position_embeddings"]

    def turning_dim(rotations: float) -> float:
        """The channel that turns so often within the trained context."""
        return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(turning_dim(numbers.get("beta_fast", 32))), 0)
    high = min(math.ceil(turning_dim(numbers.get("beta_slow", 1))), dim - 1)
    width = high - low or 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / width, 0, 1)
    plain = _inverse_frequency(theta, dim)
    table = plain / np.float32(factor) * ramp + plain * (1 - ramp)
    return RopeTable(table.astype(np.float32), _yarn_scale(factor, numbers))


def _yarn_scale(factor: float, numbers: Mapping[str, float]) -> float:
    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if "attention_factor" in numbers:
        return numbers["attention_factor"]
    if "mscale" in numbers and "mscale_all_dim" in numbers:
        return magnitude(numbers["mscale"]) / magnitude(numbers["mscale_all_dim"])
    return magnitude(1)
