"""`Decoder.forward` converts the arrays that it can, and refuses the others before the library reads one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.runtime.native.conftest import Artifacts
from zeropoint.errors import SchemeError
from zeropoint.runtime.native.library import Cache, Decoder
from zeropoint.runtime.native.runner import NativeRunner

Array = NDArray[Any]
VOCABULARY = 260
IDS = np.array([65, 66, 67, 259], np.int32)
POSITIONS = np.arange(4, dtype=np.int32)
ZEROS = np.zeros(4, np.int32)


@pytest.fixture(scope="module")
def decoder(artifact_of: Artifacts) -> Decoder:
    return NativeRunner.open(artifact_of("llama_tied", "int8"), threads=1).decoder


@pytest.fixture
def cache(decoder: Decoder) -> Cache:
    return decoder.cache(64, sequences=2)


def gapped(values: Array) -> Array:
    return np.repeat(values, 3)[::3]


def column(values: Array) -> Array:
    return np.stack([values, values + 1], axis=1)[:, 0]


def backwards(values: Array) -> Array:
    return values[::-1].copy()[::-1]


def read_only(values: Array) -> Array:
    copy = values.copy()
    copy.setflags(write=False)
    return copy


def unaligned(values: Array) -> Array:
    raw = np.zeros(values.nbytes + 1, np.uint8)
    raw[1:] = values.view(np.uint8)
    return raw[1:].view(np.int32)


CONVERSIONS: list[Callable[[Array], Any]] = [
    *(lambda values, kind=kind: values.astype(kind) for kind in ("i8", "u8", "i2", "u2", "u4", ">i4", ">i8")),
    gapped,
    column,
    backwards,
    read_only,
    unaligned,
    list,
    lambda values: gapped(values.astype(np.int64)),
]


@pytest.mark.parametrize("which", ["tokens", "sequences", "positions"])
def test_whole_numbers_of_any_layout_are_converted(which: str, decoder: Decoder) -> None:
    arrays: dict[str, Array] = {"tokens": IDS, "sequences": ZEROS, "positions": POSITIONS}
    want = decoder.forward(decoder.cache(64), **arrays, threads=1)
    for convert in CONVERSIONS:
        given = {**arrays, which: convert(arrays[which])}
        found = decoder.forward(decoder.cache(64), **given, threads=1)
        np.testing.assert_array_equal(found, want)


NOT_WHOLE_NUMBERS: list[Any] = [
    IDS.astype(np.float32),
    IDS.astype(np.float64) + 0.5,
    IDS.astype(bool),
    IDS.astype(complex),
    IDS.astype(str),
    IDS.astype(object),
    IDS[None],
    IDS[:, None],
    np.array(1, np.int32),
    np.full(4, 2**32, np.int64),  # 0, once cut off
    np.full(4, -(2**32), np.int64),
    np.full(4, 2**63, np.uint64),
]


@pytest.mark.parametrize("which", ["tokens", "sequences", "positions"])
def test_what_is_no_list_of_whole_numbers_is_refused(which: str, decoder: Decoder, cache: Cache) -> None:
    arrays: dict[str, Any] = {"tokens": IDS, "sequences": ZEROS, "positions": POSITIONS}
    for junk in NOT_WHOLE_NUMBERS:
        with pytest.raises(SchemeError) as refusal:
            decoder.forward(cache, **{**arrays, which: junk}, threads=1)
        assert "\n" not in str(refusal.value)
    assert cache.length() == 0


@pytest.mark.parametrize("which", ["tokens", "sequences", "positions", "wanted"])
@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_arrays_of_different_lengths_are_refused(
    which: str, count: int, decoder: Decoder, cache: Cache
) -> None:
    arrays: dict[str, Any] = {"tokens": IDS, "sequences": ZEROS, "positions": POSITIONS}
    with pytest.raises(SchemeError):
        decoder.forward(cache, **{**arrays, which: np.zeros(count, np.int32)}, threads=1)
    assert cache.length() == 0


@pytest.mark.parametrize(
    ("tokens", "sequences", "positions"),
    [
        ([65, VOCABULARY], [0, 0], [0, 1]),
        ([65, 2**31 - 1], [0, 0], [0, 1]),
        ([65, -1], [0, 0], [0, 1]),
        ([-(2**31), 65], [0, 0], [0, 1]),
        ([65, 66], [0, 0], [-1, 0]),
        ([65, 66], [0, 0], [-(2**31), -(2**31) + 1]),
        ([65, 66], [0, 0], [0, 2]),  # a gap
        ([65, 66], [0, 0], [1, 0]),
        ([65, 66], [0, 0], [0, 0]),
        ([65, 66], [0, 0], [1, 2]),  # not where the cache ends
        ([65], [0], [2**31 - 1]),
        ([65, 66], [0, 2], [0, 0]),
        ([65, 66], [-1, 0], [0, 0]),
        ([65], [2**31 - 1], [0]),
        ([65], [-(2**31)], [0]),
    ],
)
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_numbers_out_of_range_are_refused_and_change_nothing(
    tokens: list[int], sequences: list[int], positions: list[int], kind: type, decoder: Decoder, cache: Cache
) -> None:
    arrays = (np.array(values, kind) for values in (tokens, sequences, positions))
    with pytest.raises(SchemeError):
        decoder.forward(cache, *arrays, threads=1)
    assert (cache.length(0), cache.length(1)) == (0, 0)
    found = decoder.forward(cache, IDS, ZEROS, POSITIONS, threads=1)
    want = decoder.forward(decoder.cache(64), IDS, ZEROS, POSITIONS, threads=1)
    np.testing.assert_array_equal(found, want)


def test_marks_of_any_type_choose_rows(decoder: Decoder) -> None:
    want = decoder.forward(decoder.cache(64), IDS, ZEROS, POSITIONS, threads=1)[[1, 3]]
    for marks in ([0, 1, 0, 1], [False, True, False, True], [0, 256, 0, -1], [0.0, 0.5, 0.0, 2.0]):
        found = decoder.forward(decoder.cache(64), IDS, ZEROS, POSITIONS, wanted=np.array(marks), threads=1)
        np.testing.assert_array_equal(found, want)
    none = decoder.forward(decoder.cache(64), IDS, ZEROS, POSITIONS, wanted=np.zeros(4), threads=1)
    assert none.shape == (0, VOCABULARY)


@pytest.mark.parametrize(
    "out",
    [
        np.empty((3, VOCABULARY), np.float32),
        np.empty((5, VOCABULARY), np.float32),
        np.empty((4, VOCABULARY - 1), np.float32),
        np.empty(4 * VOCABULARY, np.float32),
        np.empty((4, VOCABULARY), np.float64),
        np.empty((4, VOCABULARY), ">f4"),
        np.empty((4, 2 * VOCABULARY), np.float32)[:, ::2],
        np.empty((VOCABULARY, 4), np.float32).T,
        read_only(np.empty((4, VOCABULARY), np.float32)),
        np.broadcast_to(np.float32(0), (4, VOCABULARY)),
    ],
)
def test_logits_that_do_not_fit_are_refused(out: Any, decoder: Decoder, cache: Cache) -> None:
    with pytest.raises(SchemeError):
        decoder.forward(cache, IDS, ZEROS, POSITIONS, threads=1, out=out)
    assert cache.length() == 0


def test_numbers_beyond_the_librarys_are_refused_not_cut_off(decoder: Decoder, cache: Cache) -> None:
    for room in (2**63, 2**64 + 8, -(2**64) + 8, -1, 0):
        with pytest.raises(SchemeError):
            decoder.cache(room)
    for sequences in (2**31, 2**32 + 1, np.int64(2**32 + 1), -1, 0):
        with pytest.raises(SchemeError):
            decoder.cache(8, sequences=sequences)
    for threads in (2**32 + 1, 2**63, -(2**32) + 1):
        with pytest.raises(SchemeError):
            decoder.forward(cache, IDS, ZEROS, POSITIONS, threads=threads)
    decoder.forward(cache, IDS, ZEROS, POSITIONS, threads=1)
    with pytest.raises(SchemeError):
        cache.grow(2**64 + 128)
    for length in (-1, 2**64, 2**64 + 1, -(2**64)):
        with pytest.raises(SchemeError):
            cache.truncate(length)
    for sequence in (2**32, 2, -1):
        with pytest.raises(SchemeError):
            cache.truncate(0, sequence)
        with pytest.raises(SchemeError):
            cache.length(sequence)
    assert (cache.length(), cache.tokens) == (4, 64)
