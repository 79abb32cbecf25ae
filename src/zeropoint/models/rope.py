"""Rotary position tables for all rope types; the arithmetic follows transformers, float32 steps included.

default: Su et al., RoFormer, arXiv:2104.09864; linear: Chen et al., arXiv:2306.15595; llama3: Dubey et al.,
arXiv:2407.21783 (section 3.4); yarn: Peng et al., arXiv:2309.00071; longrope: Ding et al., arXiv:2402.13753.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from zeropoint.errors import UnsupportedError
from zeropoint.models.config import Config
from zeropoint.models.spec import RopeTable
from zeropoint.values.arrays import Floats

DEFAULT_THETA = 10_000.0

#: Rope type -> {parameter: whether it is required}: the parameters that transformers reads for this type besides
#: `rope_theta` and `partial_rotary_factor`. Other parameters are ignored, as in transformers.
PARAMETERS: dict[str, dict[str, bool]] = {
    "default": {},
    "linear": {"factor": True},
    "dynamic": {"factor": True},
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
    "longrope": {"factor": False, "original_max_position_embeddings": False, "attention_factor": False},
}
#: Older name of a rope type -> its name now.
OTHER_NAMES = {"su": "longrope"}


class RopeParameters:
    """The checked parameters of one rotation.

    They come from `rope_parameters` (transformers 5) or from `rope_scaling` and `rope_theta` (older configs).
    `max_positions` is the config's `max_position_embeddings`. `partial` says whether the family supports
    `partial_rotary_factor`, the fraction of each head's channels that rotate. Raises `UnsupportedError` naming the
    parameter if a value is missing or not supported.
    """

    def __init__(self, given: Mapping[str, Any], *, max_positions: int, partial: bool = True) -> None:
        values = {key: value for key, value in given.items() if value is not None}
        old = values.pop("type", "default")
        kind = values.pop("rope_type", old)
        check = Config({f"rope_parameters.{key}": value for key, value in values.items()})
        self.kind = OTHER_NAMES.get(kind, kind) if isinstance(kind, str) else ""
        if self.kind not in PARAMETERS:
            check.refuse("rope_parameters.rope_type", kind)
        for key, value in values.items():
            if isinstance(value, dict):
                check.refuse(f"rope_parameters.{key}", value)
        self.theta = check.positive("rope_parameters.rope_theta")
        self.partial = check.positive("rope_parameters.partial_rotary_factor", 1.0)
        if not partial and self.kind == "default":
            self.partial = 1.0
        if self.partial > 1 or (self.partial < 1 and not partial):
            check.refuse("rope_parameters.partial_rotary_factor", self.partial)
        self.numbers: dict[str, float] = {}
        for key, needed in PARAMETERS[self.kind].items():
            if needed or key in values:
                self.numbers[key] = check.positive(f"rope_parameters.{key}")
        if "original_max_position_embeddings" in PARAMETERS[self.kind]:
            self.numbers.setdefault("original_max_position_embeddings", max_positions)
        if self.kind == "yarn" and self.theta == 1:
            check.refuse("rope_parameters.rope_theta", self.theta)
        self.truncate = check.flag("rope_parameters.truncate", True) if self.kind == "yarn" else True
        self.short = np.ones(0, np.float32)
        if self.kind == "longrope":
            self.short = _factors(check, "rope_parameters.short_factor")
            original = self.numbers["original_max_position_embeddings"]
            if original < 2:
                check.refuse("rope_parameters.original_max_position_embeddings", original)
            self.numbers.setdefault("factor", max_positions / original)

    def rotary_dim(self, head_dim: int) -> int:
        """Return how many channels of each head rotate."""
        return int(head_dim * self.partial)

    def table(self, head_dim: int) -> RopeTable:
        """Return the inverse frequencies `[rotary_dim / 2]` and the factor on cosine and sine.

        For LongRoPE the table is valid for texts within the original context only.
        """
        return replace(self._table(self.rotary_dim(head_dim)), parameters=self)

    def _table(self, dim: int) -> RopeTable:
        """Return the table of `dim` rotated channels, without `parameters`."""
        if self.kind == "yarn":
            return _yarn(self.theta, dim, self.numbers, truncate=self.truncate)
        plain = _inverse_frequency(self.theta, dim)
        if self.kind == "linear":
            return RopeTable(plain / np.float32(self.numbers["factor"]))
        if self.kind == "llama3":
            return RopeTable(_llama3(plain, self.numbers))
        if self.kind == "longrope":
            if len(self.short) != len(plain):
                raise UnsupportedError(
                    f"config.json has rope_parameters.short_factor of {len(self.short)} numbers, but half of each "
                    f"head's rotary dimension is {len(plain)}"
                )
            original = int(self.numbers["original_max_position_embeddings"])
            return RopeTable(plain / self.short, _longrope_scale(self.numbers), positions=original)
        # "dynamic" equals "default" up to max_position_embeddings, where the engine's context ends
        return RopeTable(plain)


def read_rope(
    config: Config,
    *,
    max_positions: int,
    theta: float = DEFAULT_THETA,
    partial: float | None = None,
    original: int | None = None,
) -> RopeParameters:
    """Read the rotation of a model whose layers all share one.

    `theta`, `partial` and `original` are the family's defaults for `rope_theta`, `partial_rotary_factor` and
    `original_max_position_embeddings`. `partial=None`: the family always rotates whole heads.
    """
    values = {"rope_theta": config.number("rope_theta", theta), **_parameters(config)}
    values.setdefault(
        "partial_rotary_factor", config.number("partial_rotary_factor", 1.0 if partial is None else partial)
    )
    return _rope(config, values, original, max_positions=max_positions, partial=partial is not None)


def read_rope_under(
    config: Config, theta: tuple[str, float], partial: tuple[str, float], *, max_positions: int
) -> RopeParameters:
    """Read the rotation of a family that has its own names for `rope_theta` and `partial_rotary_factor`.

    `theta` and `partial` are (field name, default). The usual names are ignored.
    """
    values = {"rope_theta": config.number(*theta), **_parameters(config)}
    values.setdefault("partial_rotary_factor", config.number(*partial))
    config.ignore("rope_theta", "partial_rotary_factor")
    return _rope(config, values, None, max_positions=max_positions, partial=True)


def _parameters(config: Config) -> dict[str, Any]:
    """Return the dictionary `rope_scaling` if present, otherwise `rope_parameters`."""
    old, new = _dictionary(config, "rope_scaling"), _dictionary(config, "rope_parameters")
    return old or new


def _rope(
    config: Config, values: dict[str, Any], original: int | None, *, max_positions: int, partial: bool
) -> RopeParameters:
    """Return the rope parameters in `values`, with the original context of the config, else `original`."""
    original = config.get("original_max_position_embeddings", original)
    if original is not None:
        values["original_max_position_embeddings"] = original
    return RopeParameters(values, max_positions=max_positions, partial=partial)


def read_rope_by_layer_type(
    config: Config, full_theta: tuple[str, float], sliding_theta: tuple[str, float], *, max_positions: int
) -> tuple[RopeParameters, RopeParameters]:
    """Read two rotations: of the layers with full attention, and of those with sliding-window attention.

    `full_theta` and `sliding_theta` are (field name, default); an empty name means that no field sets the value.
    """
    by_type = _dictionary(config, "rope_parameters")
    # with "rope_type" set, the older name "type" in rope_scaling has no effect, as in transformers
    plain = {} if by_type else {"rope_type": "default"}
    full = {**plain, **(by_type.pop("full_attention", None) or {}), **_dictionary(config, "rope_scaling")}
    sliding = dict(by_type.pop("sliding_attention", None) or {})
    if by_type:
        config.refuse("rope_parameters", by_type)
    config.ignore("partial_rotary_factor")
    for values, (name, theta) in ((full, full_theta), (sliding, sliding_theta)):
        if values.get("rope_theta") is None:
            values["rope_theta"] = config.number(name, theta) if name else theta
        values.pop("truncate", None)  # transformers does not read it in these dictionaries
    return (
        RopeParameters(full, max_positions=max_positions, partial=False),
        RopeParameters(sliding, max_positions=max_positions, partial=False),
    )


def standing_still(head_dim: int) -> RopeTable:
    """Return a table of zero angles, for layers without rotation in a model that rotates others."""
    return RopeTable(np.zeros(head_dim // 2, np.float32))


def _dictionary(config: Config, name: str) -> dict[str, Any]:
    """Return a copy of a dictionary in the config, empty if absent."""
    value = config.get(name, {})
    if not isinstance(value, dict):
        config.refuse(name, value)
    return dict(value)


def _inverse_frequency(theta: float, dim: int) -> Floats:
    """Return `theta ** (-2i / dim)` for i = 0 ... dim / 2 - 1."""
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.asarray(1 / np.power(np.float32(theta), exponent), np.float32)


def _llama3(plain: Floats, numbers: Mapping[str, float]) -> Floats:
    """Return Llama 3's frequencies: long wavelengths stretched by `factor`, short ones kept, those between blended."""
    factor, context = numbers["factor"], numbers["original_max_position_embeddings"]
    low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
    wavelength = 2 * math.pi / plain
    smooth = (context / wavelength - low) / (high - low) if high != low else np.zeros_like(plain)
    blended = (1 - smooth) * plain / factor + smooth * plain
    result = np.where(wavelength > context / low, plain / factor, plain)
    between = (wavelength >= context / high) & (wavelength <= context / low)
    return np.where(between, blended, result).astype(np.float32)


def _factors(check: Config, name: str) -> Floats:
    """Return a list of positive numbers as float32. Raises `UnsupportedError` for anything else."""
    value = check.get(name)
    if not isinstance(value, list) or not value:
        check.refuse(name, value)
    return np.array([Config({name: each}).positive(name) for each in value], np.float32)


def _longrope_scale(numbers: Mapping[str, float]) -> float:
    """Return LongRoPE's factor on cosine and sine."""
    if "attention_factor" in numbers:
        return numbers["attention_factor"]
    factor, original = numbers["factor"], numbers["original_max_position_embeddings"]
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _yarn(theta: float, dim: int, numbers: Mapping[str, float], *, truncate: bool) -> RopeTable:
    """Return YaRN's table: low frequencies divided by `factor`, high ones kept, a linear ramp between."""
    factor, context = numbers["factor"], numbers["original_max_position_embeddings"]

    def rotation_channel(rotations: float) -> float:
        """Return the channel that makes so many full rotations within the original context."""
        return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = rotation_channel(numbers.get("beta_fast", 32)), rotation_channel(numbers.get("beta_slow", 1))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / width, 0, 1)
    plain = _inverse_frequency(theta, dim)
    table = plain / np.float32(factor) * ramp + plain * (1 - ramp)
    return RopeTable(table.astype(np.float32), _yarn_scale(factor, numbers))


def _yarn_scale(factor: float, numbers: Mapping[str, float]) -> float:
    """Return YaRN's factor on cosine and sine."""

    def magnitude(weight: float) -> float:
        """Return `0.1 * weight * ln(factor) + 1`; 1 if nothing is stretched."""
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if "attention_factor" in numbers:
        return numbers["attention_factor"]
    if "mscale" in numbers and "mscale_all_dim" in numbers:
        return magnitude(numbers["mscale"]) / magnitude(numbers["mscale_all_dim"])
    return magnitude(1)
