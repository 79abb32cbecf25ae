"""The layouts (`Way`) in which ONNX Runtime stores and multiplies a weight `[out, in]`. All hold the weight exactly.

`Floats`: an unquantized weight, multiplied by MatMul.

`Integers`: int8 codes `[in, out]` with one scale per output channel, multiplied by MatMulInteger. An input code is
split into two 7-bit limbs with one scale per token, `code = 128 * high + low`. Both limbs are multiplied in one call,
so the weight is read once. Limbs are stored as uint8, plus 64: 0 to 127. x86 CPUs before VNNI add pairs of products in
16 bits, where 2 * 127 * 128 fits and 2 * 255 * 128 saturates. Input codes of 14 bits change the result by about 1e-5
nats. For 8-bit inputs the codes are at most 127, as in the artifact.

`Blocks`: unsigned codes `[out, blocks, bytes]` with one scale per block of a row, multiplied by
com.microsoft.MatMulNBits. Inputs of weights up to 4 bits stay float32, unless the artifact rounds inputs in groups
(accuracy_level 4). For 8-bit weights CPUs have no fast kernel with float inputs, only one that rounds inputs to 8 bits
per block. Their input is therefore split as `x = coarse + rest`: `coarse` is already on the 8-bit grid, and rounding
`rest` adds a further 7 bits, so both products add up to one with 15-bit inputs.
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
from zeropoint.values import arrays
from zeropoint.values.qtensor import QuantizedTensor, Weight
from zeropoint.values.scheme import Scheme, ceil_div

Tensors = Iterator[tuple[str, NDArray[Any]]]

#: Block sizes of MatMulNBits, largest first.
BLOCKS = (256, 128, 64, 32, 16)

#: The largest input code of two limbs (each -64 to 63), and of 8 bits.
FINE, COARSE = 63 * 128 + 63, 127

#: Lower bound of a token's largest input, so that a token of zeros has a scale above 0.
TINY = 1e-30

SCALES, ZERO_POINTS = ".scales", ".zero_points"


class Way(Protocol):
    """A layout of a weight. `name` is the weight's main tensor; its other tensors have a suffix."""

    @property
    def label(self) -> str:
        """Return the layout's name for the user."""
        ...

    def tensors(self, weight: Weight) -> Tensors:
        """Yield the suffix and the values of each tensor."""
        ...

    def linear(self, graph: Graph, name: str, x: str) -> str:
        """Return `x [..., in]` times the transposed weight, `[..., out]`."""
        ...

    def rows(self, graph: Graph, name: str, ids: str) -> str:
        """Return the weight's rows for `ids [batch, sequence]`, float32 `[batch, sequence, in]`."""
        ...

    def read(self, data: DataReader, name: str) -> arrays.Floats:
        """Read the weight back from the file, float32 `[out, in]`."""
        ...


def choose(scheme: Scheme | None, shape: tuple[int, int]) -> Way:
    """Return the layout for a weight of a scheme. Raises `SchemeError` if no layout is exact."""
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
    """Return the largest input code of a scheme."""
    return COARSE if scheme.activation is not None and scheme.activation.bits == 8 else FINE


def _block(scheme: Scheme, columns: int) -> int:
    """Return the largest block size that divides the groups of the weight and of its input.

    Raises `SchemeError` if there is none.
    """
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
    """An unquantized matrix `[out, in]` in its own float type, multiplied in float32."""

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

    def read(self, data: DataReader, name: str) -> arrays.Floats:
        return data.read(name).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Integers:
    """Weights of 5 to 8 bits without groups, for MatMulInteger. `codes` is the largest input code."""

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
        limbs, scales = _limbs(graph, x, self.codes)
        offset = graph.constant(64, np.uint8)
        zero = (name + ZERO_POINTS,) if self.asymmetric else ()
        sums = graph.op("MatMulInteger", limbs, name, offset, *zero)
        parts = graph.op("Mul", graph.op("Cast", sums, to=TensorProto.FLOAT), scales)
        return graph.op("Mul", _sum_of_two(graph, parts), name + SCALES)

    def rows(self, graph: Graph, name: str, ids: str) -> str:
        columns = graph.op("Gather", name, ids, axis=1)
        codes = graph.op("Transpose", columns, perm=[1, 2, 0])
        values = graph.op("Cast", codes, to=TensorProto.FLOAT)
        last = graph.constant([-1], np.int64)
        if self.asymmetric:
            zero = graph.op("Gather", name + ZERO_POINTS, ids, axis=0)
            zero = graph.op("Unsqueeze", graph.op("Cast", zero, to=TensorProto.FLOAT), last)
            values = graph.op("Sub", values, zero)
        scale = graph.op("Unsqueeze", graph.op("Gather", name + SCALES, ids, axis=0), last)
        return graph.op("Mul", values, scale)

    def read(self, data: DataReader, name: str) -> arrays.Floats:
        codes = data.read(name).T.astype(np.float32)
        if self.asymmetric:
            codes -= data.read(name + ZERO_POINTS)[:, None]
        return np.ascontiguousarray(codes * data.read(name + SCALES)[:, None])


@dataclass(frozen=True, slots=True)
class Blocks:
    """Weights with scales per block of a row, for MatMulNBits.

    - `inputs`: "float", "rounded" to 8 bits in the weight's blocks, or "split" into `coarse` and `rest`;
    - `per_token`: the input is first rounded to 8 bits with one scale per token.
    """

    shape: tuple[int, int]
    bits: int
    block: int
    asymmetric: bool
    inputs: str
    per_token: bool

    @property
    def label(self) -> str:
        """Return the layout's name for the user."""
        return f"MatMulNBits of {self.bits} bits"

    @property
    def count(self) -> int:
        """Return the number of blocks in a row; the last block may be padded."""
        return ceil_div(self.shape[1], self.block)

    @property
    def middle(self) -> int:
        """Return the offset from a scheme's signed codes to unsigned codes, which is also the default zero_point."""
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
        """Expand one value per group to one value per block, `[out, blocks]`."""
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
        """Return the codes as float32, with one axis more than `packed`: the codes of each byte."""
        last = graph.constant([-1], np.int64)
        codes = graph.op("Unsqueeze", packed, last)
        if self.bits < 8:
            shifts = graph.constant(np.arange(0, 8, self.bits), np.uint8)
            codes = graph.op("BitShift", codes, shifts, direction="RIGHT")
            codes = graph.op("BitwiseAnd", codes, graph.constant((1 << self.bits) - 1, np.uint8))
        return graph.op("Cast", codes, to=TensorProto.FLOAT)

    def read(self, data: DataReader, name: str) -> arrays.Floats:
        rows, columns = self.shape
        codes = _unpack(data.read(name).reshape(rows, -1), self.bits)[:, :columns].astype(np.float32)
        zero: NDArray[Any] = np.full((rows, self.count), self.middle, np.uint8)
        if self.asymmetric:
            zero = _unpack(data.read(name + ZERO_POINTS), self.bits)[:, : self.count]
        codes -= np.repeat(zero, self.block, axis=1)[:, :columns]
        codes *= np.repeat(data.read(name + SCALES), self.block, axis=1)[:, :columns]
        return codes


# -- inputs ---------------------------------------------------------------------------------------


def _limbs(graph: Graph, x: str, codes: int) -> tuple[str, str]:
    """Split `x [b, s, in]` into high and low limbs.

    Return the limbs plus 64, uint8 `[2, b, s, in]`, and their scales `[2, b, s, 1]`.
    """
    scale = _scale(graph, x, codes)
    whole = graph.op("Round", graph.op("Div", x, scale))
    # code + 8256 = 128 * (high + 64) + (low + 64): bits 7 to 13 hold the high limb, bits 0 to 6 the low limb
    shifted = graph.op("Add", whole, graph.constant(64 * 128 + 64))
    pair = graph.op("Mul", shifted, graph.constant(np.reshape([1 / 128, 1], (2, 1, 1, 1))))
    limbs = graph.op("BitwiseAnd", _cast(graph, pair, TensorProto.INT32), graph.constant(127, np.int32))
    scales = graph.op("Mul", scale, graph.constant(np.reshape([128, 1], (2, 1, 1, 1))))
    return _cast(graph, limbs, TensorProto.UINT8), scales


def _rounded(graph: Graph, x: str) -> str:
    """Return `x` rounded to 8 bits, with one scale per row of the last axis."""
    scale = _scale(graph, x, COARSE)
    return graph.op("Mul", graph.op("Round", graph.op("Div", x, scale)), scale)


def _split(graph: Graph, x: str, count: int, block: int) -> str:
    """Split `x [b, s, in]` into `coarse` (rounded to 8 bits per block) and `rest`, stacked as `[2, b, s, in]`."""
    blocks = graph.op("Reshape", x, graph.constant([0, 0, count, block], np.int64))
    coarse = graph.op("Reshape", _rounded(graph, blocks), graph.constant([0, 0, -1], np.int64))
    first = graph.constant([0], np.int64)
    pair = [graph.op("Unsqueeze", each, first) for each in (coarse, graph.op("Sub", x, coarse))]
    return graph.op("Concat", *pair, axis=0)


def _scale(graph: Graph, x: str, codes: int) -> str:
    """Return the scale of each row of the last axis: the largest absolute value divided by `codes`."""
    largest = graph.op("ReduceMax", graph.op("Abs", x), graph.constant([-1], np.int64))
    return graph.op("Div", graph.op("Max", largest, graph.constant(TINY)), graph.constant(codes))


def _sum_of_two(graph: Graph, pair: str) -> str:
    """Return the sum over the first axis."""
    return graph.op("ReduceSum", pair, graph.constant([0], np.int64), keepdims=0)


def _cast(graph: Graph, value: str, to: int) -> str:
    """Return `value` converted to the ONNX type `to`."""
    return graph.op("Cast", value, to=to)


# -- packed codes ---------------------------------------------------------------------------------


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack unsigned codes `[rows, n]` into bytes `[rows, ceil(n * bits / 8)]`, the first code in the lowest bits."""
    each = 8 // bits
    padded = np.zeros((codes.shape[0], ceil_div(codes.shape[1], each) * each), np.uint8)
    padded[:, : codes.shape[1]] = codes
    packed = np.zeros((codes.shape[0], padded.shape[1] // each), np.uint8)
    for i in range(each):
        packed |= padded[:, i::each] << np.uint8(i * bits)
    return packed


def _unpack(packed: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Unpack bytes `[rows, bytes]` into codes `[rows, codes]`: the inverse of `_pack`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(packed.shape[0], -1)
