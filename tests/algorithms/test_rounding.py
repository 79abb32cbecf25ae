"""Learned rounding equals the paper's procedure written down with torch's own gradients, and gains on a small block."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from zeropoint.algorithms import rounding, rtn
from zeropoint.reference.rounding import round_scale
from zeropoint.values.qtensor import QuantizedTensor, expand_groups
from zeropoint.values.scheme import parse

WIDTH, BATCHES = 48, 4


def block(weights: Mapping[str, torch.Tensor], given: torch.Tensor) -> torch.Tensor:
    return given + torch.nn.functional.silu(given @ weights["up"].T) @ weights["down"].T


def problem(text: str) -> tuple[dict[str, rounding.Layer], rounding.Loss]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(WIDTH, WIDTH, generator=generator)
    inputs = [torch.randn(2, 16, WIDTH, generator=generator) @ mix for _ in range(BATCHES)]
    floats = {
        "up": torch.randn(96, WIDTH, generator=generator),
        "down": torch.randn(WIDTH, 96, generator=generator),
    }
    layers = {
        name: rounding.Layer(weight, rtn.quantize(weight, None, parse(text), rtn.Options()))
        for name, weight in floats.items()
    }
    targets = [block(floats, given) for given in inputs]
    sizes = rounding.relative_sizes(targets)
    return layers, lambda weights, n: rounding.relative_distance(block(weights, inputs[n]), targets[n], sizes)


def naive(
    layers: Mapping[str, rounding.Layer], loss: rounding.Loss, options: rounding.Options, seed: int
) -> dict[str, QuantizedTensor]:
    """The last codes of signed descent on offsets and scale factors, with the straight-through gradient by autograd."""

    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):  # type: ignore[no-untyped-def]
            return values.round()

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            return gradient

    state = {}
    for name, layer in layers.items():
        scale, zero = layer.start.scale, layer.start.zero_point
        zeros = np.zeros_like(scale) if zero is None else zero.astype(np.float32)
        columns = layer.start.shape[1]
        offset = torch.from_numpy(expand_groups(zeros, layer.start.scheme, columns).copy())
        wanted = (
            layer.weight / torch.from_numpy(expand_groups(scale, layer.start.scheme, columns).copy()) + offset
        )
        codes = torch.from_numpy(layer.start.codes.astype(np.float32))
        state[name] = {
            "u": codes + (wanted - codes).clamp(-0.49, 0.49),
            "v": torch.zeros_like(codes, requires_grad=True),
            "factor": torch.ones(scale.shape, requires_grad=True),
            "zero": offset,
        }

    def scales(name: str) -> np.ndarray:
        start = layers[name].start
        if start.scheme.scale_dtype == "nested":
            return start.scale
        return round_scale(start.scale * state[name]["factor"].detach().numpy(), start.scheme.scale_dtype)

    def quantized(name: str) -> torch.Tensor:
        part, scheme = state[name], layers[name].start.scheme
        return Round.apply(part["u"] + part["v"]).clamp(scheme.qmin, scheme.qmax)

    def weight(name: str) -> torch.Tensor:
        start, part = layers[name].start, state[name]
        exact = torch.from_numpy(start.scale) * part["factor"]
        stored = (
            torch.from_numpy(scales(name)) + exact - exact.detach()
        )  # rounded, with the gradient of the exact one
        if start.scheme.granularity == "group":
            stored = stored.repeat_interleave(start.scheme.group_size, 1)[:, : start.shape[1]]
        codes = Round.apply(part["u"] + part["v"])
        codes = codes + (codes.clamp(start.scheme.qmin, start.scheme.qmax) - codes).detach()
        return (codes - part["zero"]) * stored

    generator = torch.Generator().manual_seed(seed)
    for step in range(options.steps):
        numbers = torch.randint(BATCHES, (options.batch,), generator=generator).tolist()
        weights = {name: weight(name) for name in layers}
        sum(loss(weights, number) for number in numbers).backward()
        rate = options.rate * (1 - step / options.steps)
        with torch.no_grad():
            for part in state.values():
                part["v"] -= rate * part["v"].grad.sign()
                part["v"].clamp_(-0.5, 0.5)
                part["factor"] -= rate * options.clip * part["factor"].grad.sign()
                part["factor"].clamp_(1 - options.clip, 1 + options.clip)
                part["v"].grad = part["factor"].grad = None
    return {
        name: QuantizedTensor(
            layer.start.scheme,
            quantized(name).detach().numpy().astype(np.int8),
            scales(name),
            layer.start.zero_point,
        )
        for name, layer in layers.items()
    }


@pytest.mark.parametrize(
    "text", ["int4:g16", "int4:g16:asym", "int4:g32:nested", "int3:channel", "int4:tensor"]
)
def test_it_equals_the_naive_procedure(text: str) -> None:
    layers, loss = problem(text)
    options = rounding.Options(steps=12, rate=0.04)
    made = rounding.quantize_block(layers, loss, BATCHES, options, seed=3)
    assert made.after < made.before
    for name, expected in naive(layers, loss, options, seed=3).items():
        np.testing.assert_allclose(made.weights[name].scale, expected.scale, rtol=1e-6)
        assert (made.weights[name].codes != expected.codes).mean() < 0.01  # signs of gradients near 0
        assert (made.weights[name].codes != layers[name].start.codes).mean() > 0.02


def test_the_same_seed_gives_the_same_codes() -> None:
    layers, loss = problem("int4:g16:asym")
    first, second = (rounding.quantize_block(layers, loss, BATCHES, rounding.Options(), 1) for _ in range(2))
    for name in layers:
        np.testing.assert_array_equal(first.weights[name].codes, second.weights[name].codes)


def test_what_does_not_gain_is_not_taken() -> None:
    layers, loss = problem("int4:g16")
    made = rounding.quantize_block(layers, loss, BATCHES, rounding.Options(steps=2, rate=5.0), seed=0)
    assert made.after == made.before
    assert all(made.weights[name] is layers[name].start for name in layers)
