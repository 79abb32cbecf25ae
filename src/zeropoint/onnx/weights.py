"""How a weight `[out, in]` is stored and multiplied in ONNX Runtime, exact in every number of it.

`Floats`: as it was kept; MatMul.

`Integers`: int8 codes `[in, out]` with a scale per output channel; MatMulInteger. Inputs become two digits of 7 bits
with one scale per token, `code = 128 * high + low`, which are multiplied as one stack, so that the weight is read once.
Digits are stored as `uint8` 0 to 128, because 8-bit ones saturate where a CPU adds pairs of products in 16 bits (x86
before VNNI: 2 * 128 * 127 fits, 2 * 255 * 127 does not). 14 bits of input leave about 1e-5 nats; 8-bit inputs are
codes of at most 127, the artifact's own numbers.

`Blocks`: unsigned codes `[out, blocks, bytes]` with a scale per block of a row; com.microsoft.MatMulNBits. Up to 4 bits
the inputs stay float32, unless the artifact rounds them in blocks (accuracy_level 4). 8-bit weights have no fast
float kernel on CPUs: their input is split in two, `x = coarse + rest` with `coarse` on the grid of 8 bits on which
that kernel rounds anyway, so that the sum of both products is one with 15 bits of input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from zeropoint.errors import SchemeError
from zeropoint.onnx.data import DataReader
from zeropoint.onnx.graph import CONTRIB, Graph
from zeropoint.values.qtensor import QuantizedTensor, Weight
from zeropoint.values.scheme import Scheme, ceil_div

Float32 = NDArray[np.float32]
Tensors = Iterator[tuple[str, NDArray[Any]]]

#: What MatMulNBits takes: powers of two.
BLOCKS = (256, 128, 64, 32, 16)

#: The largest input code of two digits, -64 to 63 each, and of 8 bits.
FINE, COARSE = 63 * 128 + 63, 127

#: Below every input that is not zero, so that a token of zeros has a scale.
TINY = 1e-30

SCALES, ZERO_POINTS = ".scales", ".zero_points"


class Way(Protocol):
    """One way to hold a weight. `name` is that of its main tensor; others add a suffix."""

    @property
    def label(self) -> str: ...
    def tensors(self, weight: Weight) -> Tensors:
        """Suffix and values of each tensor."""
        ...

    def linear(self, graph: Graph, name: str, x: str) -> str:
        """`x [..., in]` times the weight: `[..., out]`."""
        ...

    def rows(self, graph: Graph, name: str, ids: str) -> str:
        """Rows of the weight as float32 `[batch, sequence, in]`."""
        ...

    def read(self, data: DataReader, name: str) -> Float32:
        """The weight that the file says, float32 `[out, in]`."""
        ...


def choose(scheme: Scheme | None, shape: tuple[int, int]) -> Way:
    """How a weight of a scheme is held. Raises `SchemeError` where no way is exact."""
    if scheme is None or scheme.is_float:
        return Floats()
    grouped_inputs = scheme.activation is not None and scheme.activation.group_size > 0
    if scheme.granularity != "group" and scheme.bits > 4 and not grouped_inputs:
        return Integers(not scheme.symmetric, _input_codes(scheme))
    bits = 2 if scheme.bits == 2 else 4 if scheme.bits <= 4 else 8
    block = _block(scheme, shape[1])
    inputs = "rounded" if grouped_inputs else "float"
    if bits == 8 and not grouped_inputs and shape[1] % block == 0:
        inputs = "split"
    per_token = not grouped_inputs and _input_codes(scheme) == COARSE
    return Blocks(shape, bits, block, not scheme.symmetric, inputs, per_token)


def _input_codes(scheme: Scheme) -> int:
    return COARSE if scheme.activation is not None and scheme.activation.bits == 8 else FINE


def _block(scheme: Scheme, columns: int) -> int:
    """The largest block that no scale of the weight, nor of its input, changes within."""
    if scheme.activation is not None and scheme.activation.group_size:
        size = scheme.activation.group_size
        if size not in BLOCKS or scheme.group_size % size:
            raise SchemeError(
                f"ONNX Runtime rounds inputs in the blocks of the weight, of 16 to 256, and not as {scheme.activation}"
            )
        return size
    extent = scheme.group_size or columns
    fitting = [size for size in BLOCKS if extent % size == 0]
    if not fitting and scheme.group_size:
        raise SchemeError(f"groups of {scheme.group_size} do not divide into blocks of {BLOCKS[-1]}")
    return fitting[0] if fitting else BLOCKS[-1]


@dataclass(frozen=True, slots=True)
class Floats:
    """A matrix that was kept, `[out, in]` in its own type; products are float32."""

    label: str = "float"

    def tensors(self, weight: Weight) -> Tensors:
        assert not isinstance(weight, QuantizedTensor)
        if weight.dtype not in (np.float32, np.float16, ml_dtypes.bfloat16):
            raise SchemeError(f"ONNX weights here are not of type {weight.dtype}")
        yield "", weight

    def linear(self, graph: Graph, name: str, x: str) -> str:
        matrix = graph.op("Cast", name, to=TensorProto.FLOAT)
        return graph.op("MatMul", x, graph.op("Transpose", matrix, perm=[1, 0]))

    def rows(self, graph: Graph, name: str, ids: str) -> str:
        return graph.op("Cast", graph.op("Gather", name, ids, axis=0), to=TensorProto.FLOAT)

    def read(self, data: DataReader, name: str) -> Float32:
        return data.read(name).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Integers:
    """`codes`: the largest code of an input."""

    asymmetric: bool
    codes: int
    label: str = "MatMulInteger"

    def tensors(self, weight: Weight) -> Tensors:
        assert isinstance(weight, QuantizedTensor)
        rows = weight.shape[0]
        yield "", np.ascontiguousarray(weight.codes.T)
        yield SCALES, np.ascontiguousarray(np.broadcast_to(weight.scale[:, 0], rows))
        if weight.zero_point is not None:
            yield ZERO_POINTS, np.ascontiguousarray(np.broadcast_to(weight.zero_point[:, 0], rows))

    def linear(self, graph: Graph, name: str, x: str) -> str:
        digits, scales = _digits(graph, x, self.codes)
        offset = graph.constant(64, np.uint8)
        zero = (name + ZERO_POINTS,) if self.asymmetric else ()
        sums = graph.op("MatMulInteger", digits, name, offset, *zero)
        parts = graph.op("Mul", graph.op("Cast", sums, to=TensorProto.FLOAT), scales)
        return graph.op("Mul", _sum_of_two(graph, parts), name + SCALES)

    def rows(self, graph: Graph, name: str, ids: str) -> str:
        columns = graph.op("Gather", name, ids, axis=1)
        codes = graph.op("Transpose", columns, perm=[1, 2, 0])
        found = graph.op("Cast", codes, to=TensorProto.FLOAT)
        last = graph.constant([-1], np.int64)
        if self.asymmetric:
            zero = graph.op("Gather", name + ZERO_POINTS, ids, axis=0)
            zero = graph.op("Unsqueeze", graph.op("Cast", zero, to=TensorProto.FLOAT), last)
            found = graph.op("Sub", found, zero)
        scale = graph.op("Unsqueeze", graph.op("Gather", name + SCALES, ids, axis=0), last)
        return graph.op("Mul", found, scale)

    def read(self, data: DataReader, name: str) -> Float32:
        codes = data.read(name).T.astype(np.float32)
        if self.asymmetric:
            codes -= data.read(name + ZERO_POINTS)[:, None]
        return np.ascontiguousarray(codes * data.read(name + SCALES)[:, None])


@dataclass(frozen=True, slots=True)
class Blocks:
    """`inputs`: "float", "rounded" in the weight's blocks, or "split" in two; `per_token`: rounded to 8 bits per token
    before that."""

    shape: tuple[int, int]
    bits: int
    block: int
    asymmetric: bool
    inputs: str
    per_token: bool

    @property
    def label(self) -> str:
        return f"MatMulNBits of {self.bits} bits"

    @property
    def count(self) -> int:
        """Blocks in a row; the last may be short."""
        return ceil_div(self.shape[1], self.block)

    @property
    def middle(self) -> int:
        """What is added to our signed codes; also the zero point where none is stored."""
        return 1 << (self.bits - 1)

    def tensors(self, weight: Weight) -> Tensors:
        assert isinstance(weight, QuantizedTensor)
        rows, columns = self.shape
        codes = np.full((rows, self.count * self.block), self.middle, np.uint8)
        codes[:, :columns] = weight.codes.astype(np.int16) + self.middle
        yield "", _pack(codes, self.bits).reshape(rows, self.count, -1)
        yield SCALES, self._per_block(weight, weight.scale)
        if weight.zero_point is not None:
            zero = (self._per_block(weight, weight.zero_point).astype(np.int16) + self.middle).astype(
                np.uint8
            )
            yield ZERO_POINTS, _pack(zero, self.bits)

    def _per_block(self, weight: QuantizedTensor, values: NDArray[Any]) -> NDArray[Any]:
        """Values of the weight's groups as one per block, `[out, blocks]`."""
        size = weight.scheme.group_size
        group = np.arange(self.count) * self.block // size if size else np.zeros(self.count, np.int64)
        return np.ascontiguousarray(np.broadcast_to(values, (self.shape[0], values.shape[1]))[:, group])

    def linear(self, graph: Graph, name: str, x: str) -> str:
        if self.per_token:
            x = _rounded(graph, x)
        if self.inputs == "split":
            x = _split(graph, x, self.count, self.block)
        zero = (name + ZERO_POINTS,) if self.asymmetric else ()
        y = graph.op(
            "MatMulNBits",
            *(x, name, name + SCALES, *zero),
            domain=CONTRIB,
            K=self.shape[1],
            N=self.shape[0],
            bits=self.bits,
            block_size=self.block,
            accuracy_level=1 if self.inputs == "float" else 4,
        )
        return _sum_of_two(graph, y) if self.inputs == "split" else y

    def rows(self, graph: Graph, name: str, ids: str) -> str:
        blocked = graph.constant([0, 0, self.count, self.block], np.int64)
        codes = graph.op("Reshape", self._unpack(graph, graph.op("Gather", name, ids, axis=0)), blocked)
        last = graph.constant([-1], np.int64)
        scale = graph.op("Unsqueeze", graph.op("Gather", name + SCALES, ids, axis=0), last)
        zero = graph.constant(self.middle)
        if self.asymmetric:
            gathered = graph.op("Gather", name + ZERO_POINTS, ids, axis=0)
            flat = graph.op("Reshape", self._unpack(graph, gathered), graph.constant([0, 0, -1, 1], np.int64))
            first, end, axis = (graph.constant([each], np.int64) for each in (0, self.count, 2))
            zero = graph.op("Slice", flat, first, end, axis)
        values = graph.op("Mul", graph.op("Sub", codes, zero), scale)
        flat = graph.op("Reshape", values, graph.constant([0, 0, -1], np.int64))
        first, end, axis = (graph.constant([each], np.int64) for each in (0, self.shape[1], 2))
        return graph.op("Slice", flat, first, end, axis)

    def _unpack(self, graph: Graph, packed: str) -> str:
        """Codes as float32, one more axis than `packed`."""
        last = graph.constant([-1], np.int64)
        codes = graph.op("Unsqueeze", packed, last)
        if self.bits < 8:
            shifts = graph.constant(np.arange(0, 8, self.bits), np.uint8)
            codes = graph.op("BitShift", codes, shifts, direction="RIGHT")
            codes = graph.op("BitwiseAnd", codes, graph.constant((1 << self.bits) - 1, np.uint8))
        return graph.op("Cast", codes, to=TensorProto.FLOAT)

    def read(self, data: DataReader, name: str) -> Float32:
        rows, columns = self.shape
        codes = _unpack(data.read(name).reshape(rows, -1), self.bits)[:, :columns].astype(np.float32)
        zero: NDArray[Any] = np.full((rows, self.count), self.middle, np.uint8)
        if self.asymmetric:
            zero = _unpack(data.read(name + ZERO_POINTS), self.bits)[:, : self.count]
        codes -= np.repeat(zero, self.block, axis=1)[:, :columns]
        codes *= np.repeat(data.read(name + SCALES), self.block, axis=1)[:, :columns]
        return codes


# -- inputs ---------------------------------------------------------------------------------------


def _digits(graph: Graph, x: str, codes: int) -> tuple[str, str]:
    """`x [b, s, in]` -> uint8 digits `[2, b, s, in]`, each 64 too large, and what they are worth `[2, b, s, 1]`."""
    scale = _scale(graph, x, codes)
    whole = graph.op("Round", graph.op("Div", x, scale))
    # code + 8256 = 128 * (high + 64) + (low + 64): its bits 7 to 13, and its lowest seven
    shifted = graph.op("Add", whole, graph.constant(64 * 128 + 64))
    pair = graph.op("Mul", shifted, graph.constant(np.reshape([1 / 128, 1], (2, 1, 1, 1))))
    digits = graph.op("BitwiseAnd", _cast(graph, pair, TensorProto.INT32), graph.constant(127, np.int32))
    worth = graph.op("Mul", scale, graph.constant(np.reshape([128, 1], (2, 1, 1, 1))))
    return _cast(graph, digits, TensorProto.UINT8), worth


def _rounded(graph: Graph, x: str) -> str:
    """`x` on its token's grid of 8 bits."""
    scale = _scale(graph, x, COARSE)
    return graph.op("Mul", graph.op("Round", graph.op("Div", x, scale)), scale)


def _split(graph: Graph, x: str, count: int, block: int) -> str:
    """`x [b, s, in]` -> `[2, b, s, in]` of that sum: on each block's grid of 8 bits, and the rest."""
    blocks = graph.op("Reshape", x, graph.constant([0, 0, count, block], np.int64))
    coarse = graph.op("Reshape", _rounded(graph, blocks), graph.constant([0, 0, -1], np.int64))
    first = graph.constant([0], np.int64)
    pair = [graph.op("Unsqueeze", each, first) for each in (coarse, graph.op("Sub", x, coarse))]
    return graph.op("Concat", *pair, axis=0)


def _scale(graph: Graph, x: str, codes: int) -> str:
    """What one step of the last axis is worth where its largest value is step number `codes`."""
    largest = graph.op("ReduceMax", graph.op("Abs", x), graph.constant([-1], np.int64))
    return graph.op("Div", graph.op("Max", largest, graph.constant(TINY)), graph.constant(codes))


def _sum_of_two(graph: Graph, pair: str) -> str:
    return graph.op("ReduceSum", pair, graph.constant([0], np.int64), keepdims=0)


def _cast(graph: Graph, value: str, to: int) -> str:
    return graph.op("Cast", value, to=to)


# -- packed codes ---------------------------------------------------------------------------------


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Unsigned codes `[rows, n]` -> `[rows, ceil(n * bits / 8)]`, the first in the lowest bits."""
    each = 8 // bits
    padded = np.zeros((codes.shape[0], ceil_div(codes.shape[1], each) * each), np.uint8)
    padded[:, : codes.shape[1]] = codes
    packed = np.zeros((codes.shape[0], padded.shape[1] // each), np.uint8)
    for i in range(each):
        packed |= padded[:, i::each] << np.uint8(i * bits)
    return packed


def _unpack(packed: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(packed.shape[0], -1)
