"""The table of number types agrees with numpy, torch and safetensors; arrays and tensors convert exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from zeropoint import dtypes, tensors
from zeropoint.dtypes import DTYPES, Dtype
from zeropoint.files import safetensors_file


@pytest.mark.parametrize("dtype", DTYPES, ids=[each.name for each in DTYPES])
def test_a_type_has_one_size_and_one_name_everywhere(dtype: Dtype, tmp_path: Path) -> None:
    assert dtype.numpy().name == dtype.name
    assert dtype.numpy().itemsize == dtype.nbytes == tensors.torch_dtype(dtype).itemsize
    assert dtype.is_float == tensors.torch_dtype(dtype).is_floating_point
    values = np.array([[0, 1], [1, 0]]).astype(dtype.numpy())
    safetensors_file.write(tmp_path / "x", {"w": values})
    file = safetensors_file.TensorFile(tmp_path / "x")
    assert file.info("w") == (dtype.stored, (2, 2))
    assert safetensors_file.dtype_name(values.dtype) == dtype.stored
    tensor = tensors.to_torch(file.read("w"))
    assert tensor.dtype == tensors.torch_dtype(dtype)
    np.testing.assert_array_equal(tensors.to_numpy(tensor), values)


def test_the_tables_have_every_type() -> None:
    assert len(dtypes.BY_NAME) == len(dtypes.BY_STORED) == len(DTYPES)
    assert set(dtypes.BY_FORMAT) == {"fp16", "bf16", "fp32"}


def test_a_tensor_without_axes_and_a_read_only_array_convert() -> None:
    assert tensors.to_torch(np.array(2.5, np.float32)).shape == ()
    frozen = np.ones(2, np.float32)
    frozen.flags.writeable = False
    assert torch.equal(tensors.to_torch(frozen), torch.ones(2))
