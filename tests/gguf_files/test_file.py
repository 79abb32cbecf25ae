"""GGUF files come back as they were written, and no number of a header leads the reader beyond the file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zeropoint.errors import CheckpointError
from zeropoint.gguf.file import GgufFile

U = gguf.GGUFValueType
INTEGERS = {
    U.UINT8: (0, 2**8 - 1), U.INT8: (-(2**7), 2**7 - 1), U.UINT16: (0, 2**16 - 1), U.INT16: (-(2**15), 2**15 - 1),
    U.UINT32: (0, 2**32 - 1), U.INT32: (-(2**31), 2**31 - 1), U.UINT64: (0, 2**64 - 1), U.INT64: (-(2**63), 2**63 - 1),
}  # fmt: skip
TEXTS = st.text("aZ0. \n\x00\u00e9\u2581\U0001f600", max_size=20)
FLOATS = st.floats(allow_nan=False)
#: (value, its type in the file)
VALUES = st.one_of(
    *(st.tuples(st.integers(*ends), st.just(kind)) for kind, ends in INTEGERS.items()),
    st.tuples(FLOATS, st.just(U.FLOAT64)),
    st.tuples(st.booleans(), st.just(U.BOOL)),
    st.tuples(TEXTS.filter(bool), st.just(U.STRING)),
    st.tuples(
        st.one_of(
            st.lists(TEXTS, min_size=1, max_size=5),
            st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5),
        ),
        st.just(U.ARRAY),
    ),
)
TENSORS = st.one_of(
    *(
        hnp.arrays(dtype, hnp.array_shapes(max_dims=4, max_side=5))
        for dtype in (np.float32, np.float16, np.int8, np.int16, np.int32)
    )
)
NAMES = st.text("abcXYZ019", min_size=1, max_size=20)
#: Where 32 and 64 bits end, and what wraps around to a small number in them.
ENDS = (2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1)


@given(
    metadata=st.dictionaries(NAMES.map("x.{}".format), VALUES, max_size=6),
    tensors=st.dictionaries(NAMES, TENSORS, max_size=4),
    alignment=st.sampled_from([8, 32, 4096]),
)
def test_what_was_written_is_read(
    metadata: dict[str, tuple[Any, U]],
    tensors: dict[str, np.ndarray],
    alignment: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    for key, (value, kind) in metadata.items():
        writer.add_array(key, value) if kind is U.ARRAY else writer.add_key_value(key, value, kind)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    read = {key: file.metadata[key] for key in metadata}  # lists of texts are lists, lists of numbers arrays
    assert {
        key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in read.items()
    } == {key: value for key, (value, _) in metadata.items()}
    assert list(file.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert file.tensors[name].shape == tensor.shape
        assert file.tensors[name].nbytes == tensor.nbytes
        assert file.raw(name).tobytes() == tensor.tobytes()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def written(
    path: Path,
    *,
    tensors: int = 1,
    keys: int = 1,
    key_length: int = 1,
    items: int = 1,
    item_kind: int = 4,
    dimensions: tuple[int, ...] = (32, 1),
    kind: int = gguf.GGMLQuantizationType.F32,
    offset: int = 0,
) -> Path:
    """Write a file of one array and one tensor, with these numbers in its header, and return its path."""
    header = b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)
    header += struct.pack("<Q", key_length) + b"a" + struct.pack("<IIQ", 9, item_kind, items) + bytes(8)
    header = header if item_kind == 8 else header[:-4]
    header += text("t") + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    header += struct.pack("<IQ", kind, offset)
    path.write_bytes(header + bytes(-len(header) % 32) + bytes(128))
    return path


def test_the_header_that_the_next_test_changes_is_sound(tmp_path: Path) -> None:
    assert GgufFile(written(tmp_path / "x.gguf")).floats("t").shape == (1, 32)
    assert list(GgufFile(written(tmp_path / "x.gguf", item_kind=8)).metadata["a"]) == [""]


@pytest.mark.parametrize("size", ENDS)
def test_no_number_of_a_header_is_trusted(size: int, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"tensors": size}, {"keys": size}, {"key_length": size}, {"items": size}, {"items": size, "item_kind": 8},
        {"offset": size}, {"offset": size // 32 * 32},
    ]  # fmt: skip
    shapes = [(size,), (size, 0), (0, size), (size, size), (32, size), (size // 32 * 32, size), (size,) * 4]
    shapes += [(size, other) for other in ENDS]
    kinds = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.I8)
    changes += [{"dimensions": shape, "kind": kind} for shape in shapes for kind in kinds]
    for change in changes:
        with pytest.raises(CheckpointError) as refusal:
            GgufFile(written(tmp_path / "x.gguf", **change))
        assert "\n" not in str(refusal.value)
