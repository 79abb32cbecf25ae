"""Distillation gains on a small model, stores what its types hold, and takes nothing that does not gain."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from zeropoint.algorithms import distill


class Small:
    """A model of one embedding, one norm weight and one head whose rows have scales."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(50, 16, generator=generator)
        self.head = torch.randn(50, 16, generator=generator)
        self.norm = 1 + 0.3 * torch.randn(16, generator=generator)
        self.free: Mapping[str, torch.Tensor] = {"norm": torch.ones(16), "scale": torch.full((50, 1), 0.9)}

    def store(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return value.bfloat16().float()

    def logits(self, values: Mapping[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        return (self.table[tokens] * values["norm"]) @ (values["scale"] * self.head).T

    def exact(self, tokens: torch.Tensor) -> torch.Tensor:
        return (self.table[tokens] * self.norm) @ self.head.T


TOKENS = torch.randint(0, 50, (40, 8), generator=torch.Generator().manual_seed(1))


def test_it_gains_and_stores_what_the_type_holds() -> None:
    first, second = (
        distill.tune_model(Small(), TOKENS, distill.Options(epochs=8, rate=0.02), seed=0) for _ in range(2)
    )
    assert first.after < 0.3 * first.before
    assert first.after == second.after
    for name, value in first.values.items():
        assert torch.equal(value, value.bfloat16().float())
        assert torch.equal(value, second.values[name])


def test_a_step_is_adams_on_the_divergence() -> None:
    """One step of one window, written down: with Adam's first step every factor moves by the rate, downhill."""
    model = Small()
    model.store = lambda name, value: value  # type: ignore[method-assign]
    tokens = TOKENS[:2]
    options = distill.Options(epochs=1, batch=1, rate=1e-3 * distill.WARM_UP)
    made = distill.tune_model(model, tokens, options, seed=0)
    order = torch.randperm(2, generator=torch.Generator().manual_seed(0))
    values = {name: value.clone().requires_grad_() for name, value in model.free.items()}
    exact = model.exact(tokens[order[1]]).log_softmax(-1)
    found = model.logits(values, tokens[order[1]]).log_softmax(-1)
    (exact.exp() * (exact - found)).sum(-1).mean().backward()  # type: ignore[no-untyped-call]
    assert made.after < made.before
    for name, value in values.items():
        assert value.grad is not None
        moved = 1 - 1e-3 * (value.grad * value).sign()
        torch.testing.assert_close(made.values[name], model.free[name] * moved, rtol=1e-5, atol=0)


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[:1]])
def test_what_does_not_gain_is_not_taken(tokens: torch.Tensor) -> None:
    model = Small()
    made = distill.tune_model(model, tokens, distill.Options(rate=5.0), seed=0)
    assert made.after == made.before
    assert all(torch.equal(made.values[name], value) for name, value in model.free.items())
