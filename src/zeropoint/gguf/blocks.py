"""Integer grids in ggml's blocks of 32 weights, and back, without changing a number.

A block holds 32 weights of a row under one FP16 scale `d`; with `q` the stored code::

    Q8_0   w = d * q              q int8                34 bytes
    Q5_0   w = d * (q - 16)       q in 0..31            22 bytes: scale, fifth bits, low nibbles
    Q4_1   w = d * q + m          q in 0..15            20 bytes: scale, FP16 m, nibbles
    Q4_0   w = d * (q - 8)        q in 0..15            18 bytes: scale, nibbles

Nibble `j` of byte `i` is weight `i + 16 j`. Ours is `w = (code - zero_point) * scale`, so a symmetric grid fits if its
scale is an FP16 number: bfloat16 scales, nested ones too, are, from 2^-17 to 65504. A zero point leaves two ways:
`m = -zero_point * scale` if those are FP16 numbers as well (a zero point and a bfloat16 scale multiply to 12
significant bits at most, FP16 has 11), and otherwise Q5_0, since `code - zero_point` of 4 bits lies in -15..15.
Groups wider than a block repeat their scale. Whatever is not exact is refused, and the caller is told why.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from zeropoint.errors import SchemeError
from zeropoint.values.qtensor import Number, QuantizedTensor, expand_groups
from zeropoint.values.scheme import Scheme

BLOCK = 32
Kind = GGMLQuantizationType
Bytes = NDArray[np.uint8]
Codes = NDArray[np.int16]
Halves = NDArray[np.float16]

#: Symmetric types, narrowest first: how far `code - zero_point` may reach.
RANGES = {Kind.Q4_0: (-8, 7), Kind.Q5_0: (-16, 15), Kind.Q8_0: (-128, 127)}


def choose(weight: QuantizedTensor) -> GGMLQuantizationType:
    """The narrowest type that holds the weight exactly. Raises `SchemeError` saying why none does."""
    scheme, (_, columns) = weight.scheme, weight.shape
    if columns % BLOCK:
        raise SchemeError(f"rows of {columns} weights do not divide into blocks of {BLOCK}")
    if scheme.granularity == "group" and scheme.group_size % BLOCK:
        raise SchemeError(f"groups of {scheme.group_size} do not divide into blocks of {BLOCK}")
    unfit = int((~_is_half(weight.scale)).sum())
    if unfit:
        raise SchemeError(
            f"{unfit} of its {weight.scale.size} scales are not FP16 numbers; quantize with bf16 or fp16 scales"
        )
    if weight.zero_point is None:
        low, high = scheme.qmin, scheme.qmax
    else:
        if scheme.bits <= 4 and bool(_is_half(_minimum(weight)).all()):
            return Kind.Q4_1
        low, high = _reach(weight)
    for kind, (least, most) in RANGES.items():
        if least <= low and high <= most:
            return kind
    raise SchemeError(f"{scheme.bits}-bit codes with a zero point span more than 8 bits")


def encode(weight: QuantizedTensor, kind: GGMLQuantizationType) -> Bytes:
    """Block bytes `[out, blocks * bytes of a block]` of a weight, in a type that `choose` gave for it."""
    rows, columns = weight.shape
    blocks = columns // BLOCK
    codes = weight.codes.astype(np.int16)
    parts = [_per_block(weight.scale, weight).astype(np.float16)[..., None].view(np.uint8)]
    if kind == Kind.Q4_1:
        parts.append(_per_block(_minimum(weight), weight).astype(np.float16)[..., None].view(np.uint8))
        codes -= weight.scheme.qmin
    else:
        if weight.zero_point is not None:
            centred = codes.reshape(rows, blocks, BLOCK) - _per_block(weight.zero_point, weight)[..., None]
            codes = centred.astype(np.int16)
        codes -= np.int16(RANGES[kind][0] if kind != Kind.Q8_0 else 0)
    parts += _code_bytes(codes.reshape(rows, blocks, BLOCK), kind)
    return np.concatenate(parts, axis=2).reshape(rows, -1)


def decode(raw: Bytes, kind: GGMLQuantizationType) -> QuantizedTensor:
    """The weight that block bytes `[out, bytes]` stand for. Raises `SchemeError` where no scheme of ours holds it:
    another type, or a Q4_1 whose minima are not whole multiples of their scales."""
    if kind not in DECODERS:
        raise SchemeError(f"{kind.name} blocks are not a grid of codes and one scale")
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, GGML_QUANT_SIZES[kind][1])
    return DECODERS[kind](blocks)


def _code_bytes(codes: Codes, kind: GGMLQuantizationType) -> list[Bytes]:
    """Stored codes int16 `[out, blocks, 32]` -> the byte arrays that follow the scale."""
    if kind == Kind.Q8_0:
        return [codes.astype(np.int8).view(np.uint8)]
    unsigned = codes.astype(np.uint8)
    nibbles = ((unsigned[..., :16] & 15) | (unsigned[..., 16:] << 4)).astype(np.uint8)
    if kind != Kind.Q5_0:
        return [nibbles]
    return [np.packbits(unsigned >> 4, axis=2, bitorder="little"), nibbles]


def _reach(weight: QuantizedTensor) -> tuple[int, int]:
    """How far `code - zero_point` may reach; at 8 bits, where no type holds what may be, how far it does."""
    scheme = weight.scheme
    most = scheme.qmax - scheme.qmin
    if scheme.bits < 8 or weight.zero_point is None:
        return -most, most
    centred = weight.codes.astype(np.int16) - expand_groups(weight.zero_point, scheme, weight.shape[1])
    return int(centred.min()), int(centred.max())


def _per_block(values: NDArray[Number], weight: QuantizedTensor) -> NDArray[Number]:
    """Values of `scale_shape` as one per block, `[out, blocks]`."""
    rows, columns = weight.shape
    blocks = columns // BLOCK
    if weight.scheme.granularity != "group":
        return np.broadcast_to(values, (rows, blocks))
    return np.repeat(values, weight.scheme.group_size // BLOCK, axis=1)[:, :blocks]


def _minimum(weight: QuantizedTensor) -> NDArray[np.float32]:
    """What code `qmin` stands for, in each group: Q4_1's `m`. Exact in float32 (4 times at most 11 bits)."""
    assert weight.zero_point is not None
    steps = np.float32(weight.scheme.qmin) - weight.zero_point.astype(np.float32)
    return (steps * weight.scale).astype(np.float32)


def _is_half(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    with np.errstate(over="ignore"):
        return np.asarray(values.astype(np.float16).astype(np.float32) == values)


def _symmetric(
    bits: int, group: int, codes: NDArray[np.int16], scale: NDArray[np.float32]
) -> QuantizedTensor:
    """Codes `[out, blocks, n]` and scales `[out, blocks * n / group]` as a weight with the narrowest scale type."""
    scheme = Scheme(bits, "group", group, True, "fp16" if bool(_is_half(scale).all()) else "fp32")
    rows = codes.shape[0]
    flat = codes.reshape(rows, -1)
    if bits == 8 and int(flat.min(initial=0)) < scheme.qmin:  # -128 only fits where a zero point is allowed
        scheme = Scheme(bits, "group", group, False, scheme.scale_dtype)
        return QuantizedTensor(scheme, flat.astype(np.int8), scale, np.zeros(scale.shape, np.int8))
    return QuantizedTensor(scheme, flat.astype(np.int8), scale)


def _half(blocks: Bytes, start: int) -> NDArray[np.float32]:
    """The FP16 numbers at byte `start` of each block, float32 `[out, blocks]`."""
    return np.ascontiguousarray(blocks[..., start : start + 2]).view(np.float16)[..., 0].astype(np.float32)


def _nibbles(packed: Bytes) -> NDArray[np.int16]:
    return np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.int16)


def _decode_q8_0(blocks: Bytes) -> QuantizedTensor:
    codes = np.ascontiguousarray(blocks[..., 2:]).view(np.int8).astype(np.int16)
    return _symmetric(8, BLOCK, codes, _half(blocks, 0))


def _decode_q5_0(blocks: Bytes) -> QuantizedTensor:
    fifth = np.unpackbits(np.ascontiguousarray(blocks[..., 2:6]), axis=-1, bitorder="little").astype(np.int16)
    return _symmetric(5, BLOCK, (_nibbles(blocks[..., 6:]) | (fifth << 4)) - 16, _half(blocks, 0))


def _decode_q4_0(blocks: Bytes) -> QuantizedTensor:
    return _symmetric(4, BLOCK, _nibbles(blocks[..., 2:]) - 8, _half(blocks, 0))


def _decode_q4_1(blocks: Bytes) -> QuantizedTensor:
    scale, minimum = _half(blocks, 0), _half(blocks, 2)
    scheme = Scheme(4, "group", BLOCK, False, "fp16")
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(minimum == 0, np.float32(0), -minimum / scale)
    whole = np.isfinite(steps) & (steps == np.rint(steps)) & (steps >= 0) & (steps <= 15)
    if not whole.all():
        share = f"{int((~whole).sum())} of its {whole.size}"
        raise SchemeError(f"{share} blocks have a minimum that is no whole multiple of their scale")
    rows = blocks.shape[0]
    codes = _nibbles(blocks[..., 4:]).reshape(rows, -1) + scheme.qmin
    zero_point = (steps + scheme.qmin).astype(np.int8)
    return QuantizedTensor(scheme, codes.astype(np.int8), scale, zero_point)


DECODERS: dict[GGMLQuantizationType, Callable[[Bytes], QuantizedTensor]] = {
    Kind.Q8_0: _decode_q8_0,
    Kind.Q5_0: _decode_q5_0,
    Kind.Q4_1: _decode_q4_1,
    Kind.Q4_0: _decode_q4_0,
}
