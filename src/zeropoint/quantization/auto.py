"""Choice of an algorithm by time budget: `--algorithm auto --time-budget SECONDS`.

`LADDER` lists algorithms by rising quality and rising time. Their times on this machine are estimated from timings:
rounding random numbers, and quantizing the model's second block on two lengths of random text (which separates the time
per token from the fixed time). All blocks are assumed to take the same time. The best algorithm within the
budget is chosen, or the fastest if none is, and the reason says so. The estimate does not know about slow disks or
other programs on the machine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from zeropoint import algorithms
from zeropoint.algorithms import rtn
from zeropoint.calibrate.text import DEFAULT_LENGTH, DEFAULT_TOKENS
from zeropoint.checkpoint import Checkpoint
from zeropoint.errors import UnsupportedError, UsageError
from zeropoint.planning import uniform_plan
from zeropoint.quantization.block_runner import BATCH_TOKENS
from zeropoint.quantization.calibrated_blocks import CalibratedBlocks
from zeropoint.values.plan import Plan
from zeropoint.values.scheme import Scheme, parse

logger = logging.getLogger(__name__)

#: (algorithm or shorthand, calibration tokens) by rising quality and time, as measured (docs/algorithms.md).
LADDER: tuple[tuple[str, int], ...] = (
    ("rtn", 0),
    ("gptq", 8192),
    ("gptq", 16384),
    ("gptq", DEFAULT_TOKENS),
    ("good", DEFAULT_TOKENS),
    ("best", DEFAULT_TOKENS),
)

#: Number of random numbers that are rounded to measure the speed of rounding.
SAMPLE = 1 << 20

#: Tokens of random text on which a block is timed.
SHORT, LONG = BATCH_TOKENS, 3 * BATCH_TOKENS

#: The value of `--algorithm`.
NAME = "auto"

#: The default time budget in seconds.
DEFAULT_BUDGET = 300.0


@dataclass(frozen=True, slots=True)
class Pace:
    """The time that an algorithm takes for a block on this machine: `fixed` seconds, and `token` seconds per token."""

    fixed: float
    token: float

    def seconds(self, tokens: int) -> float:
        """Return the seconds for a text of `tokens` tokens."""
        return self.fixed + self.token * tokens


@dataclass(frozen=True, slots=True)
class Picked:
    """The algorithm that `auto` chose: calibration `tokens` (0: no text), estimated `seconds`, and the reason."""

    algorithm: str
    options: Mapping[str, Any]
    tokens: int
    seconds: float
    reason: str


def pick(
    checkpoint: Checkpoint, format: str, budget: float = DEFAULT_BUDGET, *, tokens: int | None = None
) -> Picked:
    """Return the best algorithm of `LADDER` whose estimated time for quantizing to `format` is within `budget` seconds.

    `tokens` replaces the ladder's number of calibration tokens. For each algorithm, the first two blocks are quantized
    twice on random text, unless rounding to nearest alone exceeds the budget. Raises `UsageError` if `budget` is not
    positive, and the errors of `uniform_plan`.
    """
    if not budget > 0:
        raise UsageError(f"a time budget is a positive number of seconds, not {budget:g}")
    rounding = rounding_seconds(checkpoint, uniform_plan(checkpoint, format))
    if rounding > budget:
        return _rtn(rounding, f"the fastest, and still about {rounding:.0f} s of {budget:.0f}")
    scheme = parse(format)
    rungs = [(name, tokens if tokens and default else default) for name, default in LADDER]
    # A shorthand may stand for the same algorithm as another rung.
    ladder = list({_description(*rung, scheme): rung for rung in rungs}.values())
    try:
        seconds = _estimates(checkpoint, format, ladder, rounding, budget)
    except UnsupportedError as cause:
        return _rtn(rounding, f"no other algorithm can run on this model: {cause}")
    best = [rung for rung in seconds if seconds[rung] <= budget][-1]
    reason = f"about {seconds[best]:.0f} s of {budget:.0f}"
    last = list(seconds)[-1]
    if seconds[last] > budget:
        reason += f"; {_description(*last, scheme)} would take about {seconds[last]:.0f} s"
    description = _description(*best, scheme)
    logger.info("auto: %s: %s", description, reason)
    algorithm, options = algorithms.resolve(best[0], {}, scheme)
    return Picked(algorithm, options, best[1], seconds[best], f"{description}: {reason}")


def _estimates(
    checkpoint: Checkpoint,
    format: str,
    ladder: Sequence[tuple[str, int]],
    rounding: float,
    budget: float,
) -> dict[tuple[str, int], float]:
    """Return the estimated seconds of each rung, up to and including the first that exceeds the budget.

    Later rungs take even longer, so they are not timed.
    """
    blocks, seconds = len(checkpoint.blocks()), dict[tuple[str, int], float]()
    paces: dict[str, Pace] = {}
    for name, tokens in ladder:
        if tokens and name not in paces:
            paces[name] = measure_pace(checkpoint, format, name)
        seconds[name, tokens] = rounding + (blocks * paces[name].seconds(tokens) if tokens else 0.0)
        if seconds[name, tokens] > budget:
            break
    return seconds


def refuse_resume(resume: bool) -> None:
    """Raise `UsageError` if `resume`: a new timing may pick another algorithm than the interrupted run had."""
    if resume:
        raise UsageError(
            "auto may pick another algorithm this time: to resume, name the algorithm that it picked"
        )


def _rtn(seconds: float, why: str) -> Picked:
    """Return and log the choice of `rtn`."""
    logger.info("auto: rtn: %s", why)
    return Picked("rtn", {}, 0, seconds, f"rtn: {why}")


def _description(name: str, tokens: int, scheme: Scheme) -> str:
    """Return an algorithm with its options and calibration tokens in words."""
    algorithm, options = algorithms.resolve(name, {}, scheme)
    details = [f"{key}={value}" for key, value in options.items()] + [f"{tokens:,} tokens"] * bool(tokens)
    return f"{algorithm} ({', '.join(details)})" if details else algorithm


def measure_pace(checkpoint: Checkpoint, format: str, algorithm: str) -> Pace:
    """Return the pace of an algorithm, from timings of one block on two lengths of text.

    Raises `UnsupportedError` if the model cannot be run block by block, or no weight of its blocks is quantized.
    """
    plan = uniform_plan(checkpoint, format, algorithm=algorithm)
    short, long = (block_seconds(checkpoint, plan, tokens) for tokens in (SHORT, LONG))
    token = max(long - short, 0.0) / (LONG - SHORT)
    return Pace(max(short - SHORT * token, 0.0), token)


def block_seconds(checkpoint: Checkpoint, plan: Plan, tokens: int) -> float:
    """Return the seconds to quantize one block on `tokens` random tokens: the second block, or the only one.

    The first block is quantized before, untimed, because it gives the second block's inputs.

    Raises `UnsupportedError` if no weight of the blocks is quantized.
    """
    config = checkpoint.config.get_text_config()
    length = min(DEFAULT_LENGTH, getattr(config, "max_position_embeddings", None) or DEFAULT_LENGTH)
    generator = torch.Generator().manual_seed(plan.seed)
    ids = torch.randint(0, config.vocab_size, (max(1, tokens // length), length), generator=generator)
    blocks = CalibratedBlocks(checkpoint, plan, ids)
    covered = [view for view in checkpoint.views()[0] if blocks.covers(view.name)]
    owned = ([v.name for v in covered if v.module.startswith(f"{path}.")] for path in checkpoint.blocks())
    firsts = [names[0] for names in owned if names][:2]
    if not firsts:
        raise UnsupportedError("no weight of the blocks is quantized")
    with _silent():
        for name in firsts[:-1]:
            blocks.take(name)
        started = time.perf_counter()
        blocks.take(firsts[-1])
        return time.perf_counter() - started


@contextmanager
def _silent() -> Iterator[None]:
    """Hide Zeropoint's warnings inside the context: on random text they say nothing about the model."""
    package_logger = logging.getLogger("zeropoint")
    level = package_logger.level
    package_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        package_logger.setLevel(level)


def rounding_seconds(checkpoint: Checkpoint, plan: Plan) -> float:
    """Return the estimated seconds to round all weights of a plan to nearest.

    The speed is measured by rounding random numbers in each of the plan's formats.
    """
    shapes = {view.name: view.shape for view in checkpoint.views()[0]}
    shapes_by_scheme: dict[Scheme, list[tuple[int, int]]] = {}
    for name, choice in plan.choices.items():
        if choice.scheme is not None and not choice.scheme.is_float:
            shapes_by_scheme.setdefault(choice.scheme, []).append(shapes[name])
    seconds = 0.0
    for scheme, scheme_shapes in shapes_by_scheme.items():
        columns = scheme_shapes[0][1]
        generator = np.random.default_rng(plan.seed)
        weight = generator.standard_normal((max(1, SAMPLE // columns), columns), np.float32)
        started = time.perf_counter()
        rtn.quantize(weight, None, scheme, rtn.Options())
        elapsed = time.perf_counter() - started
        seconds += elapsed / weight.size * sum(rows * columns for rows, columns in scheme_shapes)
    return seconds
