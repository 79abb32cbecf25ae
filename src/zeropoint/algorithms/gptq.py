"""GPTQ: round the columns of a weight one after the other, each making up for the errors of those before it.

Idea (Frantar et al. 2022, arXiv:2210.17323): what counts is the error of the layer's output, `tr(E H E')` with
`E = W - W'` and `H = sum x x'` over the calibration tokens, so an error in one column can be made up for in
another that goes with it. With `H = U' U`, U upper triangular, the output error is `|E U'|^2`, and its column j is
`E_j U_jj + sum_{i>j} E_i U_ji`: from the last column to the first, rounding `W_j + sum_{i>j} E_i U_ji / U_jj` makes it
as small as it gets. That is the paper's procedure without the inverse of H (Chee et al. 2023, arXiv:2307.13304,
theorem 6).

Columns lie by rising `H_jj`, so that the ones that matter most are rounded first. Scales and zero points are `rtn`'s,
found before the first column is rounded, so that the order touches no group, and any scale type will do.

`propagate`: a layer behind quantized ones does not see the float model's input y but another, x. The weights nearest
to giving the float output from it are `W + W D H^-1` with `D = sum (y - x) x'`; a part of that step is taken before
rounding (Arai and Ichikawa 2025, "QEP", arXiv:2504.09629; Li et al. 2025, "GPTAQ", arXiv:2504.02692).

`sweeps`: afterwards each column is rounded again, now that those after it are known too, and so on, as long as they
are asked for: coordinate descent on the same error, which can only fall (Nair and Suggala 2024, "CDQuant",
arXiv:2406.17542). Two take another 6 % off it, and 1 % off the reference model's KL divergence, for three times the
time of the rounding: three seconds of SmolLM2-135M's on one core.

Cost: `in^2 out` multiplications a layer, as much as `in / 2` tokens' worth of running it, and the Hessian: as much
again as running the calibration text. Layers given as one tall weight share all that depends on the input alone. A
block of SmolLM2-135M takes 0.9 s on two cores with AMX, with 8,192 tokens of text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from zeropoint.algorithms import rtn
from zeropoint.errors import StatisticsError
from zeropoint.kernels.columns import descend, round_columns
from zeropoint.reference.rounding import check_finite
from zeropoint.values.qtensor import Codes, Floats, QuantizedTensor
from zeropoint.values.scheme import Scheme
from zeropoint.values.stats import LayerStats

NEEDS: frozenset[str] = frozenset({"second_moment", "hessian", "drift"})

#: The largest damping tried; at 1 the Hessian is mostly the identity, and `rtn` does as well.
MOST_DAMPING = 1.0


class Grid(NamedTuple):
    """What columns are rounded on: the levels of `scale` and `zero_point`, after `offset` `[out, in]` is taken off."""

    scheme: Scheme
    scale: Floats
    zero_point: Codes | None
    offset: Floats | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """`damping`: this part of the mean of H's diagonal is added to it, more where H is not positive definite.
    `order`: the loudest columns first. `propagate`: the part taken of the step that makes up for quantized inputs.
    `sweeps`: how often all columns are rounded again."""

    damping: float = 0.01
    order: bool = True
    propagate: float = 0.5
    sweeps: int = 0


def needs(scheme: Scheme, options: Options) -> frozenset[str]:
    """The statistics that `quantize` uses for such a weight."""
    return NEEDS if options.propagate else NEEDS - {"drift"}


def quantize(weight: Any, stats: LayerStats | None, scheme: Scheme, options: Options) -> QuantizedTensor:
    """Quantize a finite float `[out, in]` array or CPU tensor against the Hessian of its input.

    Raises `StatisticsError` when there is no Hessian or none that can be factored, `SchemeError` when a scale
    overflows its type, `CheckpointError` on NaN or inf.
    """

    def find(wanted: Floats) -> Grid:
        return Grid(scheme, *rtn.find_grid(wanted, stats, scheme, rtn.Options()))

    return quantize_on(find, weight, stats, options)


def quantize_on(
    find: Callable[[Floats], Grid], weight: Any, stats: LayerStats | None, options: Options
) -> QuantizedTensor:
    """`quantize` on the grid that `find` gives for a weight; what results stands for that weight less the offset.

    `find` is given the weight that is to be rounded, which makes up for quantized inputs already.
    """
    weight = np.asarray(weight, dtype=np.float32)
    check_finite(weight, "the tensor")
    if stats is None or stats.hessian is None or not stats.count:
        raise StatisticsError(
            "gptq needs the Hessian of the layer's input, and no calibration token reached it"
        )
    hessian = stats.hessian
    # Rounding goes from the last column to the first.
    order = (
        np.argsort(-hessian.diagonal(), kind="stable")[::-1]
        if options.order
        else np.arange(len(hessian))[::-1]
    ).copy()
    factor, damping = _factor(hessian, order, options.damping)
    if options.propagate and stats.drift is not None:
        weight = weight + _step(weight, stats.drift, factor, order, options.propagate)
    scheme, scale, zero_point, offset = find(weight)
    if offset is not None:
        weight = weight - offset
    ratio = factor / factor.diagonal()[:, None]  # U_ji / U_jj
    codes = round_columns(weight, scheme, scale, zero_point, ratio.numpy(), order)
    if options.sweeps:
        damped = hessian + damping * np.eye(len(hessian), dtype=np.float32)
        codes = descend(weight, scheme, scale, zero_point, damped, codes, options.sweeps)
    return QuantizedTensor(scheme, codes, scale, zero_point)


def _factor(hessian: Floats, order: NDArray[np.intp], damping: float) -> tuple[torch.Tensor, float]:
    """U, upper triangular and float32, with `H + d = U' U` in the given order, and d: of 1, 10, 100 ... `damping` times
    the mean of H's diagonal the least that makes H positive definite. Factored in float64."""
    diagonal = hessian.diagonal().astype(np.float64)[order]
    mean = float(diagonal.mean())
    if not np.isfinite(hessian).all() or mean <= 0:
        raise StatisticsError("the layer's input is all zeros, or not finite, on the calibration text")
    columns = torch.from_numpy(order)
    damped = torch.from_numpy(hessian).index_select(0, columns).index_select(1, columns).double()
    while damping <= MOST_DAMPING:
        damped.diagonal().copy_(torch.from_numpy(diagonal + damping * mean))
        factor, failed = torch.linalg.cholesky_ex(damped, upper=True)
        if not failed:
            return factor.float(), damping * mean
        damping = max(10 * damping, 1e-6)
    raise StatisticsError("the Hessian of the layer's input is not positive definite, however damped")


def _step(
    weight: Floats, drift: Floats, factor: torch.Tensor, order: NDArray[np.intp], part: float
) -> Floats:
    """`part` of `W D H^-1`, what to add to W so that its output from quantized inputs is nearest the float one."""
    wanted, towards, columns = torch.from_numpy(weight), torch.from_numpy(drift), torch.from_numpy(order)
    tall = len(weight) > len(drift)  # then D H^-1 takes fewer multiplications than (W D) H^-1
    right = (towards if tall else wanted @ towards).T.contiguous()
    solved = torch.empty_like(right)
    solved[columns] = torch.cholesky_solve(right[columns], factor, upper=True)
    step: Floats = (wanted @ solved.T if tall else solved.T.contiguous()).numpy()
    return np.multiply(step, np.float32(part), out=step)
