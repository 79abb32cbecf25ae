"""Torch's number types, and the conversion between numpy arrays and torch tensors."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from zeropoint.dtypes import Dtype


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """Return torch's type of the same numbers."""
    found: torch.dtype = getattr(torch, dtype.name)
    return found


def to_torch(array: NDArray[Any]) -> torch.Tensor:
    """Return a torch tensor with the values of a numpy array, in the same memory if torch can use that.

    bfloat16 is converted through its bits.
    """
    array = np.asarray(array, order="C")
    if not array.flags.writeable:
        array = array.copy()
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a numpy array with the values of a tensor: the inverse of `to_torch`."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
