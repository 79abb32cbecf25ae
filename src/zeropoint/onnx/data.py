"""The file with a graph's tensors (ONNX "external data"): a writer that appends tensors, and a checked reader."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from zeropoint.errors import ArtifactError

#: Tensors start at multiples of 64 bytes, the size of a cache line and of the widest vector register.
ALIGNMENT = 64


class DataWriter:
    """A writer that appends tensors to a new file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("xb")

    def __enter__(self) -> DataWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, name: str, values: NDArray[Any]) -> TensorProto:
        """Append a tensor. Return its ONNX description, which holds the file's name, the offset and the length."""
        self._file.write(bytes(-self._file.tell() % ALIGNMENT))
        place = {"location": self._path.name, "offset": self._file.tell(), "length": values.nbytes}
        self._file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        tensor = TensorProto(
            name=name, dims=values.shape, data_type=helper.np_dtype_to_tensor_dtype(values.dtype)
        )
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor


class DataReader:
    """A reader of a graph's external tensors, by name."""

    def __init__(self, folder: Path, tensors: Mapping[str, TensorProto]) -> None:
        self._folder = folder
        self._tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def read(self, name: str) -> NDArray[Any]:
        """Return a tensor. Raises `ArtifactError` if the graph does not have it or the file is damaged."""
        tensor = self._tensors.get(name)
        if tensor is None or tensor.data_location != TensorProto.EXTERNAL:
            raise ArtifactError(f"the graph in {self._folder} has no tensor {name}")
        place = {entry.key: entry.value for entry in tensor.external_data}
        path, dtype = self._folder / place["location"], helper.tensor_dtype_to_np_dtype(tensor.data_type)
        offset, shape = int(place["offset"]), tuple(tensor.dims)
        nbytes = math.prod(shape) * dtype.itemsize
        if path.parent != self._folder or nbytes != int(place["length"]):
            raise ArtifactError(f"{name} is not stored as its shape says")
        if offset < 0 or offset + nbytes > path.stat().st_size:
            raise ArtifactError(f"{path} is too short for {name}")
        return np.fromfile(path, dtype, nbytes // dtype.itemsize, offset=offset).reshape(shape)
