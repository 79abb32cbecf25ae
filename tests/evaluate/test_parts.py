"""Speed, memory, answers, settings and what is known of a model without loading it."""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from zeropoint.errors import ArtifactError, UsageError
from zeropoint.evaluate import environment
from zeropoint.evaluate.model_description import describe
from zeropoint.evaluate.quality.greedy_answers import answer, first_difference, mark
from zeropoint.evaluate.speed.measure import measure_speed
from zeropoint.evaluate.speed.settings import SpeedSettings


class Clock:
    """Claims the given seconds, one pair a call."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def prefill_decode(self, tokens: NDArray[np.int64], new_tokens: int) -> tuple[float, float]:
        self.shapes.append((*tokens.shape, new_tokens))
        return (2.0, 1.0) if len(self.shapes) == 2 else (1.0, 0.5)


def test_speed_is_the_median_after_a_warm_up() -> None:
    clock = Clock()
    speed = measure_speed(clock, [1, 2, 3, 4], new_tokens=10, batch=2, repeats=3)
    assert clock.shapes == [(2, 4, 4), (2, 4, 10), (2, 4, 10), (2, 4, 10)]
    assert (speed.prefill.median, speed.prefill.slowest, speed.prefill.fastest) == (8, 4, 8)
    assert (speed.decode.median, speed.decode.slowest, speed.decode.repeats) == (40, 20, 3)


def test_speed_needs_repeats_and_tokens() -> None:
    with pytest.raises(UsageError, match="at least 3 repeats"):
        measure_speed(Clock(), [1], repeats=2)
    with pytest.raises(UsageError, match="one prompt token"):
        measure_speed(Clock(), [], repeats=3)


class Parrot:
    def generate(self, tokens: Sequence[int], *, max_new_tokens: int, stop: Container[int] = ()) -> list[int]:
        return [*tokens[:max_new_tokens], 0]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def test_answers_drop_the_stop_token_and_mark_the_first_difference() -> None:
    parrot = Parrot()
    (first,), (second,) = (
        answer(parrot, [list(p)], max_new_tokens=9, stop={0}) for p in (b"abcdef", b"abXdef")
    )
    assert bytes(first) == b"abcdef"
    found = mark("int4", parrot, second, first)
    assert (found.same, found.first, found.rest, found.first_difference) == ("ab", "X", "def", 2)
    assert mark("int8", parrot, first, first).first_difference is None


def test_a_difference_inside_a_character_keeps_the_text_whole() -> None:
    reference, other = list("aé".encode()), list("aèb".encode())
    found = mark("m", Parrot(), other, reference)
    assert found.first_difference == 2
    assert found.text == "aèb"


@pytest.mark.parametrize(
    ("a", "b", "index"), [([1, 2], [1, 2], None), ([1, 2], [1], 1), ([], [1], 0), ([1], [2], 0)]
)
def test_first_difference(a: list[int], b: list[int], index: int | None) -> None:
    assert first_difference(a, b) == index


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(UsageError, match="prompt is empty"):
        answer(Parrot(), [[]], max_new_tokens=3)


def test_settings_fit_the_context() -> None:
    settings = SpeedSettings().within(128)
    assert settings.prompt_tokens + settings.new_tokens <= 128
    assert SpeedSettings().within(None) == SpeedSettings()
    with pytest.raises(UsageError, match="at least 1"):
        SpeedSettings(threads=0)


def write_model(folder: Path, config: object, card: object = None) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if card is not None:
        (folder / "zeropoint.json").write_text(json.dumps(card))
    return str(folder)


def test_models_are_described_from_their_folders(tmp_path: Path) -> None:
    choices = {"a": {"scheme": "int4:g32:asym:bf16"}, "b": {"scheme": "int8:channel"}, "c": {"scheme": None}}
    first = write_model(tmp_path / "x" / "m", {"dtype": "bfloat16", "n_positions": 64})
    second = write_model(tmp_path / "y" / "m", {}, {"plan": {"label": "int4", "choices": choices}})
    reference, artifact = describe(first, [second])
    assert (reference.name, artifact.name) == ("m", "m (2)")
    assert (reference.format, artifact.format) == ("BF16", "int4")
    assert (reference.context, artifact.context) == (64, None)
    assert (reference.smallest_bits, artifact.smallest_bits) == (16, 4)


def test_a_malformed_card_is_one_clear_error(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", {})
    (tmp_path / "m" / "zeropoint.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"zeropoint\.json is not valid JSON"):
        describe(folder)


def test_environment_names_the_versions() -> None:
    assert environment.versions()["numpy"] == np.__version__
