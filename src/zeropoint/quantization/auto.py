"""Choose an algorithm by the time there is: `--algorithm auto --time-budget SECONDS`.

What lost less when measured also takes longer (`LADDER`). How long on this machine and for this model is estimated from
the work itself: rounding a sample of the weights, and quantizing the second of the blocks on two lengths of random
text, which tells the part that grows with the text from the part that does not. Blocks are taken to be alike. The best
that fits is taken; where nothing fits, the fastest, and the reason says so. It is an estimate, not a promise: it knows
nothing of slow disks, nor of what else the machine will be doing.
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
from zeropoint.quantization.blocks import BATCH_TOKENS
from zeropoint.quantization.calibrated import CalibratedBlocks
from zeropoint.values.plan import Plan
from zeropoint.values.scheme import Scheme, parse

logger = logging.getLogger(__name__)

#: Compositions and their calibration tokens by rising quality and time, as measured (docs/algorithms.md).
LADDER: tuple[tuple[str, int], ...] = (
    ("rtn", 0),
    ("gptq", 8192),
    ("gptq", 16384),
    ("gptq", DEFAULT_TOKENS),
    ("good", DEFAULT_TOKENS),
    ("best", DEFAULT_TOKENS),
)

#: Weights that are rounded to see how long that takes.
SAMPLE = 1 << 20

#: Tokens of random text that a block is timed on.
SHORT, LONG = BATCH_TOKENS, 3 * BATCH_TOKENS

#: What a user calls it.
NAME = "auto"

#: The seconds without a budget.
DEFAULT_BUDGET = 300.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds that an algorithm takes for a block on this machine: `fixed` whatever the text, and for each `token` of
    it."""

    fixed: float
    token: float

    def seconds(self, tokens: int) -> float:
        return self.fixed + self.token * tokens


@dataclass(frozen=True, slots=True)
class Picked:
    """What `auto` stands for here: `tokens` of calibration text (0: none), estimated `seconds`, and why."""

    algorithm: str
    options: Mapping[str, Any]
    tokens: int
    seconds: float
    reason: str


def pick(
    checkpoint: Checkpoint, format: str, budget: float = DEFAULT_BUDGET, *, tokens: int | None = None
) -> Picked:
    """The best rung of `LADDER` that is estimated to quantize the model to `format` within `budget` seconds.

    `tokens` is how much text every rung that needs text reads; None: what the ladder says. A few blocks are quantized
    on random text to see how long that takes, unless rounding to nearest alone does not fit. Raises `UsageError` for a
    budget that is not positive, and the errors of `uniform_plan`.
    """
    if not budget > 0:
        raise UsageError(f"a time budget is a positive number of seconds, not {budget:g}")
    rounding = rounding_seconds(checkpoint, uniform_plan(checkpoint, format))
    if rounding > budget:
        return _rtn(rounding, f"the fastest, and still about {rounding:.0f} s of {budget:.0f}")
    scheme = parse(format)
    rungs = [(name, tokens if tokens and wanted else wanted) for name, wanted in LADDER]
    # two names may stand for one thing
    ladder = list({_said(*rung, scheme): rung for rung in rungs}.values())
    try:
        seconds = _estimates(checkpoint, format, ladder, rounding, budget)
    except UnsupportedError as cause:
        return _rtn(rounding, f"nothing else can be done here: {cause}")
    rung = [tried for tried in seconds if seconds[tried] <= budget][-1]
    reason = f"about {seconds[rung]:.0f} s of {budget:.0f}"
    last = list(seconds)[-1]
    if seconds[last] > budget:
        reason += f"; {_said(*last, scheme)} would take about {seconds[last]:.0f} s"
    said = _said(*rung, scheme)
    logger.info("auto: %s: %s", said, reason)
    algorithm, options = algorithms.resolve(rung[0], {}, scheme)
    return Picked(algorithm, options, rung[1], seconds[rung], f"{said}: {reason}")


def _estimates(
    checkpoint: Checkpoint,
    format: str,
    ladder: Sequence[tuple[str, int]],
    rounding: float,
    budget: float,
) -> dict[tuple[str, int], float]:
    """Seconds of each rung from the first on, up to one that takes longer than the budget: what takes longer still is
    not worth the time to find out."""
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
    """Raise `UsageError` where an interrupted run is to go on: timed again, another rung may be picked."""
    if resume:
        raise UsageError("auto may pick something else this time: to resume, name the algorithm it picked")


def _rtn(seconds: float, why: str) -> Picked:
    logger.info("auto: rtn: %s", why)
    return Picked("rtn", {}, 0, seconds, f"rtn: {why}")


def _said(name: str, tokens: int, scheme: Scheme) -> str:
    algorithm, options = algorithms.resolve(name, {}, scheme)
    said = [f"{key}={value}" for key, value in options.items()] + [f"{tokens:,} tokens"] * bool(tokens)
    return f"{algorithm} ({', '.join(said)})" if said else algorithm


def measure_pace(checkpoint: Checkpoint, format: str, algorithm: str) -> Pace:
    """How long a block takes, from two lengths of text.

    Raises `UnsupportedError` when the model cannot be run block by block, or nothing in its blocks is quantized.
    """
    plan = uniform_plan(checkpoint, format, algorithm=algorithm)
    short, long = (block_seconds(checkpoint, plan, tokens) for tokens in (SHORT, LONG))
    token = max(long - short, 0.0) / (LONG - SHORT)
    return Pace(max(short - SHORT * token, 0.0), token)


def block_seconds(checkpoint: Checkpoint, plan: Plan, tokens: int) -> float:
    """Seconds that one block takes on so many tokens of random text: the second one, where there are two."""
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
    """What quantizing says of random text is no news of the model."""
    loud = logging.getLogger("zeropoint")
    level = loud.level
    loud.setLevel(logging.ERROR)
    try:
        yield
    finally:
        loud.setLevel(level)


def rounding_seconds(checkpoint: Checkpoint, plan: Plan) -> float:
    """Seconds that rounding all weights of a plan to nearest takes, from a sample in each of its formats."""
    shapes = {view.name: view.shape for view in checkpoint.views()[0]}
    found: dict[Scheme, list[tuple[int, int]]] = {}
    for name, choice in plan.choices.items():
        if choice.scheme is not None and not choice.scheme.is_float:
            found.setdefault(choice.scheme, []).append(shapes[name])
    seconds = 0.0
    for scheme, alike in found.items():
        columns = alike[0][1]
        generator = np.random.default_rng(plan.seed)
        weight = generator.standard_normal((max(1, SAMPLE // columns), columns), np.float32)
        started = time.perf_counter()
        rtn.quantize(weight, None, scheme, rtn.Options())
        passed = time.perf_counter() - started
        seconds += passed / weight.size * sum(rows * columns for rows, columns in alike)
    return seconds
