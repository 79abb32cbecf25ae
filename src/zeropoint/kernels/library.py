"""The native library `libzeropoint.so` (macOS: `.dylib`): find it, check its version, declare its functions in ctypes.

Every call releases the interpreter lock (`ctypes.CDLL`). native/include/zeropoint.h documents the functions.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import (
    POINTER,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import SchemeError, UnsupportedError, ZeropointError
from zeropoint.values.scheme import Scheme

ABI_VERSION = 3
ISA_NAMES = ("scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "dotprod", "i8mm")
FILE_NAME = "libzeropoint.dylib" if sys.platform == "darwin" else "libzeropoint.so"

#: Constants of the header, which tests/kernels/test_header.py compares: `ZP_INTEGER`, `ZP_ACTIVATION_FLOAT`, the errors
#: of `zp_status`, and `ZP_SCALE_...`. fp16 scales are packed as float32.
INTEGER, ACTIVATION_FLOAT = 0, -1
INVALID, UNSUPPORTED, NO_MEMORY = 1, 2, 3
SCALE_TYPES = {"fp32": 0, "bf16": 1, "nested": 2}


class Format(ctypes.Structure):
    """`zp_format` of native/include/zeropoint.h, which documents the fields."""

    _fields_ = (
        ("rows", c_int64),
        ("columns", c_int64),
        ("kind", c_int32),
        ("bits", c_int32),
        ("group_size", c_int32),
        ("per_tensor", c_int32),
        ("asymmetric", c_int32),
        ("activation", c_int32),
        ("activation_bits", c_int32),
        ("scale_type", c_int32),
    )


class Groups(ctypes.Structure):
    """`zp_groups` of native/include/zeropoint.h."""

    _fields_ = (
        ("weight", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("group_size", c_int64),
        ("qmin", c_int32),
        ("qmax", c_int32),
    )


class Sampling(ctypes.Structure):
    """`zp_sampling` of native/include/zeropoint.h."""

    _fields_ = (
        ("top_p", c_double),
        ("min_p", c_double),
        ("top_k", c_int64),
        ("seed", c_uint64),
        ("number", c_uint64),
        ("mask", c_void_p),
        ("temperature", c_float),
    )


#: `zp_divergence_row` of native/include/zeropoint.h.
DIVERGENCE_ROW = np.dtype(
    [("divergence", "f8"), ("p_loss", "f8"), ("q_loss", "f8"), ("agrees", "i4")], align=True
)

_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "zp_abi_version": (c_int32, []),
    "zp_last_error": (c_char_p, []),
    "zp_check": (c_int32, [POINTER(Format)]),
    "zp_pack": (c_int32, [POINTER(Format), c_void_p, c_void_p, c_void_p, POINTER(c_void_p)]),
    "zp_unpack": (c_int32, [c_void_p, c_void_p, c_void_p, c_void_p]),
    "zp_free": (None, [c_void_p]),
    "zp_weight_bytes": (c_size_t, [c_void_p]),
    "zp_linear": (
        c_int32,
        [c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_int32],
    ),
    "zp_input_bytes": (c_size_t, [c_void_p, c_int64]),
    "zp_quantize": (c_int32, [c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int32]),
    "zp_multiply": (
        c_int32,
        [c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_int32],
    ),
    "zp_rows": (c_int32, [c_void_p, c_void_p, c_int64, c_void_p, c_int64]),
    "zp_divergence": (
        c_int32,
        [c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_int32],
    ),
    "zp_grid_search": (
        c_int32,
        [POINTER(Groups), c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_int32],
    ),
    "zp_grid_errors": (
        c_int32,
        [POINTER(Groups), c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_int32],
    ),
    "zp_round_columns": (
        c_int32,
        [POINTER(Groups), c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int32],
    ),
    "zp_descend_columns": (
        c_int32,
        [POINTER(Groups), c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_int32],
    ),
    "zp_sample": (c_int32, [c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_int32]),
    "zp_score": (
        c_int32,
        [c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int32, c_void_p, c_void_p, c_void_p, c_int32],
    ),
    "zp_isa_levels": (c_uint32, []),
    "zp_isa_active": (c_int32, []),
    "zp_isa_select": (c_int32, [c_int32]),
    "zp_read_bandwidth": (c_int32, [c_size_t, c_int32, c_int32, POINTER(c_double)]),
}


def _candidates() -> Iterator[Path]:
    """Yield the paths where the library may be."""
    yield Path(__file__).parent / "_native" / FILE_NAME
    for entry in sys.path:  # an editable install keeps built files in site-packages
        yield Path(entry or ".") / "zeropoint" / "kernels" / "_native" / FILE_NAME


@cache
def load() -> ctypes.CDLL:
    """Return the library, loaded once. Raises `UnsupportedError` if it is missing or of another version."""
    path = next((p for p in _candidates() if p.is_file()), None)
    if path is None:
        raise UnsupportedError(
            f"the native kernels ({FILE_NAME}) are not installed; build them with `pip install .`"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UnsupportedError(f"the native kernels {path} do not load: {error}") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name, None)
        if function is None:
            raise UnsupportedError(f"the native kernels {path} lack {name}: rebuild with `pip install .`")
        function.restype = result
        function.argtypes = arguments
    if library.zp_abi_version() != ABI_VERSION:
        raise UnsupportedError(
            f"the native kernels {path} are of another version: rebuild with `pip install .`"
        )
    return library


@cache
def digest() -> str:
    """Return the sha256 of the library's file, as hex. Timings of one build do not hold for another."""
    import hashlib

    return hashlib.sha256(Path(load()._name).read_bytes()).hexdigest()


def missing() -> str | None:
    """Return why the native kernels cannot be used here, or `None`."""
    try:
        library = load()
    except UnsupportedError as error:
        return str(error)
    return None if library.zp_isa_active() >= 0 else _message(library)


def _message(library: ctypes.CDLL) -> str:
    """Return the message of this thread's last error."""
    message: bytes = library.zp_last_error()
    return message.decode()


def check(status: int) -> None:
    """Raise the library's error unless `status` is 0.

    Raises `SchemeError` (`INVALID`), `UnsupportedError`, `MemoryError` or, for any other status, `ZeropointError`.
    """
    if status == 0:
        return
    message = _message(load())
    if status == NO_MEMORY:
        raise MemoryError(message)
    raise {INVALID: SchemeError, UNSUPPORTED: UnsupportedError}.get(status, ZeropointError)(message)


def groups(weight: NDArray[np.float32], scheme: Scheme) -> Groups:
    """Return the `zp_groups` of a contiguous weight `[out, in]`, which must outlive it.

    A scheme without groups has one group per row here, also if it has one scale per tensor.
    """
    rows, columns = weight.shape
    size = scheme.group_size if scheme.granularity == "group" else columns
    return Groups(weight.ctypes.data, rows, columns, size, scheme.qmin, scheme.qmax)


def require_shape(name: str, array: NDArray[np.generic], shape: tuple[int, ...]) -> None:
    """Raise `SchemeError` unless an array has this shape, which the library reads unchecked."""
    if array.shape != shape:
        raise SchemeError(f"{name} must be of shape {shape}, not {array.shape}")


def isa_levels() -> tuple[str, ...]:
    """Return the instruction set levels that this machine can run, slowest first; empty without the native library."""
    try:
        levels = load().zp_isa_levels()
    except UnsupportedError:
        return ()
    return tuple(name for i, name in enumerate(ISA_NAMES) if levels >> i & 1)


def active_isa() -> str:
    """Return the level in use. Raises `UnsupportedError` if `ZEROPOINT_ISA` names a level that cannot run here."""
    library = load()
    level = library.zp_isa_active()
    if level < 0:
        raise UnsupportedError(_message(library))
    return ISA_NAMES[level]


def select_isa(name: str) -> None:
    """Select the instruction set level of the whole process.

    Raises `UnsupportedError` for an unknown level, for one that this machine cannot run, and while another thread
    computes.
    """
    if name not in ISA_NAMES:
        raise UnsupportedError(f"{name!r} is no instruction set level: use {', '.join(ISA_NAMES)}")
    check(load().zp_isa_select(ISA_NAMES.index(name)))


@contextmanager
def level(name: str) -> Iterator[None]:
    """Select an instruction set level for the body of a `with` statement. Raises the errors of `select_isa`."""
    before = active_isa()
    select_isa(name)
    try:
        yield
    finally:
        select_isa(before)


def read_bandwidth(num_bytes: int = 1 << 30, threads: int = 1, repeats: int = 3) -> float:
    """Return the memory bandwidth of `threads` threads that read `num_bytes`, in bytes per second: the best repeat."""
    rate = c_double()
    check(load().zp_read_bandwidth(num_bytes, threads, repeats, ctypes.byref(rate)))
    return rate.value
