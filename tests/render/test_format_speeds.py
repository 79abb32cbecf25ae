"""The texts about measured speeds of formats: table cells, advice, notes."""

from __future__ import annotations

import pytest

from tests.support.speeds import speeds_of
from zeropoint.render.format_speeds import advice, cells, note_on

A8 = "int8:channel:sym:bf16:a8g32"


def test_advice_names_the_fastest_preset_and_the_variant_that_gains_most() -> None:
    speeds = speeds_of(
        {
            "int4 decode": 2.5,
            "int8 batch 8": 1.5,
            "int8 batch 32": 1.6,
            f"{A8} prefill": 1.31,
            "int4 prefill": 0.9,
        }
    )
    assert advice(speeds, "avx2") == (
        "Here, with avx2 instructions and 2 threads, int4 is the fastest preset at decode (2.5 times FP16), int8 is "
        "the fastest preset at batch 8 (1.5 times FP16) and batch 32 (1.6 times FP16), none beats FP16 at prefill; "
        f"{A8} prefills 1.3 times as fast as int8, but rounds inputs to 8 bits: `zeropoint compare` shows what that "
        "loses."
    )
    one = advice(speeds_of({}, threads=1), "avx2")
    assert one == (
        "Here, with avx2 instructions and 1 thread, none beats FP16 at decode, batch 8, batch 32 and prefill."
    )


def test_cells_mark_the_fastest() -> None:
    speeds = speeds_of({"int4 decode": 2.5})
    assert cells(speeds, "avx2", "int4")[0] == ("25.0 (2.50x)", True)
    assert cells(speeds, "avx2", "int8")[0] == ("10.0 (1.00x)", False)


@pytest.mark.parametrize(
    ("format", "ratios", "words"),
    [
        ("int8", {"int4 decode": 1.5}, "int4 decodes 1.5 times as fast as int8,"),
        ("int8", {"int8 prefill": 0.8}, "fp16 reads prompts 1.2 times as fast as int8,"),
        (
            "int8:channel:sym:bf16:a16token",
            {"int4 decode": 1.5, "int8 prefill": 0.8},
            "int4 decodes 1.5 times as fast as int8 and fp16 reads prompts 1.2 times as fast as int8,",
        ),
        ("float16", {"int8 decode": 2.0}, "int8 decodes 2.0 times as fast as fp16,"),
        ("int4", {"int4 decode": 1.5}, ""),
        ("int8", {"int4 decode": 1.04}, ""),
        ("int8", {f"{A8} prefill": 2.0}, ""),
        (A8, {"int4 decode": 1.5}, ""),
        ("int8", {"int8": 0, "int4 decode": 1.5}, ""),
    ],
)
def test_note_on_a_format(format: str, ratios: dict[str, float], words: str) -> None:
    found = note_on(speeds_of(ratios), "avx2", format)
    assert found == (f"on this machine {words} as `zeropoint doctor` measured" if words else "")
    assert note_on(speeds_of(ratios), "amx", format) == ""
