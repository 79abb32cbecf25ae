"""Packed words equal compressed-tensors' own, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given
from hypothesis import strategies as st

from zeropoint.artifact.packing import pack, unpack
from zeropoint.errors import SchemeError


@given(
    bits=st.integers(2, 7),
    axis=st.sampled_from([0, 1]),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 100)),
    seed=st.integers(0, 10**6),
)
def test_words_are_compressed_tensors_words(bits: int, axis: int, shape: tuple[int, int], seed: int) -> None:
    low = -(1 << (bits - 1))
    codes = np.random.default_rng(seed).integers(low, -low, shape).astype(np.int8)
    codes.flat[0], codes.flat[-1] = low, -low - 1
    theirs = pack_to_int32(torch.from_numpy(codes), bits, packed_dim=axis)
    ours = pack(codes, bits, axis=axis)
    np.testing.assert_array_equal(ours, theirs.numpy())
    np.testing.assert_array_equal(unpack(ours, bits, shape[axis], axis=axis), codes)
    back = unpack_from_int32(torch.from_numpy(ours), bits, torch.Size(shape), packed_dim=axis)
    np.testing.assert_array_equal(back.numpy(), codes)


def test_too_few_words_are_refused() -> None:
    with pytest.raises(SchemeError, match="take 2 words"):
        unpack(np.zeros((2, 1), np.int32), 4, 9)
