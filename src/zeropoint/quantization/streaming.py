"""The stream of quantized weights of a checkpoint, one weight at a time, which artifacts and runtimes consume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from zeropoint._moved import old_attributes
from zeropoint.algorithms import parts
from zeropoint.checkpoint import Checkpoint
from zeropoint.dtypes import BY_FORMAT
from zeropoint.errors import CheckpointError, UsageError
from zeropoint.planning.coverage import check_complete
from zeropoint.predictions import refuse_large
from zeropoint.quantization.calibrated_blocks import CalibratedBlocks
from zeropoint.quantization.layers import LayerError, needs, quantize_view
from zeropoint.quantization.model_tuning import model_tuner, tuning_need
from zeropoint.quantization.moments import input_moments
from zeropoint.quantization.rotating import rotated
from zeropoint.quantization.run_checkpoint import FinishedWeight, RunCheckpoint
from zeropoint.reference.rounding import check_finite
from zeropoint.tensors import to_numpy
from zeropoint.values.plan import Choice, Plan
from zeropoint.values.qtensor import QuantizedTensor, Weight
from zeropoint.values.scheme import Scheme
from zeropoint.values.stats import LayerStats
from zeropoint.views import LayerView

if not TYPE_CHECKING:
    __getattr__ = old_attributes(__name__)


@dataclass(frozen=True, slots=True)
class WeightDone:
    """The state of a run after a weight: `done` of the model's `total` weight elements are quantized or kept.

    `error` is the rounding error of the weight `name`, None if it was kept; `warning` is "" for none.
    """

    name: str
    done: int
    total: int
    error: LayerError | None
    warning: str = ""


def needs_calibration(plan: Plan) -> bool:
    """Return whether the plan needs calibration text: any statistic but second moments, a fold, or tuning."""
    return any(
        needs(choice) - {"second_moment"} or parts(choice.algorithm).keys() - {"rotate", "quantize"}
        for choice in plan.choices.values()
    )


def stream(
    checkpoint: Checkpoint,
    plan: Plan,
    *,
    tokens: NDArray[np.int64] | None = None,
    progress: Callable[[WeightDone], None] | None = None,
    run_checkpoint: RunCheckpoint | None = None,
) -> Iterator[tuple[str, Weight]]:
    """Yield each weight of the plan once, in plan order: `(view or parameter name, Weight)`; no tied names.

    `tokens` int64 `[windows, length]` is the calibration text; without it, second moments come from random tokens.
    Memory: one weight; with `tokens`, one block and the hidden states of all tokens. A plan that tunes the whole model
    needs the model twice in float32.

    With `tokens` and an opened `run_checkpoint`, finished blocks are stored in the run checkpoint, and blocks that the
    run checkpoint already holds are read from there.

    Raises `CheckpointError` with the name of a weight that holds NaN or inf, `SchemeError` if a scale overflows its
    type, `UnsupportedError` if the model cannot be rotated or run block by block as the plan needs it, and `UsageError`
    if the plan is another model's, needs `tokens` and has none, or needs too much memory.
    """
    check_complete(checkpoint, plan)
    checkpoint = rotated(checkpoint, plan)
    if tokens is None and needs_calibration(plan):
        raise UsageError("this plan's algorithms observe the model on text: give calibration tokens")
    tuner = model_tuner(plan)
    if tuner is None or tokens is None:
        yield from _weights(checkpoint, plan, tokens, progress, run_checkpoint)
        return
    what = f"{tuner.name} holds the model twice in float32, which"
    advice = f"leave {tuner.name} out, or use a machine with more memory"
    refuse_large(what, tuning_need(checkpoint, tokens.shape[1]), advice)
    weights = dict(_weights(checkpoint, plan, tokens, progress, run_checkpoint))
    weights, warning = tuner.tune(checkpoint, weights, torch.from_numpy(tokens), plan.seed)
    if warning and progress is not None:
        total = sum(
            weight.codes.size if isinstance(weight, QuantizedTensor) else weight.size
            for weight in weights.values()
        )
        progress(WeightDone(tuner.name, total, total, None, warning))
    yield from weights.items()


def _weights(
    checkpoint: Checkpoint,
    plan: Plan,
    tokens: NDArray[np.int64] | None,
    progress: Callable[[WeightDone], None] | None,
    run_checkpoint: RunCheckpoint | None,
) -> Iterator[tuple[str, Weight]]:
    """Yield each weight of the plan, as `stream` does, before the whole model is tuned."""
    sizes = {info.name: info.numel for info in checkpoint.parameters()}
    sizes.update({view.name: view.shape[0] * view.shape[1] for view in checkpoint.views()[0]})
    total, done = sum(sizes[name] for name in plan.choices), 0
    blocks = None if tokens is None else CalibratedBlocks(checkpoint, plan, torch.from_numpy(tokens))
    finish = _weight_source(checkpoint, plan, blocks)
    safe_names: set[str] = set()
    if blocks is None:
        run_checkpoint = None  # without text, weights are only read and rounded, which is not worth storing
    elif run_checkpoint is not None:
        blocks.restore(run_checkpoint.states())
        safe_names = blocks.safe_names()
    for name in plan.choices:
        restored = None if run_checkpoint is None else run_checkpoint.get(name)
        finished = finish(name) if restored is None else restored
        if blocks is not None and isinstance(finished.weight, QuantizedTensor):
            blocks.use_embedding(name, finished.weight)
        if run_checkpoint is not None and restored is None:
            run_checkpoint.add(name, finished)
        done += sizes[name]
        if progress is not None:
            progress(WeightDone(name, done, total, finished.error, finished.warning))
        weight = finished.weight
        del restored, finished  # frees this weight as soon as the consumer has dropped it
        yield name, weight
        if run_checkpoint is not None and blocks is not None and name in safe_names:
            run_checkpoint.finish_blocks(blocks.states())


def _weight_source(
    checkpoint: Checkpoint, plan: Plan, blocks: CalibratedBlocks | None
) -> Callable[[str], FinishedWeight]:
    """Return a function that quantizes or reads one weight; it must be called in plan order."""
    views = {view.name: view for view in checkpoint.views()[0]}
    dtypes = {info.name: info.dtype for info in checkpoint.parameters()}
    stats = _moments(checkpoint, plan) if blocks is None else {}

    def finish(name: str) -> FinishedWeight:
        """Return the weight `name`, as the plan says."""
        choice = plan.choices[name]
        if choice.scheme is None or choice.scheme.is_float:
            folded = None if blocks is None else blocks.folded(name)
            return FinishedWeight(_kept(checkpoint, name, dtypes[name], choice.scheme, folded))
        if blocks is not None and blocks.covers(name):
            quantized = blocks.take(name)
        else:
            quantized = quantize_view(views[name], choice, stats.get(name))
            if blocks is None and name not in stats and _wants_moments(views[name], choice):
                quantized = quantized.with_warning(
                    f"{name} was rounded with equal importance for all its inputs: their sizes could not be measured"
                )
        return FinishedWeight(quantized.tensor(), quantized.error, quantized.warning)

    return finish


def _moments(checkpoint: Checkpoint, plan: Plan) -> dict[str, LayerStats]:
    """Return the second moments of the layers whose choices use second moments. Run the model only if there are any."""
    views = {view.name: view for view in checkpoint.views()[0]}
    names = {n for n, choice in plan.choices.items() if n in views and _wants_moments(views[n], choice)}
    return input_moments(checkpoint, names, seed=plan.seed) if names else {}


def _wants_moments(view: LayerView, choice: Choice) -> bool:
    """Return whether a weight is that of a linear layer whose choice uses second moments."""
    return view.kind in ("linear", "conv1d") and "second_moment" in needs(choice)


def _kept(
    checkpoint: Checkpoint, name: str, dtype: torch.dtype, scheme: Scheme | None, folded: torch.Tensor | None
) -> NDArray[Any]:
    """Return a kept parameter (or its `folded` value) as a numpy array of its `dtype`, or cast to a float `scheme`.

    Raises `CheckpointError` if the parameter holds NaN or inf, or overflows the float format.
    """
    tensor = (checkpoint.read(name) if folded is None else folded).to(dtype).contiguous()
    array = to_numpy(tensor)
    if not tensor.is_floating_point():
        return array
    check_finite(array.astype(np.float32, copy=False), name)
    if scheme is None or scheme.float_format is None:
        return array
    with np.errstate(over="ignore"):
        cast: NDArray[Any] = array.astype(np.float32).astype(BY_FORMAT[scheme.float_format].numpy())
    if not np.isfinite(cast.astype(np.float32)).all():
        raise CheckpointError(
            f"{name} holds values beyond {scheme}'s range (up to {float(np.abs(array.astype(np.float32)).max()):.4g}): "
            "use bf16"
        )
    return cast
