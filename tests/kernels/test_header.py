"""Every constant, struct and function of native/include/zeropoint.h that Python repeats agrees with the header."""

from __future__ import annotations

import ctypes
import re
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest

from zeropoint.kernels import library
from zeropoint.models.spec import Activation, LinearSlot, NormKind, NormSlot, Rope
from zeropoint.runtime.native import library as decoder

HEADER = re.sub(
    r"/\*.*?\*/",
    "",
    (Path(__file__).parents[2] / "native" / "include" / "zeropoint.h").read_text(encoding="utf-8"),
    flags=re.DOTALL,
)
TYPES = {
    "int8_t": ctypes.c_int8,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "int64_t": ctypes.c_int64,
    "size_t": ctypes.c_size_t,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "zp_status": ctypes.c_int32,
    "void": None,
}


def constants() -> dict[str, int]:
    """Return every enum constant of the header by name."""
    values: dict[str, int] = {}
    for body in re.findall(r"enum \{(.*?)\}", HEADER, re.DOTALL):
        value = 0
        for entry in filter(None, map(str.strip, body.split(","))):
            name, _, number = entry.partition("=")
            value = int(number) if number else value
            values[name.strip()] = value
            value += 1
    return values


def struct(name: str) -> list[tuple[str, str]]:
    """Return `(field name, C type)` of each field of a struct."""
    found = re.search(rf"typedef struct \{{([^}}]*)\}} {name};", HEADER)
    assert found is not None
    fields = []
    for line in filter(None, map(str.strip, found.group(1).split(";"))):
        type_name, _, names = line.removeprefix("const ").partition(" ")
        fields += [(each.strip(), type_name) for each in names.split(",")]
    return fields


CONSTANTS = constants()


def prefixed(prefix: str, *names: str) -> dict[str, int]:
    """Return the constants `prefix + name` by name."""
    return {name: CONSTANTS[prefix + name] for name in names}


def test_every_python_constant_is_the_headers() -> None:
    version = re.search(r"#define ZP_ABI_VERSION (\d+)", HEADER)
    assert version is not None
    assert int(version.group(1)) == library.ABI_VERSION
    assert [CONSTANTS[f"ZP_{name.upper()}"] for name in library.ISA_NAMES] == list(
        range(CONSTANTS["ZP_ISA_COUNT"])
    )
    for name in ("INTEGER", "ACTIVATION_FLOAT", "INVALID", "UNSUPPORTED", "NO_MEMORY"):
        assert getattr(library, name) == CONSTANTS[f"ZP_{name}"], name
    scales = {"fp32": "FLOAT32", "bf16": "BFLOAT16", "nested": "NESTED"}
    assert {n: CONSTANTS[f"ZP_SCALE_{scales[n]}"] for n in library.SCALE_TYPES} == library.SCALE_TYPES
    assert {n: CONSTANTS[f"ZP_{n.upper()}"] for n in decoder.FLOAT_KINDS} == decoder.FLOAT_KINDS
    assert CONSTANTS["ZP_PAGE"] == decoder.PAGE
    assert {n: CONSTANTS[f"ZP_CACHE_{n.upper()}"] for n in decoder.CACHE_TYPES} == decoder.CACHE_TYPES


@pytest.mark.parametrize(
    ("python", "prefix", "suffix", "count"),
    [
        (NormKind, "ZP_NORM_", "", 2),
        (Rope, "ZP_ROPE_", "", 3),
        (Activation, "ZP_", "", 4),
        (LinearSlot, "ZP_", "", CONSTANTS["ZP_LINEAR_COUNT"]),
        (NormSlot, "ZP_", "_NORM", CONSTANTS["ZP_NORM_COUNT"]),
    ],
)
def test_every_python_enum_is_the_headers(
    python: type[IntEnum], prefix: str, suffix: str, count: int
) -> None:
    assert {each.name: CONSTANTS[f"{prefix}{each.name}{suffix}"] for each in python} == {
        each.name: each.value for each in python
    }
    assert len(python) == count


@pytest.mark.parametrize(
    ("python", "name"),
    [
        (library.Format, "zp_format"),
        (library.Groups, "zp_groups"),
        (library.Sampling, "zp_sampling"),
        (decoder.Configuration, "zp_decoder_config"),
    ],
)
def test_every_python_struct_is_the_headers(python: type[ctypes.Structure], name: str) -> None:
    expected = [
        (field.lstrip("*"), ctypes.c_void_p if "*" in field + type_name else TYPES[type_name])
        for field, type_name in struct(name)
    ]
    assert [tuple(field) for field in python._fields_] == expected


def test_the_rows_of_divergences_are_the_headers() -> None:
    row = library.DIVERGENCE_ROW
    assert row.fields is not None
    assert [(name, np.ctypeslib.as_ctypes_type(row.fields[name][0])) for name in row.names or ()] == [
        (name, TYPES[type_name]) for name, type_name in struct("zp_divergence_row")
    ]


@pytest.mark.parametrize("name", [*library._SIGNATURES, *decoder._SIGNATURES])
def test_every_python_signature_is_the_headers(name: str) -> None:
    found = re.search(rf"ZP_API ([^;]*?)\b{name}\(([^;]*?)\);", HEADER)
    assert found is not None
    result, arguments = {**library._SIGNATURES, **decoder._SIGNATURES}[name]
    declared = found.group(1).strip()
    if declared == "const char*":
        assert result is ctypes.c_char_p
    else:
        assert result is (ctypes.c_void_p if "*" in declared else TYPES[declared])
    parameters = [text.strip() for text in found.group(2).split(",") if text.strip() != "void"]
    assert len(parameters) == len(arguments)
    for text, argument in zip(parameters, arguments, strict=True):
        if "*" in text:  # an address, or ctypes' pointer to a struct or to an output
            assert argument is ctypes.c_void_p or hasattr(argument, "contents"), text
        else:
            assert argument is TYPES[text.split()[0]], text


def test_every_function_of_the_header_is_declared() -> None:
    functions = set(re.findall(r"\b(zp_\w+)\(", HEADER))
    assert functions == {*library._SIGNATURES, *decoder._SIGNATURES}
