"""Python classes over the decoder's C interface (native/include/zeropoint.h): packed weights, decoder, key-value cache.

A C object is freed when its Python object is deleted. Calls release the interpreter lock.
"""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Mapping
from ctypes import POINTER, byref, c_float, c_int32, c_int64, c_size_t, c_uint8, c_void_p
from dataclasses import fields
from functools import cache
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import SchemeError, UnsupportedError
from zeropoint.kernels import library, native
from zeropoint.models.spec import DecoderConfig, LinearSlot, ModelSpec, NormSource
from zeropoint.values.arrays import Bytes, Floats, Int32s
from zeropoint.values.qtensor import QuantizedTensor

logger = logging.getLogger(__name__)


#: numpy dtype name -> `ZP_FLOAT16` ... of the header.
FLOAT_KINDS = {"float16": 1, "bfloat16": 2, "float32": 3}
#: Tokens that a page of the key-value cache holds (`ZP_PAGE` of the header).
PAGE = 64
#: Key-value cache type -> `ZP_CACHE_FLOAT16` ... of the header.
CACHE_TYPES = {"float16": 0, "int8": 1, "float32": 2}
_FLOAT_FIELDS = frozenset(
    {"norm_eps", "embedding_scale", "residual_scale", "logit_scale"}
    | {"attention_scale", "attention_softcap", "logit_softcap"}
)


class Configuration(ctypes.Structure):
    """The C struct `zp_decoder_config`, with the fields of `DecoderConfig`."""

    _fields_ = tuple(
        (field.name, c_float if field.name in _FLOAT_FIELDS else c_int32) for field in fields(DecoderConfig)
    )


_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "zp_pack_float": (c_int32, [POINTER(library.Format), c_void_p, POINTER(c_void_p)]),
    "zp_weight_memory": (c_void_p, [c_void_p]),
    "zp_view": (c_int32, [POINTER(library.Format), c_void_p, c_size_t, POINTER(c_void_p)]),
    "zp_decoder_create": (c_int32, [POINTER(Configuration), POINTER(c_void_p)]),
    "zp_decoder_free": (None, [c_void_p]),
    "zp_decoder_layer": (c_int32, [c_void_p, c_int32, c_int32, c_int32]),
    "zp_decoder_rope": (c_int32, [c_void_p, c_int32, c_void_p, c_int32, c_float]),
    "zp_decoder_linear": (c_int32, [c_void_p, c_int32, c_int32, c_void_p, c_void_p]),
    "zp_decoder_norm": (c_int32, [c_void_p, c_int32, c_int32, c_void_p, c_void_p, c_int32]),
    "zp_decoder_finish": (c_int32, [c_void_p]),
    "zp_cache_create": (c_int32, [c_void_p, c_int64, c_int32, c_int32, POINTER(c_void_p)]),
    "zp_cache_free": (None, [c_void_p]),
    "zp_cache_grow": (c_int32, [c_void_p, c_int64]),
    "zp_cache_bytes": (c_size_t, [c_void_p]),
    "zp_cache_pages": (c_int64, [c_void_p]),
    "zp_cache_free_pages": (c_int64, [c_void_p]),
    "zp_cache_is_wide": (c_int32, [c_void_p]),
    "zp_cache_length": (c_int64, [c_void_p, c_int32]),
    "zp_cache_truncate": (c_int32, [c_void_p, c_int32, c_int64]),
    "zp_cache_share": (c_int32, [c_void_p, c_int32, c_int32, c_int64]),
    "zp_forward": (
        c_int32,
        [c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int32],
    ),
}


@cache
def load() -> ctypes.CDLL:
    """Load the C++ library and declare the decoder's functions.

    Raises `UnsupportedError` if the library is missing or lacks a function.
    """
    reason = library.missing()
    if reason is not None:
        raise UnsupportedError(reason)
    lib = library.load()
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(lib, name, None)
        if function is None:
            raise UnsupportedError(f"the native library lacks {name}: rebuild with `pip install .`")
        function.restype = result
        function.argtypes = arguments
    return lib


class _Owner:
    """Owner of a C object: the C function `free` releases it when this object is deleted."""

    __slots__ = ("__weakref__", "_finalizer", "address")

    def __init__(self, address: int, free: str) -> None:
        self.address = address
        self._finalizer = weakref.finalize(self, getattr(load(), free), c_void_p(address))
        self._finalizer.atexit = False


class Weight(_Owner):
    """A matrix packed in the kernels' layout.

    `format` is its `zp_format`. `keeps` holds a reference to memory that this weight uses but does not own.
    """

    __slots__ = ("format", "keeps", "nbytes")

    def __init__(self, address: int, format: library.Format, keeps: object = None) -> None:
        super().__init__(address, "zp_free")
        self.format = format
        self.keeps = keeps
        self.nbytes: int = load().zp_weight_bytes(address)

    @property
    def memory(self) -> Bytes:
        """Return the packed bytes, uint8 `[nbytes]`; they are valid as long as this object lives."""
        start = load().zp_weight_memory(self.address)
        return np.ctypeslib.as_array(ctypes.cast(start, POINTER(c_uint8)), (self.nbytes,))


def pack(weight: QuantizedTensor | NDArray[Any]) -> Weight:
    """Pack a quantized or float matrix `[out, in]` in the kernels' layout.

    Raises `UnsupportedError` if the kernels do not support the format, `SchemeError` if an array is not a matrix of
    floats.
    """
    if isinstance(weight, QuantizedTensor):
        return Weight(native.pack_at(weight), native.format_of(weight.scheme, weight.shape))
    if weight.dtype == np.float64:
        weight = weight.astype(np.float32)
    if weight.ndim != 2 or weight.dtype.name not in FLOAT_KINDS:
        raise SchemeError(f"a weight must be a matrix of floats, not {weight.dtype} {weight.shape}")
    values, address = np.ascontiguousarray(weight), c_void_p()
    rows, columns = values.shape
    format = library.Format(rows=rows, columns=columns, kind=FLOAT_KINDS[weight.dtype.name])
    library.check(load().zp_pack_float(byref(format), values.ctypes.data, byref(address)))
    assert address.value is not None
    return Weight(address.value, format)


def view(format: library.Format, memory: Bytes) -> Weight:
    """Return a weight that uses the packed bytes in `memory` (64-byte aligned) without a copy and keeps them alive."""
    address = c_void_p()
    library.check(load().zp_view(byref(format), memory.ctypes.data, memory.nbytes, byref(address)))
    assert address.value is not None
    return Weight(address.value, format, memory)


def configuration(config: DecoderConfig) -> Configuration:
    """Return the C struct with the values of `config`. Raises `SchemeError` for an integer of more than 32 bits."""
    values = {field.name: getattr(config, field.name) for field in fields(DecoderConfig)}
    for name, value in values.items():
        _check_int32(name, value)
    return Configuration(**values)


class Decoder(_Owner):
    """A complete model in the C++ library.

    `record` is the model spec, `weights` holds the matrices by (layer, slot), and `vectors` the biases and norm weights
    by stored name. Raises `UnsupportedError` or `SchemeError` naming the part that the C++ decoder does not accept.
    """

    __slots__ = ("_warned_wide", "record", "weights")

    def __init__(
        self,
        record: ModelSpec,
        weights: Mapping[tuple[int, LinearSlot], Weight],
        vectors: Mapping[str, Floats],
    ) -> None:
        c, address = load(), c_void_p()
        library.check(c.zp_decoder_create(byref(configuration(record.config)), byref(address)))
        assert address.value is not None
        super().__init__(address.value, "zp_decoder_free")
        self._warned_wide = False
        self.record = record
        self.weights = dict(weights)  # the C++ decoder keeps pointers to them
        for table, rope in enumerate(record.ropes):
            frequency = np.ascontiguousarray(rope.inverse_frequency, np.float32)
            status = c.zp_decoder_rope(address, table, frequency.ctypes.data, len(frequency), rope.scale)
            library.check(status)
        for number, layer in enumerate(record.layers):
            _check_int32(f"the window of layer {number}", layer.window)
            library.check(c.zp_decoder_layer(address, number, layer.window, layer.table))
        for number, slot, linear in record.linears():
            bias = None if linear.bias is None else vectors[linear.bias]
            if bias is not None and linear.rows is not None:
                bias = bias[linear.rows.index()]
            weight = self.weights[number, slot]
            library.check(c.zp_decoder_linear(address, number, slot, weight.address, _data(bias)))
        for number, norm_slot, norm in record.norms():
            scale, shift = norm_vectors(norm, vectors)
            status = c.zp_decoder_norm(address, number, norm_slot, _data(scale), _data(shift), norm.size)
            library.check(status)
        library.check(c.zp_decoder_finish(address))

    def cache(self, tokens: int, *, sequences: int = 1, type: str = "float16") -> Cache:
        """Return an empty key-value cache of `sequences` sequences, for `tokens` tokens in all.

        The cache has enough pages for so many tokens, however they are split among the sequences. A step fits if enough
        pages are free for it. `type` is float16, int8 or float32. If a key or value exceeds float16's range, a float16
        cache is converted to float32, and a warning is logged once. Raises `SchemeError` for an unknown type.
        """
        return Cache(self, tokens, sequences, type)

    def forward(
        self,
        cache: Cache,
        tokens: Int32s,
        sequences: Int32s,
        positions: Int32s,
        *,
        wanted: Bytes | None = None,
        threads: int,
        out: Floats | None = None,
    ) -> Floats:
        """Run one forward step over n tokens and return float32 logits `[marked, vocab]`.

        `tokens`, `sequences` and `positions` are integers `[n]`: token i belongs to sequence `sequences[i]` at position
        `positions[i]`. `wanted` `[n]` marks the tokens whose logits are returned (None: all tokens). The logits are
        written to `out` if given. Raises `SchemeError` if the cache or the model cannot take an argument; the cache is
        then unchanged.
        """
        count = int(np.size(tokens))
        tokens = int32s("tokens", tokens, count)
        sequences = int32s("sequences", sequences, count)
        positions = int32s("positions", positions, count)
        if wanted is not None:
            wanted = np.ascontiguousarray(np.asarray(wanted) != 0, np.uint8)
            if wanted.shape != (count,):
                raise SchemeError(f"{count} tokens need as many marks, not an array of shape {wanted.shape}")
        rows = count if wanted is None else int(np.count_nonzero(wanted))
        shape = (rows, self.record.config.vocab)
        if out is None:
            out = np.empty(shape, np.float32)
        if (
            out.shape != shape
            or not (out.flags.c_contiguous and out.flags.writeable)
            or out.dtype != np.float32
        ):
            raise SchemeError(
                f"the logits need writable, contiguous float32 of the shape {shape}, not {out.dtype} {out.shape}"
            )
        _check_int32("threads", threads)
        status = load().zp_forward(
            self.address,
            cache.address,
            count,
            tokens.ctypes.data,
            sequences.ctypes.data,
            positions.ctypes.data,
            None if wanted is None else wanted.ctypes.data,
            out.ctypes.data,
            threads,
        )
        library.check(status)
        if not self._warned_wide and cache.is_wide:
            self._warned_wide = True
            logger.warning(
                "a key or value is beyond float16's 65504: the key-value cache is kept in float32 from here on "
                "(--kv-cache float32 does so from the start, int8 takes a quarter of the memory)"
            )
        return out


class Cache(_Owner):
    """The key-value cache of one or more sequences of a decoder."""

    __slots__ = ("_decoder", "sequences", "tokens")

    def __init__(self, decoder: Decoder, tokens: int, sequences: int, type: str) -> None:
        address = c_void_p()
        if type not in CACHE_TYPES:
            raise SchemeError(f"unknown key-value cache {type!r}: use {', '.join(CACHE_TYPES)}")
        _check_integer("tokens", tokens, 64)
        _check_int32("sequences", sequences)
        status = load().zp_cache_create(decoder.address, tokens, sequences, CACHE_TYPES[type], byref(address))
        library.check(status)
        assert address.value is not None
        super().__init__(address.value, "zp_cache_free")
        self._decoder = decoder
        self.tokens, self.sequences = tokens, sequences

    @property
    def nbytes(self) -> int:
        return int(load().zp_cache_bytes(self.address))

    @property
    def pages(self) -> int:
        """Return the number of pages, of `PAGE` tokens each. A sequence has as few pages as hold its tokens."""
        return int(load().zp_cache_pages(self.address))

    @property
    def free_pages(self) -> int:
        """Return the number of pages that no sequence uses."""
        return int(load().zp_cache_free_pages(self.address))

    @property
    def is_wide(self) -> bool:
        """Return whether a float16 cache was converted to float32, because a key or value exceeded float16's range."""
        return bool(load().zp_cache_is_wide(self.address))

    def length(self, sequence: int = 0) -> int:
        """Return how many tokens of a sequence are cached. Raises `SchemeError` if there is no such sequence."""
        if not 0 <= sequence < self.sequences:
            raise SchemeError(f"the cache has {self.sequences} sequences, and no sequence {sequence}")
        return int(load().zp_cache_length(self.address, sequence))

    def grow(self, tokens: int) -> None:
        """Make room for `tokens` tokens in all; cached tokens stay, and a cache never shrinks.

        Raises `ZeropointError` if there is not enough memory; the cache is then unchanged."""
        _check_integer("tokens", tokens, 64)
        library.check(load().zp_cache_grow(self.address, tokens))
        self.tokens = max(self.tokens, tokens)

    def truncate(self, length: int, sequence: int = 0) -> None:
        """Remove the tokens of `sequence` at position `length` and beyond."""
        _check_integer("length", length, 64)
        _check_int32("sequence", sequence)
        library.check(load().zp_cache_truncate(self.address, sequence, length))

    def share(self, source: int, target: int, length: int) -> None:
        """Let the empty sequence `target` begin with the first `length` tokens of `source`.

        The pages that these tokens fill are shared. A page that they fill in part is copied. A sequence that is
        truncated to a position within a shared page copies the page before it writes to it. Raises `SchemeError`, and
        changes nothing, if no page is free for a copy or an argument is out of range.
        """
        _check_integer("length", length, 64)
        _check_int32("source", source)
        _check_int32("target", target)
        library.check(load().zp_cache_share(self.address, source, target, length))


def norm_vectors(source: NormSource, vectors: Mapping[str, Floats]) -> tuple[Floats, Floats | None]:
    """Return a norm's weight `[size]` and bias (or None); the weight is ones if none is stored, and 1 + the stored
    weight if `source.one_plus`."""
    if source.weight is None:
        weight = np.ones(source.size, np.float32)
    else:
        weight = vectors[source.weight] + np.float32(source.one_plus)
    return weight, None if source.bias is None else vectors[source.bias]


def int32s(name: str, values: NDArray[Any], count: int) -> Int32s:
    """Return integers `[count]` of any dtype as contiguous int32. Raises `SchemeError` for any other array."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu" or array.shape != (count,):
        raise SchemeError(f"{name} must be {count} whole numbers, not {array.dtype} of shape {array.shape}")
    if array.dtype != np.int32 and count > 0:
        _check_int32(name, int(array.min()))
        _check_int32(name, int(array.max()))
    return np.ascontiguousarray(array, np.int32)


def _check_int32(name: str, value: float) -> None:
    _check_integer(name, value, 32)


def _check_integer(name: str, value: float, bits: int) -> None:
    """Raise `SchemeError` for an integer that needs more bits: ctypes would silently drop the high bits."""
    if isinstance(value, Integral) and not -(2 ** (bits - 1)) <= int(value) < 2 ** (bits - 1):
        raise SchemeError(f"{name} is {value!s:.40}, which does not fit {bits} bits")


def _data(vector: Floats | None) -> int | None:
    """Return the address of a vector. The caller keeps the vector alive during the C call, which copies it."""
    if vector is None:
        return None
    assert vector.dtype == np.float32
    assert vector.flags.c_contiguous
    return int(vector.ctypes.data)
