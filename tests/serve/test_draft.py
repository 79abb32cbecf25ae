"""`Drafter`: how many tokens it guesses, and which."""

from __future__ import annotations

from zeropoint.serve.draft import MAX_GUESSES, PAUSE, Drafter

LOOP = [1, 2, 3, 4] * 10


def test_right_guesses_make_more() -> None:
    drafter, sizes = Drafter(), list[int]()
    for _ in range(4):
        draft = drafter.draft(LOOP, 100)
        assert draft == (1, 2, 3, 4)[: len(draft)]
        sizes.append(len(draft))
        drafter.learn(len(draft), len(draft))
    assert sizes == [2, 4, 4, 4]  # the last occurrence ends four tokens before the end
    assert max(sizes) <= MAX_GUESSES
    assert len(drafter.draft(LOOP, 3)) == 3


def test_wrong_guesses_make_fewer_and_then_a_pause() -> None:
    drafter, sizes = Drafter(), list[int]()
    for _ in range(2 * PAUSE):
        draft = drafter.draft(LOOP, 100)
        sizes.append(len(draft))
        if draft:
            drafter.learn(len(draft), 0)
    assert sizes[: PAUSE + 3] == [2, 1, *[0] * PAUSE, 1]


def test_a_text_without_repetitions_has_no_guesses() -> None:
    drafter = Drafter()
    assert drafter.draft(range(100), 8) == ()
    assert drafter.draft([*range(100), 5, 6], 8) == (7, 8)
