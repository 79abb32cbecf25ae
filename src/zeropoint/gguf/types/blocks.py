"""Lossless conversion between Zeropoint's integer weights and GGUF blocks of 32 weights.

A GGUF block holds 32 weights of one row with one FP16 scale `d`. A weight `w` follows from its stored code `q`::

    Q8_0   w = d * q              q int8                34 bytes
    Q5_0   w = d * (q - 16)       q in 0..31            22 bytes: d, bit 4 of each code, low nibbles
    Q4_1   w = d * q + m          q in 0..15            20 bytes: d, FP16 m, nibbles
    Q4_0   w = d * (q - 8)        q in 0..15            18 bytes: d, nibbles

Byte `i` of the nibbles holds weight `i` (low nibble) and weight `i + 16` (high nibble).

Zeropoint's weight is `w = (code - zero_point) * scale`. A group wider than a block repeats its scale in each block.
Every scale must be exact in FP16. bfloat16 scales from 2^-17 to 65504 are exact, and so are two-level scales.

A 4-bit weight with a zero_point becomes Q4_1 if each `m = (qmin - zero_point) * scale` is exact in FP16; with a
bfloat16 scale the product has up to 12 significant bits, FP16 has 11. Otherwise it becomes Q5_0, because
`code - zero_point` lies in -15..15. A weight that no type holds exactly raises `SchemeError` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from zeropoint.errors import SchemeError
from zeropoint.values.arrays import Bytes, Int16s
from zeropoint.values.qtensor import Number, QuantizedTensor, expand_groups
from zeropoint.values.scheme import Scheme

BLOCK = 32
Kind = GGMLQuantizationType

#: The range of `code - zero_point` that each type without a minimum holds, narrowest type first.
RANGES = {Kind.Q4_0: (-8, 7), Kind.Q5_0: (-16, 15), Kind.Q8_0: (-128, 127)}


def choose(weight: QuantizedTensor) -> GGMLQuantizationType:
    """Return the narrowest GGUF type that holds the weight exactly.

    Raises `SchemeError`, with the reason, if no type does.
    """
    scheme = weight.scheme
    if reasons := refusals(scheme, weight.shape[1]):
        raise SchemeError(reasons[0])
    inexact = int((~_is_half(weight.scale)).sum())
    if inexact:
        raise SchemeError(
            f"{inexact} of its {weight.scale.size} scales are not FP16 numbers; quantize with bf16 or fp16 scales"
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


def refusals(scheme: Scheme, columns: int) -> list[str]:
    """Return the reasons why no type holds a weight of this scheme with `columns` inputs, whatever its values are."""
    reasons = []
    if columns % BLOCK:
        reasons.append(f"rows of {columns} weights do not divide into blocks of {BLOCK}")
    if scheme.granularity == "group" and scheme.group_size % BLOCK:
        reasons.append(f"groups of {scheme.group_size} do not divide into blocks of {BLOCK}")
    return reasons


def encode(weight: QuantizedTensor, kind: GGMLQuantizationType) -> Bytes:
    """Return the bytes of a GGUF tensor, uint8 `[out, blocks * bytes per block]`. `kind` comes from `choose`."""
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
    """Return the weight that the block bytes, uint8 `[out, bytes]`, encode.

    Raises `SchemeError` if no `Scheme` describes the blocks: a type outside `DECODERS`, or Q4_1 with a minimum that is
    not an integer multiple of the scale.
    """
    if kind not in DECODERS:
        raise SchemeError(f"{kind.name} blocks cannot be read as integer codes with one scale per block")
    rows = raw.shape[0]
    blocks = raw.reshape(rows, -1, GGML_QUANT_SIZES[kind][1])
    return DECODERS[kind](blocks)


def _code_bytes(codes: Int16s, kind: GGMLQuantizationType) -> list[Bytes]:
    """Return the byte arrays that follow `d` (and `m`), from stored codes int16 `[out, blocks, 32]`."""
    if kind == Kind.Q8_0:
        return [codes.astype(np.int8).view(np.uint8)]
    unsigned = codes.astype(np.uint8)
    nibbles = ((unsigned[..., :16] & 15) | (unsigned[..., 16:] << 4)).astype(np.uint8)
    if kind != Kind.Q5_0:
        return [nibbles]
    return [np.packbits(unsigned >> 4, axis=2, bitorder="little"), nibbles]


def _reach(weight: QuantizedTensor) -> tuple[int, int]:
    """Return the smallest and largest `code - zero_point`.

    Below 8 bits this is the scheme's range. At 8 bits the scheme's range (-255 to 255) fits no type, so the range of
    the weight's own values is returned.
    """
    scheme = weight.scheme
    most = scheme.qmax - scheme.qmin
    if scheme.bits < 8 or weight.zero_point is None:
        return -most, most
    centred = weight.codes.astype(np.int16) - expand_groups(weight.zero_point, scheme, weight.shape[1])
    return int(centred.min()), int(centred.max())


def _per_block(values: NDArray[Number], weight: QuantizedTensor) -> NDArray[Number]:
    """Expand values of the scale's shape to one per block, `[out, blocks]`."""
    rows, columns = weight.shape
    blocks = columns // BLOCK
    if weight.scheme.granularity != "group":
        return np.broadcast_to(values, (rows, blocks))
    return np.repeat(values, weight.scheme.group_size // BLOCK, axis=1)[:, :blocks]


def _minimum(weight: QuantizedTensor) -> NDArray[np.float32]:
    """Return the value of code `qmin` in each group: Q4_1's `m`. Exact in float32 (a 4-bit times an 11-bit number)."""
    assert weight.zero_point is not None
    steps = np.float32(weight.scheme.qmin) - weight.zero_point.astype(np.float32)
    return (steps * weight.scale).astype(np.float32)


def _is_half(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return, for each value, whether FP16 represents the value exactly."""
    with np.errstate(over="ignore"):
        return np.asarray(values.astype(np.float16).astype(np.float32) == values)


def _symmetric(
    bits: int, group: int, codes: NDArray[np.int16], scale: NDArray[np.float32]
) -> QuantizedTensor:
    """Build a weight from centred codes `[out, blocks, n]` and scales `[out, blocks * n / group]`.

    The scale type is fp16 if every scale is exact in FP16, else fp32.
    """
    scheme = Scheme(bits, "group", group, True, "fp16" if bool(_is_half(scale).all()) else "fp32")
    rows = codes.shape[0]
    flat = codes.reshape(rows, -1)
    if bits == 8 and int(flat.min(initial=0)) < scheme.qmin:  # symmetric schemes stop at -127
        scheme = Scheme(bits, "group", group, False, scheme.scale_dtype)
        return QuantizedTensor(scheme, flat.astype(np.int8), scale, np.zeros(scale.shape, np.int8))
    return QuantizedTensor(scheme, flat.astype(np.int8), scale)


def _half(blocks: Bytes, start: int) -> NDArray[np.float32]:
    """Return the FP16 number at byte `start` of each block, float32 `[out, blocks]`."""
    return np.ascontiguousarray(blocks[..., start : start + 2]).view(np.float16)[..., 0].astype(np.float32)


def _nibbles(packed: Bytes) -> NDArray[np.int16]:
    """Unpack nibbles along the last axis: all low nibbles, then all high nibbles."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.int16)


def _decode_q8_0(blocks: Bytes) -> QuantizedTensor:
    """Decode Q8_0 blocks, uint8 `[out, blocks, 34]`."""
    codes = np.ascontiguousarray(blocks[..., 2:]).view(np.int8).astype(np.int16)
    return _symmetric(8, BLOCK, codes, _half(blocks, 0))


def _decode_q5_0(blocks: Bytes) -> QuantizedTensor:
    """Decode Q5_0 blocks, uint8 `[out, blocks, 22]`."""
    fifth = np.unpackbits(np.ascontiguousarray(blocks[..., 2:6]), axis=-1, bitorder="little").astype(np.int16)
    return _symmetric(5, BLOCK, (_nibbles(blocks[..., 6:]) | (fifth << 4)) - 16, _half(blocks, 0))


def _decode_q4_0(blocks: Bytes) -> QuantizedTensor:
    """Decode Q4_0 blocks, uint8 `[out, blocks, 18]`."""
    return _symmetric(4, BLOCK, _nibbles(blocks[..., 2:]) - 8, _half(blocks, 0))


def _decode_q4_1(blocks: Bytes) -> QuantizedTensor:
    """Decode Q4_1 blocks, uint8 `[out, blocks, 20]`. Raises `SchemeError` unless every `-m / d` is in 0..15."""
    scale, minimum = _half(blocks, 0), _half(blocks, 2)
    scheme = Scheme(4, "group", BLOCK, False, "fp16")
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(minimum == 0, np.float32(0), -minimum / scale)
    whole = np.isfinite(steps) & (steps == np.rint(steps)) & (steps >= 0) & (steps <= 15)
    if not whole.all():
        share = f"{int((~whole).sum())} of its {whole.size}"
        raise SchemeError(f"{share} blocks have a minimum that is not an integer multiple of their scale")
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
