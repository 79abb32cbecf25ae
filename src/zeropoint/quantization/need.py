"""What quantizing a model by a plan needs: peak memory and disk, predicted from shapes."""

from __future__ import annotations

from zeropoint.algorithms import parts
from zeropoint.checkpoint import Checkpoint
from zeropoint.predictions import Need, Observed, Sizes, quantizing
from zeropoint.quantization.layers import needs
from zeropoint.quantization.streaming import needs_calibration
from zeropoint.values.plan import Plan

#: Calibration tokens, if no number is given.
DEFAULT_TOKENS = 65536


def need_of(checkpoint: Checkpoint, plan: Plan, tokens: int | None = None) -> Need:
    """Return what quantizing `checkpoint` by `plan` needs, with `tokens` tokens of calibration text.

    None: as many tokens as usual if the plan's algorithms observe text, else none.
    """
    if tokens is None:
        tokens = DEFAULT_TOKENS if needs_calibration(plan) else 0
    statistics: set[str] = set()
    kinds: set[str] = set()
    for choice in plan.choices.values():
        if choice.scheme is not None and not choice.scheme.is_float:
            statistics |= needs(choice)
            kinds |= parts(choice.algorithm).keys()
    tunes = "quantize_block" in kinds
    observed = Observed(
        tokens,
        hessian="hessian" in statistics,
        drift="drift" in statistics,
        float_model=tunes or "drift" in statistics,
        tunes=tunes,
    )
    return quantizing(Sizes.of(checkpoint.source), observed, plan.nbytes)
