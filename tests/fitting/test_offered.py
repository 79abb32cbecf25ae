"""The formats that `fit` offers when the user names none."""

from __future__ import annotations

import pytest

from tests.support.speeds import speeds_of
from zeropoint.fitting import FORMATS, Settings, offered
from zeropoint.fitting.offered import Offered
from zeropoint.fitting.target import Target
from zeropoint.values.budget import Budget

GROUPS, TOKEN = "int8:channel:sym:bf16:a8g32", "int8:channel:sym:bf16:a8token"
FAST = Budget(min_prefill=100)


def ask(
    monkeypatch: pytest.MonkeyPatch, ratios: dict[str, float], budget: Budget, level: str = "avx2"
) -> Offered:
    monkeypatch.setattr(offered, "measured", lambda folder, threads, step: speeds_of(ratios))
    return offered.offered(budget, Settings(), Target(level, 2), lambda *_: None)


@pytest.mark.parametrize(
    ("ratios", "more"),
    [
        ({}, ()),
        ({f"{GROUPS} prefill": 1.09}, ()),
        ({f"{GROUPS} decode": 2.0}, ()),
        ({f"{GROUPS} prefill": 1.5}, (GROUPS,)),
        ({f"{TOKEN} prefill": 1.5}, (TOKEN,)),
        ({f"{GROUPS} prefill": 1.5, f"{TOKEN} prefill": 1.6}, (GROUPS,)),
        ({f"{GROUPS} prefill": 1.5, f"{TOKEN} prefill": 1.7}, (GROUPS, TOKEN)),
        ({f"{GROUPS} prefill": 1.5, "int8": 0}, ()),
    ],
)
def test_a_bound_on_prefill_offers_what_reads_prompts_faster(
    monkeypatch: pytest.MonkeyPatch, ratios: dict[str, float], more: tuple[str, ...]
) -> None:
    found = ask(monkeypatch, ratios, FAST)
    assert found.formats == ("int8", *more, "int5", "int4")
    assert len(found.notes) == len(more)
    if more:
        assert f"{more[0]} is on offer too: it reads prompts 1.5 times as fast as int8 here" in found.notes
    assert ask(monkeypatch, ratios, FAST, level="scalar").formats == FORMATS
    assert ask(monkeypatch, ratios, Budget(max_kl=0.1)).formats == FORMATS


def test_named_formats_stay_and_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offered, "measured", lambda *_, **__: pytest.fail("timed"))
    settings = Settings(formats=("int4",))
    assert offered.offered(FAST, settings, Target("avx2", 2), lambda *_: None) == Offered(("int4",))
