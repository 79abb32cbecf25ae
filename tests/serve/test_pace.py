"""How many prompt tokens a step reads while other requests decode, on simulated machines."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import pytest

from zeropoint.serve.pace import FIRST, GROWTH, LEAST, ROWS, STRETCH, Pace

PLAIN = 0.030  # seconds of a step that only decodes


def _machine(token: float, fixed: float = 0.0) -> Callable[[int, int], float]:
    """Return the seconds of a step as a function of its decoding requests and its prompt tokens."""

    def seconds(decoding: int, prompt_tokens: int) -> float:
        return PLAIN * decoding / 8 + (fixed + token * prompt_tokens if prompt_tokens else 0.0)

    return seconds


def _run(
    pace: Pace, machine: Callable[[int, int], float], steps: int, decoding: int = 8, reading: int = 1
) -> list[tuple[int, float]]:
    """Return the prompt tokens and the seconds of each step."""
    found = []
    for _ in range(steps):
        count = pace.budget(decoding, reading)
        seconds = machine(decoding, count)
        pace.record(decoding, count, seconds)
        found.append((count, seconds))
    return found


def test_without_decoding_requests_a_step_is_full() -> None:
    assert Pace().budget(0, 1) == ROWS


def test_a_step_has_no_more_rows_than_the_library_takes() -> None:
    pace = Pace()
    _run(pace, _machine(0.0), 30, decoding=500)
    assert pace.budget(500, 1) == ROWS - 500


def test_decoding_alone_is_timed_first_and_then_prompts_grow() -> None:
    counts = [count for count, _ in _run(Pace(), _machine(PLAIN / 128.5), 12)]
    assert counts == [0, 8, 12, 18, 27, 40, 60, 90, 128, 0, 128, 128]


@pytest.mark.parametrize("token", [1.0, 0.0])
def test_prompts_are_read_on_slow_and_on_fast_machines(token: float) -> None:
    pace = Pace()
    counts = [count for count, _ in _run(pace, _machine(token), 40, decoding=1)]
    assert sum(counts) >= 36 * LEAST
    assert pace.budget(1, 1) <= ROWS


@pytest.mark.parametrize("fixed", [0.0, 0.25 * PLAIN, 0.5 * PLAIN])
@pytest.mark.parametrize("token", [0.0005, 0.002])
def test_steps_approach_the_stretch(token: float, fixed: float) -> None:
    steps = [seconds for count, seconds in _run(Pace(), _machine(token, fixed), 200)[100:] if count]
    assert max(steps) <= STRETCH * PLAIN * 1.001
    assert median(steps) >= (STRETCH - 0.2) * PLAIN


@pytest.mark.parametrize(
    ("decoding", "reading", "stretch"), [(2, 6, 4.0), (8, 24, 4.0), (8, 1, 2.0), (1, 31, 32.0)]
)
def test_requests_that_read_and_that_decode_share_the_time(
    decoding: int, reading: int, stretch: float
) -> None:
    machine = _machine(0.0005)
    steps = [seconds for count, seconds in _run(Pace(), machine, 200, decoding, reading)[100:] if count]
    assert median(steps) == pytest.approx(stretch * machine(decoding, 0), rel=0.05)


def test_a_prompt_is_read_even_where_no_token_fits() -> None:
    counts = [count for count, _ in _run(Pace(), _machine(0.01, 5 * PLAIN), 100) if count]
    assert counts[0] == FIRST
    assert set(counts[10:]) == {LEAST}


def test_delays_by_other_programs_do_not_make_long_steps() -> None:
    rng = random.Random(0)
    machine = _machine(0.002)

    def disturbed(decoding: int, prompt_tokens: int) -> float:
        return machine(decoding, prompt_tokens) * (4.0 if rng.random() < 0.1 else 1.0)

    pace = Pace()
    counts = [count for count, _ in _run(pace, disturbed, 1000)[100:] if count]
    usual = median(counts)
    assert max(counts) <= 2 * usual
    assert all(later <= GROWTH * earlier for earlier, later in pairwise(counts))


def test_decoding_alone_is_timed_again_when_other_requests_decode() -> None:
    pace = Pace()
    _run(pace, _machine(0.002), 10, decoding=2)
    assert pace.budget(2, 1) > 0
    assert pace.budget(8, 1) == 0
    counts = [count for count, _ in _run(pace, _machine(0.002), 100, decoding=8)]
    assert counts[0] == 0
    assert counts[-2] > 0


def test_the_rest_of_a_prompt_is_no_measurement() -> None:
    pace, machine = Pace(), _machine(0.0005, 0.9 * PLAIN)
    _run(pace, machine, 100)
    pace.record(8, 0, PLAIN)
    before = pace.budget(8, 1)
    for _ in range(5):
        pace.record(8, 1, machine(8, 1))
    assert pace.budget(8, 1) == before
