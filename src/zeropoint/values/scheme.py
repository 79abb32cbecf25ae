"""Number formats of weights and activations: bits, granularity, symmetry, scale type, activation format.

A `Scheme` describes the numbers, not the algorithm that chose them. Its string form is canonical and parses back to
an equal `Scheme`::

    fp16                              plain half-precision floats
    bf16
    int8:channel:sym:bf16:a16token    8-bit codes, one scale per output channel, 16-bit activations
    int4:g32:sym:nested:a16token      4-bit codes, a two-level scale per group of 32 weights of a row
    int4:g32:asym:bf16:a8g32          4-bit codes, scale and zero point per group, 8-bit activations

`parse` accepts the segments after the first in any order, and fills missing ones with defaults: `channel`, `sym`,
`bf16`, no activation quantization. Names without segments (`int8`, `int5`, `int4`, `half`, `float16`, `bfloat16`) are
the presets in `PRESETS`; `int3` alone, for example, is no preset and takes the defaults.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from zeropoint.dtypes import BY_FORMAT
from zeropoint.errors import SchemeError

ScaleDtype = Literal["bf16", "fp16", "fp32", "nested"]
Granularity = Literal["tensor", "channel", "group"]

SCALE_BYTES: dict[str, int] = {
    **{name: BY_FORMAT[name].nbytes for name in ("bf16", "fp16", "fp32")},
    "nested": 2,
}
FLOAT_FORMATS: dict[str, int] = {name: 8 * BY_FORMAT[name].nbytes for name in ("fp16", "bf16", "fp32")}
MIN_BITS, MAX_BITS = 2, 8
MAX_GROUP_SIZE = 9_999_999  # channels: the string form has at most 7 digits, and the kernels' type is int32
QMAX: dict[int, int] = {8: 127, 16: 127 * 128 + 63}
#: A two-level scale ("nested") is one float per row times a signed integer per group, the multiple. A multiple's
#: absolute value is at most `Scheme.max_multiple`. `NESTED_BITS` is the largest code width with two-level scales.
MAX_MULTIPLE, NESTED_BITS = 15, 5


def ceil_div(a: int, b: int) -> int:
    """Return `a / b` rounded up."""
    return -(-a // b)


def _check_group_size(size: int) -> None:
    if size > MAX_GROUP_SIZE:
        raise SchemeError(f"a group has at most {MAX_GROUP_SIZE} channels, not {size}")


@dataclass(frozen=True, slots=True)
class Activation:
    """Dynamic symmetric quantization of a layer's input: scales are computed while the layer runs.

    `group_size` channels of one token share a scale; 0 means one scale per token. A 16-bit code is two int8 limbs,
    `code = 128 * high + low`. Kernels multiply each limb as int8, so 16-bit activations cost two int8 products. With
    16 bits, one scale per token suffices even for inputs with outlier channels.
    """

    bits: int = 8
    group_size: int = 0

    def __post_init__(self) -> None:
        if self.bits not in QMAX:
            raise SchemeError(f"activations are quantized to 8 or 16 bits, not {self.bits}")
        if self.bits == 16 and self.group_size:
            raise SchemeError("16-bit activations have one scale per token: write a16token")
        if self.group_size < 0 or self.group_size % 8:
            raise SchemeError(f"an activation group holds a multiple of 8 channels, not {self.group_size}")
        _check_group_size(self.group_size)

    @property
    def qmax(self) -> int:
        """Return the largest code; for 16 bits 16319 = 128 * 127 + 63 (high limb: int8; low limb: -64..63)."""
        return QMAX[self.bits]

    def __str__(self) -> str:
        return f"a{self.bits}g{self.group_size}" if self.group_size else f"a{self.bits}token"


@dataclass(frozen=True, slots=True)
class Scheme:
    """A number format for a 2-D weight `[out, in]`.

    - `granularity`: one scale per tensor, per output channel, or per group of a row;
    - `group_size`: consecutive input channels of one row that share a scale; 0 unless `granularity == "group"`;
    - `float_format`: set for unquantized formats only; then every other field but `bits` keeps its default.

    Raises `SchemeError` if the fields contradict each other.
    """

    bits: int = 8
    granularity: Granularity = "channel"
    group_size: int = 0
    symmetric: bool = True
    scale_dtype: ScaleDtype = "bf16"
    activation: Activation | None = None
    float_format: str | None = None

    def __post_init__(self) -> None:
        if self.float_format is not None:
            self._check_float()
            return
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise SchemeError(f"integer formats have {MIN_BITS} to {MAX_BITS} bits, not {self.bits}")
        if self.granularity not in ("tensor", "channel", "group"):
            raise SchemeError(
                f"unknown granularity {self.granularity!r}: use tensor, channel or a group such as g32"
            )
        if (self.granularity == "group") != (self.group_size > 0):
            raise SchemeError("a group size goes with group granularity, and only with it")
        _check_group_size(self.group_size)
        if self.scale_dtype not in SCALE_BYTES:
            raise SchemeError(f"unknown scale type {self.scale_dtype!r}: use {', '.join(SCALE_BYTES)}")
        nests = self.granularity == "group" and self.symmetric and self.bits <= NESTED_BITS
        if self.scale_dtype == "nested" and not nests:
            raise SchemeError("nested scales need symmetric groups and at most 5 bits")

    def _check_float(self) -> None:
        if self.float_format not in FLOAT_FORMATS:
            raise SchemeError(f"unknown float format {self.float_format!r}: use {', '.join(FLOAT_FORMATS)}")
        plain = (self.granularity, self.group_size, self.symmetric, self.scale_dtype, self.activation)
        if plain != ("channel", 0, True, "bf16", None):
            raise SchemeError(
                f"{self.float_format} has no groups, zero points, scales or quantized activations"
            )
        if self.bits != FLOAT_FORMATS[self.float_format]:
            raise SchemeError(
                f"{self.float_format} has {FLOAT_FORMATS[self.float_format]} bits, not {self.bits}"
            )

    # -- properties derived from the fields -----------------------------------------------------

    @property
    def is_float(self) -> bool:
        """Return whether the format is unquantized."""
        return self.float_format is not None

    @property
    def qmin(self) -> int:
        """Return the smallest code. Codes are signed, asymmetric ones too.

        8-bit symmetric codes exclude -128: then every code can be negated, and the instruction `maddubs` cannot
        saturate.
        """
        return -127 if self.bits == 8 and self.symmetric else -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """Return the largest code."""
        return (1 << (self.bits - 1)) - 1

    @property
    def plain_scale_dtype(self) -> ScaleDtype:
        """Return the type in which scales are stored: bf16 for two-level scales, else `scale_dtype`."""
        return "bf16" if self.scale_dtype == "nested" else self.scale_dtype

    @property
    def max_multiple(self) -> int:
        """Return the largest multiple of a two-level scale: 15, or 7 for 5 bits, so `code * multiple` fits an int8."""
        return min(MAX_MULTIPLE, 127 >> (self.bits - 1))

    def groups_per_row(self, columns: int) -> int:
        """Return the number of scales along one row of `columns` weights; the last group may be short."""
        return ceil_div(columns, self.group_size) if self.granularity == "group" else 1

    def scale_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the shape of the scales of a weight `[out, in]`."""
        rows, columns = shape
        return (1, 1) if self.granularity == "tensor" else (rows, self.groups_per_row(columns))

    def nbytes(self, shape: tuple[int, int]) -> int:
        """Return the bytes that an artifact stores for a weight of this shape: codes, scales and zero points.

        8-bit codes and their zero points take one byte each. Codes of less than 8 bits are packed into 32-bit words
        along a row. Their zero points `[out, groups]` are packed the same way along `out`; the one zero point of
        granularity tensor is not packed and takes one byte. A packed weight also stores its shape, two int64. The
        layout is that of compressed-tensors.
        """
        rows, columns = shape
        if self.is_float:
            return rows * columns * self.bits // 8
        scales = self.scale_shape(shape)
        total = scales[0] * scales[1] * SCALE_BYTES[self.scale_dtype]
        if self.is_packed:
            total += rows * ceil_div(columns * self.bits, 32) * 4 + 16
        else:
            total += rows * columns
        if not self.symmetric:
            if self.is_packed and self.granularity != "tensor":
                total += ceil_div(scales[0] * self.bits, 32) * 4 * scales[1]
            else:
                total += scales[0] * scales[1]
        return total

    @property
    def is_packed(self) -> bool:
        """Return whether codes are stored in packed 32-bit words ("pack-quantized") instead of one byte each."""
        return not self.is_float and self.bits != 8

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Return the mean number of stored bits per weight, scales and zero points included."""
        return 8 * self.nbytes(shape) / (shape[0] * shape[1])

    # -- the string form ------------------------------------------------------------------------

    def __str__(self) -> str:
        if self.float_format is not None:
            return self.float_format
        group = f"g{self.group_size}" if self.granularity == "group" else self.granularity
        parts = [f"int{self.bits}", group, "sym" if self.symmetric else "asym", self.scale_dtype]
        if self.activation is not None:
            parts.append(str(self.activation))
        return ":".join(parts)

    def without_activation(self) -> Scheme:
        """Return the scheme of the same weights without quantized activations, as for an embedding lookup."""
        if self.activation is None:
            return self
        return Scheme(self.bits, self.granularity, self.group_size, self.symmetric, self.scale_dtype)


def parse(text: str) -> Scheme:
    """Return the `Scheme` of a preset's name (`int8`, see `PRESETS`), a float format (`fp16`) or a scheme string.

    Raises `SchemeError`, which lists the accepted forms, if the text names no format.
    """
    text = text.strip().lower()
    text = PRESETS.get(text, text)
    if text in FLOAT_FORMATS:
        return Scheme(bits=FLOAT_FORMATS[text], float_format=text)
    head, *rest = text.split(":")
    match = re.fullmatch(r"int(\d{1,2})", head)
    if match is None:
        raise SchemeError(
            f"unknown format {text!r}: use fp16, bf16, int8, int5, int4 or a scheme such as int4:g64:asym:bf16:a8g32"
        )
    fields: dict[str, object] = {}
    for segment in rest:
        key, values = _segment(segment, text)
        if key in fields:
            raise SchemeError(f"format {text!r} gives its {key.replace('_', ' ')} twice ({segment!r})")
        fields.update(values)
    return Scheme(bits=int(match.group(1)), **fields)  # type: ignore[arg-type]


def _segment(segment: str, text: str) -> tuple[str, dict[str, object]]:
    """Return the name of the property that a segment of a scheme string sets, and the values of `Scheme` fields."""
    if segment in ("tensor", "channel"):
        return "granularity", {"granularity": segment}
    if match := re.fullmatch(r"g([1-9]\d{0,6})", segment):
        return "granularity", {"granularity": "group", "group_size": int(match.group(1))}
    if segment in ("sym", "asym"):
        return "symmetric", {"symmetric": segment == "sym"}
    if segment in SCALE_BYTES:
        return "scale_dtype", {"scale_dtype": segment}
    if match := re.fullmatch(r"a(\d{1,2})(?:token|g([1-9]\d{0,6}))", segment):
        return "activation", {"activation": Activation(int(match.group(1)), int(match.group(2) or 0))}
    raise SchemeError(
        f"format {text!r} has an unknown part {segment!r}: use tensor, channel or g32; sym or asym; "
        "bf16, fp16, fp32 or nested; a16token, a8token or a8g32"
    )


#: Short name -> scheme string or float format. docs/formats.md has the measurements behind the choices.
#: int4 is symmetric because transformers 5.23 with compressed-tensors 0.20 cannot load packed zero points.
PRESETS: dict[str, str] = {
    "int8": "int8:channel:sym:bf16:a16token",
    "int5": "int5:g32:sym:nested:a16token",
    "int4": "int4:g32:sym:nested:a16token",
    "half": "fp16",
    "float16": "fp16",
    "bfloat16": "bf16",
}
