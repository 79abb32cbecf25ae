"""Contexts that set the precision of float32 matrix products while blocks run.

A CPU with bfloat16 instructions is not always faster with them, so float32 and bfloat16 are timed, once per process. A
CPU without these instructions would only emulate them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial

import torch

#: A changed block counts as computing the same if what it adds to its input (output - input, in float32) changes by at
#: most this fraction.
TOLERANCE = 1e-4

#: The size of the timed layer.
TOKENS, INPUTS, OUTPUTS = 1024, 576, 1536

#: The number of timings. The shortest one counts.
REPEATS = 5

#: Bfloat16 is used if it is this many times as fast as float32. Float32 is more exact, and timings are noisy: with a
#: lower limit, the same command could give other codes from one run to the next.
GAIN = 1.3

#: Runs linear layers and attention in bfloat16 inside the context. Weights change in place from one run to the next, so
#: autocast must not cache their bfloat16 copies.
_autocast = partial(torch.autocast, "cpu", torch.bfloat16, cache_enabled=False)


@cache
def bfloat16_layers_pay() -> bool:
    """Return whether this machine runs a float32 linear layer faster by autocast to bfloat16."""
    x, weight = torch.ones(TOKENS, INPUTS), torch.ones(OUTPUTS, INPUTS)
    return _pays(lambda: torch.nn.functional.linear(x, weight), _autocast)


@cache
def reduced_products_pay() -> bool:
    """Return whether this machine sums a Hessian faster by products that round their factors to bfloat16."""
    x, total = torch.ones(TOKENS, INPUTS), torch.zeros(INPUTS, INPUTS)
    return _pays(lambda: total.addmm_(x.T, x), partial(_matmul_precision, "medium"))


def _pays(run: Callable[[], object], in_bfloat16: Callable[[], AbstractContextManager[object]]) -> bool:
    """Return whether the CPU has bfloat16 instructions and `run` is at least `GAIN` times as fast `in_bfloat16`."""

    def run_in_bfloat16() -> None:
        """Call `run` inside the context."""
        with in_bfloat16():
            run()

    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(flag, False) for flag in ("amx_bf16", "avx512_bf16", "bf16")):
        return False
    with torch.no_grad(), full_precision():
        pairs = [(_seconds(run), _seconds(run_in_bfloat16)) for _ in range(1 + REPEATS)]
    pairs = pairs[1:]  # the first pair warms up
    return min(float32 for float32, _ in pairs) >= GAIN * min(bfloat16 for _, bfloat16 in pairs)


def _seconds(run: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    """Set torch's precision of float32 matrix products inside the context."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def reduced_precision() -> Iterator[None]:
    """Let float32 matrix products inside the context round their factors to bfloat16 where that is faster.

    Sums are float32. On AMX, products are four times faster. The relative error of 1/500 per factor averages out in
    statistics over thousands of tokens.
    """
    with _matmul_precision("medium" if reduced_products_pay() else "highest"):
        yield


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute matrix products in full float32 inside the context, so that two runs of a block can be compared."""
    with _matmul_precision("highest"), torch.autocast("cpu", enabled=False):
        yield


@contextmanager
def bfloat16_layers() -> Iterator[None]:
    """Run linear layers and attention in bfloat16 inside the context, on machines where that is faster.

    Norms, activation functions and hidden states between blocks stay float32. A block of SmolLM2-135M takes 18 ms
    for 1,024 tokens on one core with AMX, and 43 ms with `reduced_precision` alone.
    """
    with _autocast(enabled=bfloat16_layers_pay()):
        yield
