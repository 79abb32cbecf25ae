"""Budgets in the units people write."""

from __future__ import annotations

import pytest

from zeropoint.errors import UsageError
from zeropoint.values.budget import Budget, parse_bytes, parse_rate, parse_share


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("80MB", 80_000_000),
        ("1.5 GiB", 1_610_612_736),
        ("90000000", 90_000_000),
        ("2kb", 2000),
        ("3g", None),
        ("110", None),
    ],
)
def test_bytes(text: str, value: int | None) -> None:
    if value is None:
        with pytest.raises(UsageError, match=r"write (80|110)MB"):
            parse_bytes(text)
    else:
        assert parse_bytes(text) == value


def test_shares_and_rates() -> None:
    assert parse_share("1%") == pytest.approx(0.01)
    assert parse_share("0.02") == parse_share(".02") == 0.02
    assert parse_rate("100tok/s") == parse_rate("100 tokens/s") == parse_rate("100") == 100
    for wrong in ("x", "-1", "1%%"):
        with pytest.raises(UsageError):
            parse_share(wrong)
    with pytest.raises(UsageError, match="100tok/s"):
        parse_rate("100 MB/s")


def test_a_budget_is_checked_and_survives_json() -> None:
    budget = Budget(parse_bytes("80MB"), parse_share("0.02"), min_decode=parse_rate("100tok/s"))
    assert Budget.from_json(budget.to_json()) == budget
    assert budget.bounds_loss
    assert Budget().is_empty
    with pytest.raises(UsageError, match="above zero"):
        Budget(max_kl=0.0)
    with pytest.raises(UsageError, match="not a budget"):
        Budget.from_json({"max_ram": 1})
