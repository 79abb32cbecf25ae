"""The table of number types: every type has a weight, and its bytes mean to ggml what they mean to Zeropoint."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from zeropoint.algorithms import _gguf_grids as grids
from zeropoint.errors import SchemeError
from zeropoint.gguf import types
from zeropoint.gguf.types.superblocks import Storable
from zeropoint.values.qtensor import QuantizedTensor

Kind = GGMLQuantizationType
SHAPE = (6, 512)


def weight_of(kind: GGMLQuantizationType) -> Storable:
    """Return a random weight in a type."""
    entry, random = types.TYPES[kind], np.random.default_rng(kind.value)
    values = random.standard_normal(SHAPE).astype(np.float32)
    if entry.dtype is not None:
        return values.astype(entry.dtype)
    if entry.grid is not None:
        return grids.fit(values, None, kind)
    assert entry.scheme is not None
    codes = random.integers(entry.scheme.qmin, entry.scheme.qmax, SHAPE, endpoint=True).astype(np.int8)
    scale = random.uniform(0.01, 1, (SHAPE[0], SHAPE[1] // entry.block)).astype(np.float16)
    return QuantizedTensor(entry.scheme, codes, scale.astype(np.float32))


@pytest.mark.parametrize("kind", types.TYPES, ids=lambda kind: kind.name)
def test_bytes_mean_what_ggml_reads(kind: GGMLQuantizationType) -> None:
    weight = weight_of(kind)
    raw = np.frombuffer(types.encode(weight, kind).tobytes(), np.uint8)
    assert raw.size == types.nbytes(SHAPE, kind)
    assert (types.TYPES[kind].block, types.TYPES[kind].nbytes) == GGML_QUANT_SIZES[kind]
    read = np.asarray(dequantize(raw.reshape(SHAPE[0], -1), kind), np.float32)
    np.testing.assert_array_equal(read, types.floats(weight))


@pytest.mark.parametrize("kind", types.TYPES, ids=lambda kind: kind.name)
def test_a_type_is_the_choice_for_its_own_weight(kind: GGMLQuantizationType) -> None:
    assert types.choose(weight_of(kind)) == kind


@pytest.mark.parametrize("kind", types.TYPES, ids=lambda kind: kind.name)
def test_what_is_read_without_rounding(kind: GGMLQuantizationType) -> None:
    weight = weight_of(kind)
    raw = np.frombuffer(types.encode(weight, kind).tobytes(), np.uint8).reshape(SHAPE[0], -1)
    if types.TYPES[kind].grid is None:
        np.testing.assert_array_equal(types.floats(types.decode(raw, kind)), types.floats(weight))
    else:
        with pytest.raises(SchemeError):
            types.decode(raw, kind)


def test_numbers_without_a_type_are_refused() -> None:
    with pytest.raises(SchemeError, match="not of type float64"):
        types.choose(np.ones((2, 32)))
    with pytest.raises(SchemeError, match="IQ4_NL blocks cannot be read"):
        types.decode(np.zeros((2, 18), np.uint8), Kind.IQ4_NL)
