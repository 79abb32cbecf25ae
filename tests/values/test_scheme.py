"""Scheme strings round trip, and bad ones are refused with what would be right."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeropoint.errors import SchemeError
from zeropoint.values.scheme import MAX_GROUP_SIZE, PRESETS, Activation, Scheme, parse


@st.composite
def schemes(draw: st.DrawFn) -> Scheme:
    granularity = draw(st.sampled_from(["tensor", "channel", "group"]))
    bits, symmetric = draw(st.integers(2, 8)), draw(st.booleans())
    nests = granularity == "group" and symmetric and bits <= 5
    return Scheme(
        bits=bits,
        granularity=granularity,  # type: ignore[arg-type]
        group_size=draw(st.integers(1, MAX_GROUP_SIZE)) if granularity == "group" else 0,
        symmetric=symmetric,
        scale_dtype=draw(st.sampled_from(["bf16", "fp16", "fp32", *(["nested"] if nests else [])])),  # type: ignore[arg-type]
        activation=draw(st.sampled_from([None, Activation(8, 0), Activation(8, 32), Activation(16)])),
    )


@given(schemes())
def test_string_form_parses_back(scheme: Scheme) -> None:
    assert parse(str(scheme)) == scheme
    assert parse(str(scheme).upper()) == scheme


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_canonical(name: str) -> None:
    assert str(parse(name)) == PRESETS[name]


def test_segments_may_be_left_out_or_permuted() -> None:
    assert parse("int4:asym:g32") == parse("int4:g32:asym:bf16")


@pytest.mark.parametrize(
    "text",
    ["", "int", "int9", "int1", "int44", "float8", "int4:g0", "int4:g", "int4:g32:g64", "int8:a8g12", "int8:a4token",
     "int8:a16g32", "int8:g32:nested", "int4:nested", "int4:g32:asym:nested",
     "int8:symmetric", "int8::", "fp16:g32", "int4:g32:bf16:fp16", "x" * 500],
)  # fmt: skip
def test_bad_strings_are_refused(text: str) -> None:
    with pytest.raises(SchemeError):
        parse(text)


@given(st.text("int0123456789:gatokenchlsymbfp \n-\u00b2\u0664\u0130\U0001f600", max_size=30))
def test_any_text_parses_or_is_refused(text: str) -> None:
    with contextlib.suppress(SchemeError):
        parse(text)


@pytest.mark.parametrize("size", [10**7, 2**31 - 8, 2**31, 2**32 + 32, 2**63, 2**64 + 32])
def test_group_sizes_that_the_kernels_could_not_hold_are_refused(size: int) -> None:
    with pytest.raises(SchemeError, match="at most 9999999 channels"):
        Scheme(4, "group", size)
    with pytest.raises(SchemeError, match=r"at most 9999999 channels|multiple of 8"):
        Activation(8, size)
    for text in (f"int4:g{size}", f"int8:a8g{size}"):
        with pytest.raises(SchemeError):
            parse(text)


def test_float_formats_take_no_integer_fields() -> None:
    with pytest.raises(SchemeError):
        Scheme(bits=16, float_format="fp16", symmetric=False)


@pytest.mark.parametrize(
    ("text", "shape", "nbytes"),
    [
        ("int8", (4, 64), 4 * 64 + 4 * 2),
        ("int4:g32", (4, 64), 4 * 32 + 4 * 2 * 2 + 16),
        ("int4:g32:asym", (4, 64), 4 * 32 + 4 * 2 * 2 + 16 + 1 * 4 * 2),
        ("int4:g32", (3, 40), 3 * 20 + 3 * 2 * 2 + 16),
        ("int3:tensor:asym:fp32", (5, 11), 5 * 8 + 4 + 16 + 1),
        ("int8:tensor:asym", (5, 11), 55 + 2 + 1),
        ("fp16", (5, 11), 110),
    ],
)
def test_nbytes_by_hand(text: str, shape: tuple[int, int], nbytes: int) -> None:
    assert parse(text).nbytes(shape) == nbytes
