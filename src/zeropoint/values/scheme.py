"""What the numbers are: bits, grouping, symmetry, scale type, activation format. Never how they were found.

A `Scheme` is a value. Its string form is canonical and parses back to the same value::

    fp16                              plain half-precision floats
    bf16
    int8:channel:sym:bf16:a16token    8-bit codes, a scale per output channel, int16 activations
    int4:g32:sym:nested:a16token      4-bit codes, a scale per 32 weights of a row, nested in the row's
    int4:g32:asym:bf16:a8g32          4-bit codes, scale and zero point per group, int8 activations

Segments after the first may be left out or permuted when parsed; the missing ones take the
defaults below (`channel`, `sym`, `bf16`, no activation quantization). `int8` and `int4` alone are
the named presets in `PRESETS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from zeropoint.errors import SchemeError

ScaleDtype = Literal["bf16", "fp16", "fp32", "nested"]
Granularity = Literal["tensor", "channel", "group"]

SCALE_BYTES: dict[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4, "nested": 2}
FLOAT_FORMATS: dict[str, int] = {"fp16": 16, "bf16": 16, "fp32": 32}
MIN_BITS, MAX_BITS = 2, 8
QMAX: dict[int, int] = {8: 127, 16: 127 * 128 + 63}
#: A nested scale is one number per row times a whole number, at most `Scheme.max_multiple`, of either sign.
MAX_MULTIPLE, NESTED_BITS = 15, 5


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True, slots=True)
class Activation:
    """Dynamic symmetric quantization of a layer's input, computed as the layer runs.

    `group_size` channels of one token share a scale; 0 means one scale per token. 16-bit codes are two int8
    digits, `code = 128 * second + first`: each is multiplied as int8, so that they cost two int8 products, and
    one scale per token is fine enough for any outlier.
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

    @property
    def qmax(self) -> int:
        """The largest code; 16319 is the largest whose two digits, the first in -64..63, are int8."""
        return QMAX[self.bits]

    def __str__(self) -> str:
        return f"a{self.bits}g{self.group_size}" if self.group_size else f"a{self.bits}token"


@dataclass(frozen=True, slots=True)
class Scheme:
    """A number format for a 2-D weight `[out, in]`.

    `group_size` is the number of consecutive input channels of one output row that share a scale;
    it is 0 unless `granularity == "group"`. `float_format` is set for the unquantized formats, and
    then every other field keeps its default.
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
        if self.scale_dtype not in SCALE_BYTES:
            raise SchemeError(f"unknown scale type {self.scale_dtype!r}: use {', '.join(SCALE_BYTES)}")
        nests = self.granularity == "group" and self.symmetric and self.bits <= NESTED_BITS
        if self.scale_dtype == "nested" and not nests:
            raise SchemeError("nested scales are those of symmetric groups of at most 5 bits")

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

    # -- ranges, derived and never stored -------------------------------------------------------

    @property
    def is_float(self) -> bool:
        return self.float_format is not None

    @property
    def qmin(self) -> int:
        """Smallest code. Codes are signed whatever the symmetry; an 8-bit symmetric grid leaves out
        -128 so that a code can always be negated (and `maddubs` cannot saturate)."""
        return -127 if self.bits == 8 and self.symmetric else -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def plain_scale_dtype(self) -> ScaleDtype:
        """What scales are on their own: nested ones are stored as bf16."""
        return "bf16" if self.scale_dtype == "nested" else self.scale_dtype

    @property
    def max_multiple(self) -> int:
        """Of a nested scale: 15, or what keeps code times multiple an int8, 7 for 5 bits."""
        return min(MAX_MULTIPLE, 127 >> (self.bits - 1))

    def groups_per_row(self, columns: int) -> int:
        """Scales along one row of `columns` weights; the last group may be short."""
        return ceil_div(columns, self.group_size) if self.granularity == "group" else 1

    def scale_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        rows, columns = shape
        return (1, 1) if self.granularity == "tensor" else (rows, self.groups_per_row(columns))

    def nbytes(self, shape: tuple[int, int]) -> int:
        """Bytes the artifact stores for a weight of this shape: codes, scales and zero points.

        4-bit codes (and other widths that are not 8) are packed densely into 32-bit words along
        a row; zero points are packed the same way down a column (compressed-tensors' layout), or
        stored as one byte each at 8 bits. Packed weights also carry their shape, two int64.
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
        """Stored as packed 32-bit words ("pack-quantized"); otherwise one byte a code."""
        return not self.is_float and self.bits != 8

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
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
        """The same weights, read by a float computation (an embedding lookup, say)."""
        if self.activation is None:
            return self
        return Scheme(self.bits, self.granularity, self.group_size, self.symmetric, self.scale_dtype)


def parse(text: str) -> Scheme:
    """The `Scheme` a string names: a preset (`int8`, `int4`), a float format, or segments.

    Raises `SchemeError` with the accepted forms when the text names no format.
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


#: int4 is symmetric because transformers 5.23 with compressed-tensors 0.20 cannot load packed zero points.
#: What the short names on the command line mean; see docs/formats.md for the measurements behind them.
PRESETS: dict[str, str] = {
    "int8": "int8:channel:sym:bf16:a16token",
    "int5": "int5:g32:sym:nested:a16token",
    "int4": "int4:g32:sym:nested:a16token",
    "half": "fp16",
    "float16": "fp16",
    "bfloat16": "bf16",
}
