"""Quantization of single weights by the algorithm that their choice names, and the rounding error of each weight."""

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

#: The algorithm for a layer whose own algorithm lacks the statistics it needs.
FALLBACK = "rtn"

#: The most elements that `rtn` rounds at once. Larger weights, such as an embedding of 262,144 tokens, are rounded in
#: pieces of rows, because rounding takes several float32 copies.
PIECE_NUMBERS = 1 << 24

#: The number of rows that `measure` dequantizes at once.
ROWS = 1024


@dataclass(frozen=True, slots=True)
class LayerError:
    """The rounding error of one weight: `relative` = ||W - W'|| / ||W||, `sqnr_db` = -20 log10(`relative`).

    `sqnr_db` is 999 if the quantized weight is exact.
    """

    name: str
    scheme: str
    relative: float
    sqnr_db: float

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the card."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized weight, its rounding error, and a warning for the user ("" for none)."""

    weight: Coded
    error: LayerError
    warning: str = ""

    def tensor(self) -> QuantizedTensor:
        """Return the weight, which must be a `QuantizedTensor` (as all results of `quantize_views` are)."""
        assert isinstance(self.weight, QuantizedTensor)
        return self.weight

    def with_warning(self, warning: str) -> Quantized:
        """Return a copy with `warning` appended to its warning."""
        return replace(self, warning="; ".join(part for part in (self.warning, warning) if part))


Quantizer = Callable[[Sequence[LayerView], Choice, LayerStats | None], list[Quantized]]
"""Quantizes views that share an input and a choice: `quantize_views`, or the quantizer of a GGUF block format."""


def needs(choice: Choice) -> frozenset[str]:
    """Return the names of the input statistics that quantizing a weight by this choice uses."""
    if choice.scheme is None or choice.scheme.is_float:
        return frozenset()
    name = parts(choice.algorithm)["quantize"]
    options = part_options(choice.algorithm, choice.options)[name]
    statistics: frozenset[str] = load(name).needs(choice.scheme, options)
    return statistics


def quantize_view(view: LayerView, choice: Choice, stats: LayerStats | None) -> Quantized:
    """Quantize one view by an integer choice.

    If the algorithm lacks statistics, `rtn` replaces it, with a warning. If the algorithm uses statistics that `rtn`
    does not use, and still gives the same codes and scales as `rtn`, a warning says so. Raises `CheckpointError` with
    the weight's name if the weight holds NaN or inf, `SchemeError` if a scale overflows its type.
    """
    return quantize_views([view], choice, stats)[0]


def quantize_views(views: Sequence[LayerView], choice: Choice, stats: LayerStats | None) -> list[Quantized]:
    """Quantize views `[out, in]` that share an input and a choice; return what `quantize_view` gives for each view.

    The weights are stacked into one tall weight, so that the algorithm processes the statistics (such as the Hessian)
    once. Stacking does not change the codes: each row is quantized independently, except with one scale per tensor,
    where the views are quantized one by one.
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
        quantized, warning = _quantize(
            values[0] if len(values) == 1 else np.concatenate(values), choice, stats, names
        )
    except SchemeError as cause:  # the algorithm does not know the weight's name
        raise SchemeError(f"{names} as {scheme}: {cause}") from cause
    ends = np.cumsum([len(value) for value in values]).tolist()
    results: list[Quantized] = []
    for view, value, end in zip(views, values, ends, strict=True):
        part = quantized.rows(end - len(value), end)
        view_warning = warning if not results else ""
        if not warning and _equals_rtn(value, choice, stats, part):
            name = parts(choice.algorithm)["quantize"]
            view_warning = f"{name} gave {view.name} the same codes and scales as {FALLBACK}"
            logger.warning("%s", view_warning)
        results.append(Quantized(part, measure(view.name, value, part, str(scheme)), view_warning))
    return results


def _quantize(
    values: NDArray[np.float32], choice: Choice, stats: LayerStats | None, names: str
) -> tuple[QuantizedTensor, str]:
    """Quantize one weight `[out, in]`; return the result and a warning ("" for none)."""
    name = parts(choice.algorithm)["quantize"]
    assert choice.scheme is not None
    rows = max(1, PIECE_NUMBERS // values.shape[1])
    if name == FALLBACK and choice.scheme.granularity != "tensor" and len(values) > rows:
        pieces = [values[start : start + rows] for start in range(0, len(values), rows)]
        return _joined([_quantize(piece, choice, stats, names)[0] for piece in pieces]), ""
    algorithm, options = load(name), part_options(choice.algorithm, choice.options)[name]
    try:
        quantized: QuantizedTensor = algorithm.quantize(values, stats, choice.scheme, options)
        return quantized, ""
    except StatisticsError as cause:
        warning = f"{names} was rounded by {FALLBACK} instead: {cause}"
        logger.warning("%s", warning)
    return load(FALLBACK).quantize(values, stats, choice.scheme, make_options(FALLBACK, {})), warning


def _joined(pieces: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """Return one weight with the rows of all `pieces`."""
    first = pieces[0]
    zero_point = None
    if first.zero_point is not None:
        zero_point = np.concatenate([piece.zero_point for piece in pieces if piece.zero_point is not None])
    codes = np.concatenate([piece.codes for piece in pieces])
    return QuantizedTensor(first.scheme, codes, np.concatenate([piece.scale for piece in pieces]), zero_point)


def _equals_rtn(
    values: NDArray[np.float32], choice: Choice, stats: LayerStats | None, quantized: QuantizedTensor
) -> bool:
    """Return whether `rtn` gives the same codes and scales; False if the algorithm needs only `rtn`'s statistics."""
    if needs(choice) <= load(FALLBACK).NEEDS:
        return False
    for start, stop in ((0, 1), (0, len(values))):  # cheap checks first: the grid search below is slow
        part = quantized.rows(start, stop)
        nearest = quantize(values[start:stop], part.scheme, scale=part.scale, zero_point=part.zero_point)
        if not np.array_equal(nearest.codes, part.codes):
            return False
    plain = load(FALLBACK).quantize(values, stats, quantized.scheme, make_options(FALLBACK, {}))
    return bool(np.array_equal(plain.codes, quantized.codes) and np.array_equal(plain.scale, quantized.scale))


def measure(name: str, values: NDArray[np.float32], quantized: Coded, scheme: str) -> LayerError:
    """Return the rounding error of one weight; `scheme` is the scheme's string."""
    error_sum = exact_sum = 0.0
    for start in range(0, len(values), ROWS):  # in float64, without a float64 copy of the weight
        exact = values[start : start + ROWS]
        error = quantized.rows(start, start + ROWS).dequantize()
        error -= exact
        error_sum += _square_sum(error)
        exact_sum += _square_sum(exact)
    relative = math.sqrt(error_sum / exact_sum) if exact_sum else math.sqrt(error_sum)
    sqnr = -20 * math.log10(relative) if relative > 0 else 999.0
    return LayerError(name, scheme, float(f"{relative:.6g}"), float(f"{sqnr:.6g}"))


def _square_sum(values: NDArray[np.float32]) -> float:
    """Return the sum of squares, accumulated in float64."""
    norm = torch.linalg.vector_norm(torch.from_numpy(values), dtype=torch.float64)
    return float(norm) ** 2
