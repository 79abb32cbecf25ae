"""Quantize a checkpoint one weight at a time: the stream that artifacts and runtimes consume."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from zeropoint.algorithms import load, make_options
from zeropoint.checkpoint import Checkpoint
from zeropoint.errors import CheckpointError, SchemeError
from zeropoint.plan import Choice, Plan
from zeropoint.planning.coverage import check_complete
from zeropoint.qtensor import QuantizedTensor, Weight
from zeropoint.quantization.moments import input_moments
from zeropoint.reference.rounding import check_finite
from zeropoint.scheme import Scheme
from zeropoint.stats import LayerStats
from zeropoint.views import LayerView

logger = logging.getLogger(__name__)

NUMPY_FLOATS: dict[str, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16, "fp32": np.float32}


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
class Progress:
    """Told after each weight: how many numbers of the model are done, of `total`.

    `error` is None for a kept weight.
    """

    name: str
    done: int
    total: int
    error: LayerError | None


def stream(
    checkpoint: Checkpoint, plan: Plan, *, progress: Callable[[Progress], None] | None = None
) -> Iterator[tuple[str, Weight]]:
    """Each weight of the plan once, in plan order: `(view or parameter name, Weight)`.

    Tied names are not repeated. One weight is held at a time (while an algorithm's statistics are gathered, before
    the first weight, one block). Raises `CheckpointError` naming the weight that
    holds NaN or inf, `UsageError` when the plan is not this model's, `SchemeError` when a scale overflows.
    """
    check_complete(checkpoint, plan)
    views = {view.name: view for view in checkpoint.views()[0]}
    sizes = {info.name: info.numel for info in checkpoint.parameters()}
    sizes.update({name: view.shape[0] * view.shape[1] for name, view in views.items()})
    total, done = sum(sizes[name] for name in plan.choices), 0
    stats = _stats(checkpoint, plan)
    for name, choice in plan.choices.items():
        error: LayerError | None = None
        weight: Weight
        if choice.scheme is None or choice.scheme.is_float:
            weight = _kept(checkpoint, name, choice.scheme)
        else:
            weight, error = _quantize(views[name], choice, choice.scheme, stats.get(name))
        done += sizes[name]
        if progress is not None:
            progress(Progress(name, done, total, error))
        yield name, weight


def _stats(checkpoint: Checkpoint, plan: Plan) -> dict[str, LayerStats]:
    """What the plan's algorithms ask to know of their layers' inputs; nothing runs when none asks."""
    names = set()
    for name, choice in plan.choices.items():
        if choice.scheme is not None and not choice.scheme.is_float:
            options = make_options(choice.algorithm, choice.options)
            if load(choice.algorithm).needs(choice.scheme, options):
                names.add(name)
    return input_moments(checkpoint, names, seed=plan.seed) if names else {}


def _quantize(
    view: LayerView, choice: Choice, scheme: Scheme, stats: LayerStats | None
) -> tuple[QuantizedTensor, LayerError]:
    algorithm = load(choice.algorithm)
    values = view.read().numpy()
    check_finite(values, view.name)
    options = make_options(choice.algorithm, choice.options)
    try:
        quantized: QuantizedTensor = algorithm.quantize(values, stats, scheme, options)
    except SchemeError as cause:  # an algorithm does not know whose weight it was given
        raise SchemeError(f"{view.name} as {scheme}: {cause}") from cause
    return quantized, measure(view.name, values, quantized)


def measure(name: str, values: NDArray[np.float32], quantized: QuantizedTensor) -> LayerError:
    """The error that rounding left in one weight."""
    lost = size = 0.0
    for start in range(0, len(values), ROWS):  # in float64, without a float64 copy of the weight
        exact = values[start : start + ROWS].astype(np.float64)
        rounded = quantized.rows(start, start + ROWS).dequantize()
        lost += float(np.square(rounded - exact).sum())
        size += float(np.square(exact).sum())
    relative = math.sqrt(lost / size) if size else math.sqrt(lost)
    sqnr = -20 * math.log10(relative) if relative > 0 else 999.0
    return LayerError(name, str(quantized.scheme), float(f"{relative:.6g}"), float(f"{sqnr:.6g}"))


#: Rows of a weight whose error is summed at once.
ROWS = 1024


def _kept(checkpoint: Checkpoint, name: str, scheme: Scheme | None) -> NDArray[Any]:
    """A parameter in its own dtype, or cast to the plan's float format."""
    tensor = checkpoint.read(name).contiguous()
    if tensor.dtype == torch.bfloat16:
        array: NDArray[Any] = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    else:
        array = tensor.numpy()
    if not tensor.is_floating_point():
        return array
    check_finite(array.astype(np.float32, copy=False), name)
    if scheme is None or scheme.float_format is None:
        return array
    with np.errstate(over="ignore"):
        cast: NDArray[Any] = array.astype(np.float32).astype(NUMPY_FLOATS[scheme.float_format])
    if not np.isfinite(cast.astype(np.float32)).all():
        raise CheckpointError(
            f"{name} holds values beyond {scheme}'s range (up to {float(np.abs(array.astype(np.float32)).max()):.4g}): "
            "use bf16"
        )
    return cast
