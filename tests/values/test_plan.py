"""Plans round trip through JSON; malformed ones are refused in one sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from zeropoint.errors import ZeropointError
from zeropoint.values.plan import Choice, Plan
from zeropoint.values.scheme import parse

PLAN = Plan(
    {"a.weight": Choice(parse("int4"), "rtn", {"search": True}, "why"), "b": Choice(None, reason="a vector")},
    nbytes=123,
    label="int4",
    seed=7,
)


def test_round_trip() -> None:
    assert Plan.from_json(json.loads(json.dumps(PLAN.to_json()))) == PLAN


@pytest.mark.parametrize(
    "change",
    [
        {"plan_version": 2},
        {"choices": []},
        {"choices": None},
        {"choices": {"a": None}},
        {"choices": {"a": {"scheme": 4}}},
        {"choices": {"a": {"scheme": "int99"}}},
        {"choices": {"a": {"scheme": None, "options": []}}},
        {"choices": {"a": {"scheme": None, "algorithm": 1}}},
        {"choices": {"a": {"scheme": None, "reason": 1}}},
        {"choices": {"a": {"scheme": None, "surprise": 1}}},
        {"nbytes": "many"},
        {"nbytes": None},
        {"nbytes": -1},
        {"seed": "x"},
        {"label": 3},
        {"surprise": 1},
    ],
)
def test_malformed_plans_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ZeropointError):
        Plan.from_json({**PLAN.to_json(), **change})


@pytest.mark.parametrize("data", [None, [], "plan", 3, {}])
def test_what_is_no_plan_is_refused(data: Any) -> None:
    with pytest.raises(ZeropointError):
        Plan.from_json(data)
