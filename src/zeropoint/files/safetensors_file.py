"""safetensors files in numpy, bfloat16 included, one tensor at a time; every failure is one sentence.

Shared by source checkpoints and artifacts, which fail with different errors: a `TensorFile` is told which
class to raise. The library's own parser bounds the header (100 MB) and checks that the offsets tile the file.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from zeropoint.errors import CheckpointError, ZeropointError

logger = logging.getLogger(__name__)

#: safetensors' dtype names and numpy's, for the types a weight can have.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


#: Bytes read before a file is opened anew: what was read of a mapped file stays in the process's memory till then.
MOST_MAPPED = 64 << 20


class TensorFile:
    """One open safetensors file. Data is read only when asked for.

    Raises `error` (a `ZeropointError` class) when the file is missing, truncated or not safetensors.
    """

    def __init__(self, path: Path, error: type[ZeropointError] = CheckpointError) -> None:
        self.path = path
        self._error = error
        self._read_since_open = 0
        try:
            self._file: Any = safe_open(path, framework="np")
            self._names = [str(name) for name in self._file.keys()]  # type: ignore[no-untyped-call] # noqa: SIM118
        except FileNotFoundError:
            raise error(f"{path} is missing: download or copy the model again") from None
        except (SafetensorError, OSError, ValueError, UnicodeDecodeError) as cause:
            raise error(
                f"{path} is truncated or not a safetensors file ({_one_line(cause)}): download or copy it again"
            ) from cause

    def names(self) -> list[str]:
        """Tensor names, in file order."""
        return list(self._names)

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """`(safetensors dtype name, shape)` from the header."""
        view = self._slice(name)
        return str(view.get_dtype()), tuple(int(n) for n in view.get_shape())

    def nbytes(self, name: str) -> int:
        """Bytes of one tensor's data. Raises the file's error for a type this release does not know."""
        dtype, shape = self.info(name)
        if dtype not in DTYPES:
            raise self._error(f"{self.path.name}: tensor {name} has the type {dtype}, which is not supported")
        return int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize

    def read(self, name: str) -> NDArray[Any]:
        """The tensor as a numpy array it owns."""
        nbytes = self.nbytes(name)
        try:
            if self._read_since_open + nbytes > MOST_MAPPED:
                self._file, self._read_since_open = safe_open(self.path, framework="np"), 0
            self._read_since_open += nbytes
            return np.asarray(self._file.get_tensor(name))
        except (SafetensorError, OSError, ValueError, TypeError) as cause:
            raise self._error(
                f"{self.path.name}: tensor {name} cannot be read ({_one_line(cause)})"
            ) from cause

    def _slice(self, name: str) -> Any:
        try:
            return self._file.get_slice(name)
        except (SafetensorError, KeyError) as cause:
            raise self._error(f"{self.path.name} has no tensor {name}") from cause


def dtype_name(dtype: np.dtype[Any]) -> str:
    """safetensors' name of a type; numpy's own for one that it has none for."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))


def write(path: Path, tensors: Mapping[str, NDArray[Any]]) -> int:
    """Write one safetensors file and return the bytes of its tensors. Same tensors, same bytes.

    The metadata names the layout "pt", which transformers insists on. `OSError` passes through.
    """
    contiguous = {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in tensors.items()}
    try:
        save_file(contiguous, path, metadata={"format": "pt"})
    except SafetensorError as cause:
        # The library wraps the operating system's errors in its own; "disk full" must stay recognizable.
        raise OSError(_errno_of(cause), _one_line(cause)) from cause
    path.chmod(0o644)  # the library's temporary file was private
    return sum(value.nbytes for value in contiguous.values())


def digest(paths: list[Path]) -> str:
    """sha256 over the files' names and bytes, in name order, read in pieces."""
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        total.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                total.update(piece)
    return total.hexdigest()


def _errno_of(cause: Exception) -> int:
    text = str(cause)
    marker = "os error "
    number = text[text.find(marker) + len(marker) :].split(")")[0] if marker in text else ""
    return int(number) if number.isdigit() else 5


def _one_line(cause: BaseException) -> str:
    return " ".join(str(cause).split())[:200]
