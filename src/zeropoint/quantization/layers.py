"""Quantize one weight by the algorithm its plan names, and say what that did to it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zeropoint.algorithms import load, make_options, part_options, parts
from zeropoint.errors import SchemeError, StatisticsError
from zeropoint.reference.rounding import check_finite, quantize
from zeropoint.values.plan import Choice
from zeropoint.values.qtensor import Coded, QuantizedTensor
from zeropoint.values.stats import LayerStats
from zeropoint.views import LayerView

logger = logging.getLogger(__name__)

#: What a layer falls back to when its own algorithm cannot be applied.
FALLBACK = "rtn"

#: Rows of a weight whose error is summed at once.
ROWS = 1024


@dataclass(frozen=True, slots=True)
class LayerError:
    """`relative` = ||W - W'|| / ||W||; `sqnr_db` = -20 log10 of it (999 when the weight is exact)."""

    name: str
    scheme: str
    relative: float
    sqnr_db: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Quantized:
    """One weight, what rounding left of it, and what must be said of how it was made ("" when all is well)."""

    weight: Coded
    error: LayerError
    warning: str = ""

    def tensor(self) -> QuantizedTensor:
        """The weight of a scheme of ours, as `quantize_views` makes them."""
        assert isinstance(self.weight, QuantizedTensor)
        return self.weight

    def saying(self, warning: str) -> Quantized:
        """The same, with this to be said as well."""
        return replace(self, warning="; ".join(part for part in (self.warning, warning) if part))


Quantizer = Callable[[Sequence[LayerView], Choice, LayerStats | None], list[Quantized]]
"""What makes codes of weights that share an input and a choice: `quantize_views`, or another format's own."""


def needs(choice: Choice) -> frozenset[str]:
    """The statistics that quantizing a weight in this way takes."""
    if choice.scheme is None or choice.scheme.is_float:
        return frozenset()
    name = parts(choice.algorithm)["quantize"]
    options = part_options(choice.algorithm, choice.options)[name]
    found: frozenset[str] = load(name).needs(choice.scheme, options)
    return found


def quantize_view(view: LayerView, choice: Choice, stats: LayerStats | None) -> Quantized:
    """Carry out an integer choice. An algorithm that is not told enough gives way to `rtn`, with a warning; one that
    makes of its statistics no more than `rtn` does says so too.

    Raises `CheckpointError` naming the weight that holds NaN or inf, `SchemeError` when a scale overflows.
    """
    return quantize_views([view], choice, stats)[0]


def quantize_views(views: Sequence[LayerView], choice: Choice, stats: LayerStats | None) -> list[Quantized]:
    """`quantize_view` of weights `[out, in]` that share an input and a choice.

    They are quantized as one tall weight, so that what an algorithm makes of their input's statistics is made once:
    to algorithms that quantize layers, the rows of a weight do not depend on each other, unless they share a scale.
    """
    scheme = choice.scheme
    assert scheme is not None
    if scheme.granularity == "tensor" and len(views) > 1:
        return [quantize_view(view, choice, stats) for view in views]
    values = [view.read().numpy() for view in views]
    for view, value in zip(views, values, strict=True):
        check_finite(value, view.name)
    names = ", ".join(view.name for view in views)
    try:
        made, warning = _quantize(
            values[0] if len(values) == 1 else np.concatenate(values), choice, stats, names
        )
    except SchemeError as cause:  # an algorithm does not know whose weight it was given
        raise SchemeError(f"{names} as {scheme}: {cause}") from cause
    ends = np.cumsum([len(value) for value in values]).tolist()
    found: list[Quantized] = []
    for view, value, end in zip(views, values, ends, strict=True):
        part = made.rows(end - len(value), end)
        said = warning if not found else ""
        if not warning and _is_fallback(value, choice, stats, part):
            said = f"{parts(choice.algorithm)['quantize']} changed nothing against {FALLBACK} in {view.name}"
            logger.warning("%s", said)
        found.append(Quantized(part, measure(view.name, value, part, str(scheme)), said))
    return found


def _quantize(
    values: NDArray[np.float32], choice: Choice, stats: LayerStats | None, names: str
) -> tuple[QuantizedTensor, str]:
    """The weight, and what must be said of how it was made."""
    name = parts(choice.algorithm)["quantize"]
    algorithm, options = load(name), part_options(choice.algorithm, choice.options)[name]
    try:
        made: QuantizedTensor = algorithm.quantize(values, stats, choice.scheme, options)
        return made, ""
    except StatisticsError as cause:
        warning = f"{names} was rounded by {FALLBACK} instead: {cause}"
        logger.warning("%s", warning)
    return load(FALLBACK).quantize(values, stats, choice.scheme, make_options(FALLBACK, {})), warning


def _is_fallback(
    values: NDArray[np.float32], choice: Choice, stats: LayerStats | None, made: QuantizedTensor
) -> bool:
    """Whether an algorithm made of a weight's statistics what the fallback does; the search for a grid comes last.

    One that asks for no more than the fallback does may well find the same.
    """
    if needs(choice) <= load(FALLBACK).NEEDS:
        return False
    for start, stop in ((0, 1), (0, len(values))):
        part = made.rows(start, stop)
        nearest = quantize(values[start:stop], part.scheme, scale=part.scale, zero_point=part.zero_point)
        if not np.array_equal(nearest.codes, part.codes):
            return False
    plain = load(FALLBACK).quantize(values, stats, made.scheme, make_options(FALLBACK, {}))
    return bool(np.array_equal(plain.codes, made.codes) and np.array_equal(plain.scale, made.scale))


def measure(name: str, values: NDArray[np.float32], quantized: Coded, scheme: str) -> LayerError:
    """The error that rounding left in one weight, `scheme` in words."""
    lost = size = 0.0
    for start in range(0, len(values), ROWS):  # in float64, without a float64 copy of the weight
        exact = values[start : start + ROWS]
        error = quantized.rows(start, start + ROWS).dequantize()
        error -= exact
        lost += _square_sum(error)
        size += _square_sum(exact)
    relative = math.sqrt(lost / size) if size else math.sqrt(lost)
    sqnr = -20 * math.log10(relative) if relative > 0 else 999.0
    return LayerError(name, scheme, float(f"{relative:.6g}"), float(f"{sqnr:.6g}"))


def _square_sum(values: NDArray[np.float32]) -> float:
    norm = torch.linalg.vector_norm(torch.from_numpy(values), dtype=torch.float64)
    return float(norm) ** 2
