"""`QuantizedTensor` refuses what breaks its invariants, and dequantizes by its formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zeropoint.errors import SchemeError
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import parse


def test_dequantize_is_the_formula() -> None:
    scheme = parse("int4:g2:asym")
    codes = np.array([[-8, 7, 0, 1, 3]], dtype=np.int8)
    scale = np.array([[0.5, 2.0, 1.0]], dtype=np.float32)
    zero = np.array([[-8, 1, 0]], dtype=np.int8)
    made = QuantizedTensor(scheme, codes, scale, zero).dequantize()
    np.testing.assert_array_equal(made, np.array([[0, 7.5, -2, 0, 3]], dtype=np.float32))


GOOD: dict[str, Any] = {
    "scheme": parse("int4:g2:asym"),
    "codes": np.zeros((3, 4), np.int8),
    "scale": np.ones((3, 2), np.float32),
    "zero_point": np.zeros((3, 2), np.int8),
}


@pytest.mark.parametrize(
    "change",
    [
        {"scheme": parse("fp16")},
        {"codes": np.zeros((3, 4), np.int16)},
        {"codes": np.zeros(12, np.int8)},
        {"codes": np.full((3, 4), 8, np.int8)},
        {"codes": np.full((3, 4), -9, np.int8)},
        {"scale": np.ones((3, 3), np.float32)},
        {"scale": np.ones((3, 2), np.float64)},
        {"scale": np.full((3, 2), np.nan, np.float32)},
        {"zero_point": None},
        {"zero_point": np.full((3, 2), 9, np.int8)},
        {"zero_point": np.zeros((3, 1), np.int8)},
        {"scheme": parse("int4:g2")},
    ],
)
def test_broken_records_are_refused(change: dict[str, Any]) -> None:
    QuantizedTensor(**GOOD)
    with pytest.raises(SchemeError):
        QuantizedTensor(**{**GOOD, **change})


def test_symmetric_int8_leaves_out_its_lowest_code() -> None:
    with pytest.raises(SchemeError):
        QuantizedTensor(parse("int8"), np.full((1, 1), -128, np.int8), np.ones((1, 1), np.float32))
