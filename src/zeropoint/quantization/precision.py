"""Contexts that set the precision of float32 matrix products while blocks run.

A CPU with bfloat16 instructions may still be no faster with them, so both number types are timed, once per process. A
CPU without them would only emulate them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

#: Largest relative change (in float32) of the difference between a block's output and input for which a changed block
#: counts as computing the same.
TOLERANCE = 1e-4

#: The timed product: tokens, inputs and outputs of a layer; and the number of timings, of which the shortest counts.
SAMPLE, REPEATS = (1024, 576, 1536), 5

#: How many times as fast as float32 bfloat16 must be to be used. Float32 is more exact, and timings are noisy: with
#: equal speeds the same command would give other codes from one run to the next.
GAIN = 1.3


@cache
def bfloat16_layers_pay() -> bool:
    """Return whether this machine runs a float32 linear layer faster by autocast to bfloat16."""
    tokens, width, outputs = SAMPLE
    x, weight = torch.ones(tokens, width), torch.ones(outputs, width)

    def in_bfloat16() -> None:
        """Run the layer as `bfloat16_layers` does."""
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            torch.nn.functional.linear(x, weight)

    return _pays(lambda: torch.nn.functional.linear(x, weight), in_bfloat16)


@cache
def reduced_products_pay() -> bool:
    """Return whether this machine sums a Hessian faster by products that round their factors to bfloat16."""
    x = torch.ones(SAMPLE[0], SAMPLE[1])
    total = torch.zeros(SAMPLE[1], SAMPLE[1])

    def in_bfloat16() -> None:
        """Sum the Hessian as `reduced_precision` does."""
        with _matmul_precision("medium"):
            total.addmm_(x.T, x)

    return _pays(lambda: total.addmm_(x.T, x), in_bfloat16)


def _pays(exact: Callable[[], object], reduced: Callable[[], object]) -> bool:
    """Return whether the CPU has bfloat16 instructions and `reduced` is at least `GAIN` times as fast as `exact`."""
    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(flag, False) for flag in ("amx_bf16", "avx512_bf16", "bf16")):
        return False
    with torch.no_grad(), full_precision():
        _seconds(exact), _seconds(reduced)  # warms up
        pairs = [(_seconds(exact), _seconds(reduced)) for _ in range(REPEATS)]
    return min(pair[0] for pair in pairs) >= GAIN * min(pair[1] for pair in pairs)


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
    """Run linear layers and attention in bfloat16 inside the context, on machines that run them faster so.

    Norms, activation functions and hidden states between blocks stay float32. A block of SmolLM2-135M takes 18 ms
    for 1,024 tokens on one core with AMX, and 43 ms with `reduced_precision` alone.
    """
    # Weights change in place from one run to the next, so autocast must not cache their bfloat16 copies.
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_layers_pay(), cache_enabled=False):
        yield
