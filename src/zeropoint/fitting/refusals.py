"""Refusals of `fit`: reasons why no plan can meet a budget, each with the number that is possible."""

from __future__ import annotations

from zeropoint.errors import GateError
from zeropoint.fitting.candidates import Candidates
from zeropoint.fitting.search import Point, Search
from zeropoint.machine.detect import Machine
from zeropoint.planning.solver import Quantity, solve
from zeropoint.predictions import LOGITS_BYTES
from zeropoint.values.budget import Budget


def refusal(search: Search, budget: Budget) -> str | None:
    """Return why no plan can meet the budget; None if one may."""
    return _size_and_speed(search, budget) or _loss(search, budget)


def check_sizes(candidates: Candidates, budget: Budget) -> None:
    """Raise `GateError` if the smallest plan is too large, or if all candidates together exceed the free memory."""
    nbytes, fixed = candidates.nbytes()
    least, all_of_them = float(nbytes.min(axis=1).sum()) + fixed, float(nbytes.sum()) + LOGITS_BYTES
    if budget.max_memory is not None and least > budget.max_memory:
        raise GateError(f"no plan takes {_mb(budget.max_memory)}: the smallest takes {_mb(least)}")
    free = Machine.detect().ram_available_bytes
    if 0 < free < all_of_them:
        raise GateError(
            f"fit holds the model in all formats at once, about {_mb(all_of_them)}, and {_mb(free)} are free: "
            "close other programs, or name fewer --formats"
        )


def _size_and_speed(search: Search, budget: Budget) -> str | None:
    """Return why no plan meets the bounds on size and speed; None if one does."""
    table, limits = search.table, search.limits(budget)
    for name, verb, least in _speeds(budget):
        fastest = solve(table, {}, {name: 1.0})
        assert fastest is not None
        most = 1 / table.total(name, fastest)
        if most < 1 / limits[name]:
            return (
                f"no plan {verb} {least:g} tokens/s here: the fastest is expected to reach {most:.0f}, "
                "and fit plans with a reserve of 3 %"
            )
    if len(limits) < 2 or solve(table, limits, {"loss": 1.0}) is not None:
        return None
    speeds = {name: limits[name] for name, _, _ in _speeds(budget)}
    asked = " and ".join(f"{verb} {least:g} tokens/s" for _, verb, least in _speeds(budget))
    quick = solve(table, speeds, {"nbytes": 1.0})
    if quick is None:
        return f"no plan {asked}: each bound alone can be met, both together cannot"
    return (
        f"no plan takes {_mb(limits['nbytes'])} and {asked}: "
        f"at that speed the smallest takes {_mb(table.total('nbytes', quick))}"
    )


def _speeds(budget: Budget) -> list[tuple[Quantity, str, float]]:
    """Return the budget's bounds on speed: quantity, verb for a sentence, tokens per second."""
    bounds: list[tuple[Quantity, str, float | None]] = [
        ("decode", "decodes", budget.min_decode),
        ("prefill", "reads a prompt at", budget.min_prefill),
    ]
    return [(name, verb, least) for name, verb, least in bounds if least is not None]


def _loss(search: Search, budget: Budget) -> str | None:
    """Measure the plan of lowest loss within size and speed; return a refusal if its loss is above the target."""
    target = search.target(budget, margin=1.0)
    limits = search.limits(budget)
    if target is None or not limits:
        return None
    picks = solve(search.table, limits, {"loss": 1.0})
    assert picks is not None
    best = search.measure(picks)
    if best.loss.kl - 2 * best.loss.standard_error <= target:
        return None
    needed = solve(search.table, {"loss": search.largest_promised_loss(target)}, {"nbytes": 1.0})
    size = (
        ""
        if needed is None
        else f"; a loss of {target:.4g} needs about {_mb(search.table.total('nbytes', needed))}"
    )
    return (
        f"no plan within the size and speed asked for loses less than a mean KL of {best.loss.kl:.4f}, "
        f"and {target:.4g} was asked for{size}"
    )


def not_needed(budget: Budget, wide: Point) -> str | None:
    """Return a refusal if the 16-bit model already meets the bounds on size and speed; None if it does not."""
    speeds = _speeds(budget)
    if budget.max_memory is None and not speeds:
        return None
    rates = {"decode": 1 / wide.decode, "prefill": 1 / wide.prefill}
    if (budget.max_memory or wide.nbytes) < wide.nbytes or any(rates[n] < least for n, _, least in speeds):
        return None
    return (
        f"the 16-bit model meets this budget already ({_mb(wide.nbytes)}, {1 / wide.decode:.0f} tokens/s): "
        "do not quantize it (--anyway does)"
    )


def _mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:.4g} MB"
