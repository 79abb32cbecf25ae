"""Sizes beyond any memory, and threads that the system refuses: an error of the library's, never the process's end."""

from __future__ import annotations

import ctypes
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zeropoint.errors import ZeropointError
from zeropoint.kernels import library
from zeropoint.runtime.native import library as native
from zeropoint.runtime.native import store
from zeropoint.runtime.native.packed_weights import Packed

LIBRARY = native.load()
HEAD = struct.Struct("<16sQQQ")

#: Products of these with each other, and with the bytes of a row, wrap around in 64 bits, some to a small number.
ODD = (2**31, 2**32 + 1, 2**40 + 1, 2**58, 2**59 + 16, 2**60, 2**62, 2**63 - 64, 2**63 - 1, -1, -(2**63), 0)

FORMATS: dict[str, dict[str, int]] = {
    "int8": {"bits": 8, "activation": -1},
    "int8 input": {"bits": 8, "activation_bits": 8},
    "int4 groups": {"bits": 4, "group_size": 32, "activation": -1, "scale_type": 1},
    "int4 nested": {"bits": 4, "group_size": 32, "activation": 32, "activation_bits": 8, "scale_type": 2},
    "int5 zero points": {"bits": 5, "group_size": 32, "asymmetric": 1, "activation": -1},
    "int8 one scale": {"bits": 8, "per_tensor": 1, "activation_bits": 16},
    "float16": {"kind": 1},
    "bfloat16": {"kind": 2},
    "float32": {"kind": 3},
}
EVERY = pytest.mark.parametrize("fields", FORMATS.values(), ids=FORMATS)


def aligned(count: int) -> native.Bytes:
    raw = np.zeros(count + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:count]


def made(fields: dict[str, int], rows: int = 16, columns: int = 64) -> native.Weight:
    """A weight of ones."""
    form, address = library.Format(rows=rows, columns=columns, **fields), ctypes.c_void_p()
    if fields.get("kind", 0):
        values = np.ones((rows, columns), {1: np.float16, 2: np.uint16, 3: np.float32}[fields["kind"]])
        library.check(LIBRARY.zp_pack_float(ctypes.byref(form), values.ctypes.data, ctypes.byref(address)))
    else:
        codes, zeros = np.ones((rows, columns), np.int8), np.zeros((rows, columns), np.int8)
        scale = np.ones((rows, columns), np.float32)
        zero = zeros.ctypes.data if fields.get("asymmetric") else None
        status = LIBRARY.zp_pack(
            ctypes.byref(form), codes.ctypes.data, scale.ctypes.data, zero, ctypes.byref(address)
        )
        library.check(status)
    assert address.value is not None
    return native.Weight(address.value, form)


@EVERY
def test_a_view_of_more_than_its_memory_is_refused(fields: dict[str, int]) -> None:
    memory = aligned(1 << 16)
    shapes = [(odd, columns) for odd in ODD for columns in (32, 64, 4096)]
    shapes += [(columns, odd) for odd in ODD for columns in (16, 64, 4096)]
    shapes += [(one, other) for one in ODD for other in ODD]
    for rows, columns in shapes:
        with pytest.raises(ZeropointError) as refusal:
            native.view(library.Format(rows=rows, columns=columns, **fields), memory)
        assert "\n" not in str(refusal.value)


@EVERY
def test_a_view_needs_every_byte_and_no_more(fields: dict[str, int]) -> None:
    weight = made(fields)
    memory = aligned(weight.nbytes + 64)
    memory[: weight.nbytes] = weight.memory
    ids, out = np.arange(16), np.empty((2, 16, 64), np.float32)
    for which, each in enumerate((weight, native.view(weight.format, memory[: weight.nbytes]))):
        library.check(LIBRARY.zp_rows(each.address, ids.ctypes.data, 16, out[which].ctypes.data, 64))
    np.testing.assert_array_equal(out[0], out[1])
    for size in (0, 1, weight.nbytes // 2, weight.nbytes - 1):
        with pytest.raises(ZeropointError):
            native.view(weight.format, memory[:size])
    for rows, columns in ((32, 64), (16, 128), (17, 64), (16, 96), (1 << 20, 64)):
        with pytest.raises(ZeropointError):
            native.view(library.Format(rows=rows, columns=columns, **fields), memory[: weight.nbytes])


def wrapping(block: int) -> int:
    """A number of blocks above 2^50 whose `block` bytes each add up to less than 32 MiB in 64 bits."""
    twos = (block & -block).bit_length() - 1
    period = 1 << (64 - twos)
    inverse = pow(block >> twos, -1, period)
    for small in range(1025, 9999):
        for blocks in (small * inverse % period, small * inverse % period + period):
            if blocks >> 50 and not blocks >> 58:
                return blocks
    raise AssertionError("no such number")


@EVERY
def test_a_size_that_wraps_around_to_that_of_the_memory_is_refused(fields: dict[str, int]) -> None:
    block = made(fields, rows=32).nbytes - made(fields, rows=16).nbytes
    blocks = wrapping(block)
    size = blocks * block % (1 << 64)
    form = library.Format(rows=16 * blocks, columns=64, **fields)
    memory = aligned(size + 256)
    for more in range(-256, 257, 64):
        with pytest.raises(ZeropointError):
            native.view(form, memory[: size + more])


@EVERY
def test_packing_odd_sizes_is_refused_before_a_value_is_read(fields: dict[str, int]) -> None:
    values, address = np.ones(64, np.float32), ctypes.c_void_p()
    for rows, columns in [(odd, 64) for odd in ODD] + [(16, odd) for odd in ODD] + [(o, o) for o in ODD]:
        form = library.Format(rows=rows, columns=columns, **fields)
        # the others are within the bound of 2^40 values, and would be read beyond this array
        if rows * columns > 2**40 or rows <= 0 or columns <= 0:
            at = values.ctypes.data
            if fields.get("kind", 0):
                status = LIBRARY.zp_pack_float(ctypes.byref(form), at, ctypes.byref(address))
            else:
                zero = at if fields.get("asymmetric") else None
                status = LIBRARY.zp_pack(ctypes.byref(form), at, at, zero, ctypes.byref(address))
            assert status != 0, (rows, columns)
            assert address.value is None
            assert LIBRARY.zp_last_error()


@EVERY
def test_rows_that_there_are_not_are_refused(fields: dict[str, int]) -> None:
    weight, out = made(fields), np.full((4, 64), 7, np.float32)
    for junk in (16, -1, 2**31, 2**32, 2**58, 10**10, 2**63 - 1, -(2**63)):
        ids = np.array([0, junk, 1, 15], np.int64)
        assert LIBRARY.zp_rows(weight.address, ids.ctypes.data, 4, out.ctypes.data, 64) != 0
    ids = np.arange(4)
    for count in (-1, -(2**63), 2**41, 2**62, 2**63 - 1):
        assert LIBRARY.zp_rows(weight.address, ids.ctypes.data, count, out.ctypes.data, 64) != 0, count
    for stride in (63, 0, -64, -(2**63)):
        assert LIBRARY.zp_rows(weight.address, ids.ctypes.data, 4, out.ctypes.data, stride) != 0, stride
    library.check(LIBRARY.zp_rows(weight.address, ids.ctypes.data, 4, out.ctypes.data, 64))


#: Where 32 and 64 bits end. With WIDE of something, each is more than 2^40 values.
ENDS = (2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**62, 2**63 - 1, -1, -(2**31), -(2**63))
WIDE = 1024


@pytest.mark.parametrize("size", ENDS)
def test_no_function_takes_such_a_size(size: int) -> None:
    lib, weight = LIBRARY, made(FORMATS["int8 input"], WIDE, WIDE)
    w, at = weight.address, aligned(1 << 16).ctypes.data
    tall, broad = library.Groups(at, size, WIDE, WIDE, -8, 7), library.Groups(at, WIDE, size, 8, -8, 7)
    square, one = library.Groups(at, 1, size, 8, -8, 7), library.Groups(at, WIDE, 1, 1, -8, 7)
    rate = ctypes.c_double()
    refused = {
        "linear: rows": lib.zp_linear(w, at, size, WIDE, None, at, WIDE, 1),
        "linear: x_stride": lib.zp_linear(w, at, WIDE, size, None, at, WIDE, 1),
        "linear: y_stride": lib.zp_linear(w, at, WIDE, WIDE, None, at, size, 1),
        "quantize: rows": lib.zp_quantize(w, at, size, WIDE, at, 1),
        "quantize: x_stride": lib.zp_quantize(w, at, WIDE, size, at, 1),
        "multiply: rows": lib.zp_multiply(w, at, size, None, at, WIDE, 1),
        "multiply: y_stride": lib.zp_multiply(w, at, WIDE, None, at, size, 1),
        "rows: count": lib.zp_rows(w, at, size, at, WIDE),
        "rows: out_stride": lib.zp_rows(w, at, WIDE, at, size),
        "divergence: rows": lib.zp_divergence(at, WIDE, at, WIDE, at, size, WIDE, at, 1),
        "divergence: count": lib.zp_divergence(at, WIDE, at, WIDE, at, 1, size, at, 1),
        "divergence: p_stride": lib.zp_divergence(at, size, at, WIDE, at, WIDE, WIDE, at, 1),
        "divergence: q_stride": lib.zp_divergence(at, WIDE, at, size, at, WIDE, WIDE, at, 1),
        "grid_errors: grids": lib.zp_grid_errors(ctypes.byref(one), at, size, at, None, at, 1),
    }
    for name, groups in {"rows": tall, "columns": broad}.items():
        by = ctypes.byref(groups)
        refused |= {
            f"grid_search: {name}": lib.zp_grid_search(by, at, at, 1, at, at, at, None, 1),
            f"grid_errors: {name}": lib.zp_grid_errors(by, at, 1, at, None, at, 1),
            f"round_columns: {name}": lib.zp_round_columns(by, at, None, at, at, at, 1),
            f"descend_columns: {name}": lib.zp_descend_columns(by, at, None, at, 1, at, 1),
        }
    by = ctypes.byref(square)
    refused["round_columns: square"] = lib.zp_round_columns(by, at, None, at, at, at, 1)
    refused["descend_columns: square"] = lib.zp_descend_columns(by, at, None, at, 1, at, 1)
    view = ctypes.c_void_p()
    refused["view: bytes"] = lib.zp_view(ctypes.byref(weight.format), at, size, ctypes.byref(view))
    if not 0 < size <= 2**40:
        refused["read_bandwidth: bytes"] = lib.zp_read_bandwidth(size, 1, 1, ctypes.byref(rate))
        by = ctypes.byref(library.Groups(at, 1, 8, size, -8, 7))
        refused["grid_search: group_size"] = lib.zp_grid_search(by, at, at, 1, at, at, at, None, 1)
    assert [name for name, status in refused.items() if status == 0] == []
    assert lib.zp_input_bytes(w, size) == 0


@pytest.mark.parametrize("size", [*ENDS, 2**63, 2**64 - 64, 2**64, 2**64 + 64, 2**32 + 8])
def test_no_number_of_a_packed_files_index_is_trusted(size: int, tmp_path: Path) -> None:
    weight = made(FORMATS["int8"])
    path = tmp_path / "x.packed"
    store.write(path, "key", [Packed("w", None, weight)])
    whole = path.read_bytes()
    _, at, length, _ = HEAD.unpack_from(whole)
    index = json.loads(whole[at : at + length])
    assert list(store.read(path, "key").weights) == [("w", None)]

    def rewrite(entry: dict[str, Any]) -> None:
        text = json.dumps({**index, "entries": [{**index["entries"][0], **entry}]}).encode()
        path.write_bytes(
            HEAD.pack(store.MAGIC, at, len(text), zlib.crc32(text)) + whole[HEAD.size : at] + text
        )

    form = index["entries"][0]["format"]
    changes = [{"at": size}, {"bytes": size}, {"at": size, "bytes": size}, {"sum": size}]
    flags = ("per_tensor", "asymmetric")  # any number but 0 is true
    for i, (name, _) in enumerate(library.Format._fields_):
        if name not in flags and form[i] != size:
            changes.append({"format": [*form[:i], size, *form[i + 1 :]]})
    for change in changes:
        rewrite(change)
        with pytest.raises(store.StoreError):
            store.read(path, "key")
    if 0 <= size < 2**64:
        for head in ((size, length), (at, size), (size, size)):
            path.write_bytes(HEAD.pack(store.MAGIC, *head, 0) + whole[HEAD.size :])
            with pytest.raises(store.StoreError):
                store.read(path, "key")


LIMITED = """
import ctypes, resource, sys, numpy as np
from zeropoint.kernels import library
from zeropoint.runtime.native import library as native
lib = native.load()
kind, rows, columns, tokens, room, threads = sys.argv[1], *map(int, sys.argv[2:])
form = library.Format(rows=rows, columns=columns)
weight = ctypes.c_void_p()
if kind == "int8":
    form.bits = form.activation_bits = 8
    codes, scale = np.ones((rows, columns), np.int8), np.ones((rows, 1), np.float32)
    library.check(lib.zp_pack(ctypes.byref(form), codes.ctypes.data, scale.ctypes.data, None, ctypes.byref(weight)))
else:
    form.kind, values = 3, np.ones((rows, columns), np.float32)
    library.check(lib.zp_pack_float(ctypes.byref(form), values.ctypes.data, ctypes.byref(weight)))
x = np.ones((tokens, columns), np.float32)
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
unlimited = resource.getrlimit(resource.RLIMIT_AS)
for turn in range(3):  # refused; refused again on the pool that was left; allowed
    y = np.zeros((tokens, rows), np.float32)
    limit = taken + (room << 20), unlimited[1]
    resource.setrlimit(resource.RLIMIT_AS, limit if turn < 2 else unlimited)
    status = lib.zp_linear(weight, x.ctypes.data, tokens, columns, None, y.ctypes.data, rows, threads)
    if status == 0:
        assert abs(y - columns).max() < columns / 1000, f"the product is off by {abs(y - columns).max()}"
    else:
        assert lib.zp_last_error(), "an error without a sentence"
        assert turn < 2, "an error without a limit"
    print("status", status)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits on address space are Linux's")
@pytest.mark.parametrize(
    ("kind", "rows", "columns", "tokens", "room", "threads"),
    [
        ("int8", 4096, 256, 4, 12, 64),  # room for one stack of 8 MiB
        ("int8", 512, 256, 33, 40, 256),
        ("float32", 1024, 256, 4, 12, 256),
        ("float32", 1024, 256, 1, 4, 8),  # for none
    ],
)
def test_a_thread_that_is_refused_ends_no_process(
    kind: str, rows: int, columns: int, tokens: int, room: int, threads: int
) -> None:
    arguments: list[Any] = [kind, rows, columns, tokens, room, threads]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "status 0"
    assert done.stdout.count("status") == 3
