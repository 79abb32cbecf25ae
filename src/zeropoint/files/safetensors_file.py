"""Reading and writing safetensors files as numpy arrays, bfloat16 included, one tensor at a time.

Source checkpoints and artifacts share `TensorFile`; the caller names the error class to raise. The safetensors library
limits headers to 100 MB and checks that the tensors' offsets cover the file without gaps or overlaps.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from zeropoint import dtypes
from zeropoint.errors import CheckpointError, ZeropointError, reason

logger = logging.getLogger(__name__)

#: safetensors' dtype names -> numpy dtypes, for the types that a weight can have.
DTYPES: dict[str, np.dtype[Any]] = {dtype.stored: dtype.numpy() for dtype in dtypes.DTYPES}

#: Bytes to read before a file is opened anew: read pages of a mapped file count as process memory until it is closed.
MOST_MAPPED = 64 << 20


class TensorFile:
    """One open safetensors file. A tensor's data is read by `read`, not when the file is opened.

    Raises `error` (a `ZeropointError` class) if the file is missing, truncated or not safetensors.
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
                f"{path} is truncated or not a safetensors file ({reason(cause)}): download or copy it again"
            ) from cause

    def names(self) -> list[str]:
        """Return the tensor names, in file order."""
        return list(self._names)

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Return `(safetensors dtype name, shape)` of a tensor, from the header."""
        view = self._slice(name)
        return str(view.get_dtype()), tuple(int(n) for n in view.get_shape())

    def nbytes(self, name: str) -> int:
        """Return the bytes of a tensor's data. Raises the file's error class for an unsupported dtype."""
        dtype, shape = self.info(name)
        if dtype not in DTYPES:
            raise self._error(f"{self.path.name}: tensor {name} has the type {dtype}, which is not supported")
        return math.prod(shape) * DTYPES[dtype].itemsize

    def read(self, name: str) -> NDArray[Any]:
        """Return a tensor as a numpy array that owns its data."""
        nbytes = self.nbytes(name)
        try:
            if self._read_since_open + nbytes > MOST_MAPPED:
                self._file, self._read_since_open = safe_open(self.path, framework="np"), 0
            self._read_since_open += nbytes
            return np.asarray(self._file.get_tensor(name))
        except (SafetensorError, OSError, ValueError, TypeError) as cause:
            raise self._error(f"{self.path.name}: tensor {name} cannot be read ({reason(cause)})") from cause

    def _slice(self, name: str) -> Any:
        try:
            return self._file.get_slice(name)
        except (SafetensorError, KeyError) as cause:
            raise self._error(f"{self.path.name} has no tensor {name}") from cause


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return safetensors' name of a dtype, or numpy's name if safetensors has none."""
    known = dtypes.BY_NAME.get(dtype.name)
    return str(dtype) if known is None else known.stored


def write(path: Path, tensors: Mapping[str, NDArray[Any]]) -> int:
    """Write one safetensors file and return the bytes of its tensors. The file's bytes depend on the tensors only.

    The metadata names the format "pt", which transformers requires. Raises `OSError` if the file cannot be written.
    """
    contiguous = {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in tensors.items()}
    try:
        save_file(contiguous, path, metadata={"format": "pt"})
    except SafetensorError as cause:
        # The library wraps OS errors; callers recognize a full disk by its errno.
        raise OSError(_errno_of(cause), reason(cause)) from cause
    path.chmod(0o644)  # the library makes files private
    return sum(value.nbytes for value in contiguous.values())


def digest(paths: list[Path]) -> str:
    """Return the sha256 over the files' names and bytes, in name order. Files are read in pieces."""
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        total.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                total.update(piece)
    return total.hexdigest()


def _errno_of(cause: Exception) -> int:
    """Return the number in the text "os error N" of an error, or 5 (EIO) without one."""
    text = str(cause)
    marker = "os error "
    number = text[text.find(marker) + len(marker) :].split(")")[0] if marker in text else ""
    return int(number) if number.isdigit() else 5
