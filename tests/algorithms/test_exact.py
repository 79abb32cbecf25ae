"""Recovery of a trained grid: the codes and scales that a bfloat16 checkpoint was made from, or a refusal."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import zeropoint
from tests.kernels.weights import random_weight
from tests.support.tiny import make_checkpoint
from zeropoint import artifact
from zeropoint.algorithms import exact
from zeropoint.errors import CheckpointError, SchemeError
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import parse

SCHEMES = ["int4:g32:sym:bf16", "int4:g32:sym:fp16", "int4:g24:asym:bf16", "int2:g8:sym:fp32", "int3:channel:asym:fp32",
           "int8:channel:sym:bf16", "int4:tensor:sym:bf16"]  # fmt: skip


def run(values: np.ndarray, text: str) -> QuantizedTensor:
    return exact.quantize(values, None, parse(text), exact.Options())


@given(
    text=st.sampled_from(SCHEMES), seed=st.integers(0, 200), columns=st.integers(8, 100), half=st.booleans()
)
def test_recovers_a_weight_that_was_rounded_to_bfloat16(
    text: str, seed: int, columns: int, half: bool
) -> None:
    start = random_weight(text, (6, columns), seed=seed)
    start.codes[2] = 0
    values = start.dequantize()
    half = half and parse(text).bits < 8  # 8 bits and bfloat16: refused
    if half:
        values = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    made = run(values, text)
    again = made.dequantize()
    np.testing.assert_array_equal(again.astype(ml_dtypes.bfloat16) if half else again, values)


def test_recovers_two_level_scales() -> None:
    start = random_weight("int4:g32:nested", (8, 128), seed=1)
    start.codes[:, ::8] = 7  # each group shows its scale
    values = start.dequantize()
    np.testing.assert_array_equal(run(values, "int4:g32:nested").dequantize(), values)


@pytest.mark.parametrize("text", SCHEMES)
def test_a_weight_on_no_grid_is_refused(text: str) -> None:
    values = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    with pytest.raises(SchemeError, match=r"row 0 lies on no grid of .-bit codes"):
        run(values, text)


def test_one_weight_off_the_grid_is_found() -> None:
    values = random_weight("int4:g32:sym:bf16", (5, 96), seed=3).dequantize()
    values[4, 70] += np.float32(1e-3)
    with pytest.raises(SchemeError, match="group 2 of row 4"):
        run(values, "int4:g32:sym:bf16")
    values[0, 0] = np.nan
    with pytest.raises(CheckpointError):
        run(values, "int4:g32:sym:bf16")


def test_a_trained_checkpoint_becomes_an_exact_artifact(tmp_path: Path) -> None:
    source = make_checkpoint("llama_tied", tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    for name, value in tensors.items():
        if name.endswith("proj.weight"):
            start = random_weight("int4:g32:sym:fp16", value.shape, seed=len(name))
            tensors[name] = start.dequantize().astype(ml_dtypes.bfloat16).astype(np.float32)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    zeropoint.quantize(
        source, tmp_path / "out", format="int4:g32:sym:fp16", algorithm="exact", keep=["*embed_tokens*"]
    )
    for name, weight in artifact.open(tmp_path / "out").stream():
        if isinstance(weight, QuantizedTensor):
            np.testing.assert_array_equal(weight.dequantize().astype(ml_dtypes.bfloat16), tensors[name])
    with pytest.raises(SchemeError, match=r"embed_tokens.*--embedding keep"):
        zeropoint.quantize(source, tmp_path / "other", format="int4:g32:sym:fp16", algorithm="exact")
