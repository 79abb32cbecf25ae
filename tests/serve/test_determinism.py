"""A request gets the same bits alone and in any mix of requests, on any number of threads, at any level."""

from __future__ import annotations

import pytest

from tests.serve.mixes import mix


@pytest.mark.parametrize("seed", range(24))
def test_an_answer_does_not_depend_on_the_others(seed: int) -> None:
    """`python -m tests.serve.mixes` runs more of them."""
    mix(seed)
