"""Mutants of intact files, one seeded change each: GGUF, JSON, safetensors, the native engine's packed file."""

from __future__ import annotations

import json
import random
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.damage import Mutant

# -- bytes ----------------------------------------------------------------------------------------


def cut(data: bytes, edges: list[int], rng: random.Random) -> Mutant:
    """Return a truncated mutant: cut at a structural edge, one byte beside it, or anywhere."""
    end = (
        rng.choice(edges) + rng.choice((-1, 0, 1))
        if edges and rng.random() < 0.6
        else rng.randrange(len(data))
    )
    end = min(max(end, 0), len(data) - 1)
    return Mutant(f"cut to {end} of {len(data)} bytes", data[:end], strict=True)


def flipped(data: bytes, start: int, stop: int, rng: random.Random) -> Mutant:
    """Return a mutant with one, two or four bits or bytes changed between `start` and `stop`."""
    changed, places = bytearray(data), [rng.randrange(start, stop) for _ in range(rng.choice((1, 1, 2, 4)))]
    for place in places:
        changed[place] = changed[place] ^ 1 << rng.randrange(8) if rng.random() < 0.5 else rng.randrange(256)
    return Mutant(f"bytes {places} changed", bytes(changed))


def set_number(data: bytes, at: int, width: int, value: int, what: str, *, strict: bool) -> Mutant:
    """Return a mutant with the little-endian number of `width` bytes at `at` replaced by `value`."""
    changed = bytearray(data)
    changed[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    return Mutant(f"{what} at {at} = {value}", bytes(changed), strict=strict and bytes(changed) != data)


def hostile_number(value: int, width: int, rng: random.Random) -> int:
    """Return a number near the true value or near the end of an integer range."""
    ends = [1 << 8 * width, 1 << (8 * width - 1), 1 << rng.randrange(8 * width), value]
    return rng.choice(
        (0, *(end + step for end in ends for step in (-1, 0, 1)), 2 * value, rng.getrandbits(8 * width))
    )


# -- GGUF -----------------------------------------------------------------------------------------

#: Fields whose value nothing else in the file repeats: with another value the file is still sound.
FREE = {"key", "value", "text", "elements", "value type", "element type"}
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a GGUF header, `width` bytes at offset `at`; `what` names its meaning."""

    what: str
    at: int
    width: int


def gguf_fields(data: bytes) -> list[Field]:
    """Return every field of an intact file's header, in order; the last is the padding before the data."""
    fields: list[Field] = []
    at = 0

    def take(what: str, width: int) -> int:
        nonlocal at
        fields.append(Field(what, at, width))
        at += width
        return int.from_bytes(data[at - width : at], "little")

    take("magic", 4), take("version", 4)
    tensors, keys = take("tensor count", 8), take("key count", 8)

    def value(kind: int) -> None:
        if kind == 8:
            take("text", take("text length", 8))
        elif kind == 9:
            inner, count = take("element type", 4), take("element count", 8)
            if inner == 8:
                for _ in range(count):
                    value(8)
            else:
                take("elements", WIDTHS[inner] * count)
        else:
            take("value", WIDTHS[kind])

    for _ in range(keys):
        take("key", take("key length", 8))
        value(take("value type", 4))
    for _ in range(tensors):
        take("tensor name", take("tensor name length", 8))
        for _ in range(take("dimension count", 4)):
            take("dimension", 8)
        take("tensor type", 4), take("offset", 8)
    take("padding", -at % 32)
    return fields


def damage_gguf(data: bytes, rng: random.Random) -> Mutant:
    """Return a mutant of a GGUF file: truncated, with changed bytes, or with one header field replaced."""
    fields = gguf_fields(data)
    end = fields[-1].at + fields[-1].width
    way = rng.randrange(8)
    if way == 0:
        return cut(data, [field.at for field in fields] + [end], rng)
    if way == 1:
        return flipped(data, 0, end, rng)
    # The vocabulary's texts outnumber all other fields: choose the kind of field first.
    what = rng.choice(sorted({field.what for field in fields if field.width}))
    field = rng.choice([field for field in fields if field.what == what and field.width])
    if what in ("key", "text", "tensor name", "magic", "elements", "padding"):
        return _hit_text(data, field, rng)
    if what == "offset" and rng.random() < 0.5:  # overlaps another tensor
        other = rng.choice([each for each in fields if each.what == "offset" and each != field])
        value = int.from_bytes(data[other.at : other.at + 8], "little")
    else:
        value = hostile_number(
            int.from_bytes(data[field.at : field.at + field.width], "little"), field.width, rng
        )
    # Some tensor types have blocks of equal size but other values, which nothing in the file contradicts.
    strict = what not in FREE and what != "tensor type"
    return set_number(data, field.at, field.width, value, what, strict=strict)


def _hit_text(data: bytes, field: Field, rng: random.Random) -> Mutant:
    changed = bytearray(data)
    bad = rng.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00", b"\x1b[2J", b"A", rng.randbytes(4)))
    place = field.at + rng.randrange(field.width)
    changed[place : place + len(bad)] = bad[: field.at + field.width - place]
    strict = field.what in ("magic", "tensor name") and bytes(changed) != data
    return Mutant(f"{field.what} at {place} = {bad!r}", bytes(changed), strict=strict)


# -- JSON -----------------------------------------------------------------------------------------


class Raw(str):
    """A text that `dumps` writes into JSON unchanged."""


JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 2**64, 10**400, 0.5, 1e308, "", "x" * 500, "\x1b[2J\n", "../../etc/passwd", [], {},
    [[]], {"a": {}}, [None] * 100, Raw("NaN"), Raw("-Infinity"), Raw("1e999"), Raw("9" * 5000), Raw('"\\ud800"'),
    Raw("[" * 900 + "]" * 900), Raw('{"a":' * 400 + "1" + "}" * 400), Raw("[" * 100_000), Raw("01"), Raw("\x00"),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside a JSON value, without the empty path."""
    keys: Any = (
        list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def damage_json(data: bytes, rng: random.Random) -> Mutant:
    """Return a mutant of a JSON file: truncated, with changed bytes, or with one value changed by `damage_value`."""
    way = rng.randrange(10)
    if way == 0:
        return cut(data.rstrip(), [], rng)
    if way == 1:
        return flipped(data, 0, len(data), rng)
    if way == 2:
        at = rng.randrange(len(data))
        return Mutant(f"byte {at} is not UTF-8", data[:at] + b"\xff" + data[at + 1 :], strict=True)
    value = json.loads(data)
    return Mutant(*damage_value(value, rng))


def damage_value(value: Any, rng: random.Random) -> tuple[str, bytes, bool]:
    """Replace, drop, rename or duplicate one value of a JSON value.

    Returns a description, the new JSON text, and whether a reader must notice the change (`Mutant.strict`).
    """
    # Deep places outnumber the others: choose the depth first.
    paths = list(places(value))
    depth = rng.choice(sorted({len(path) for path in paths}))
    place = rng.choice([path for path in paths if len(path) == depth])
    owner = value
    for key in place[:-1]:
        owner = owner[key]
    way = rng.randrange(8)
    if way == 0 and isinstance(owner, dict):
        owner[rng.choice(("x", "", "\x1b[2J\n", "x" * 500))] = owner.pop(place[-1])
        return f"{place} renamed", dumps(value), False
    if way == 1:
        del owner[place[-1]]
        return f"{place} dropped", dumps(value), False
    if way == 2 and isinstance(owner, dict):
        junk = rng.choice(JUNK)
        twice = f"{dumps(owner[place[-1]]).decode()},{json.dumps(place[-1])}:{dumps(junk).decode()}"
        owner[place[-1]] = Raw(twice)
        return f"{place} given twice, the second time as {str(junk)[:40]!r}", dumps(value), True
    old, junk = owner[place[-1]], rng.choice(JUNK)
    if type(old) in (int, float) and rng.random() < 0.3:
        junk = old * rng.choice((-1, 0, 2, 3, 0.5, 1e30))
    owner[place[-1]] = junk
    return f"{place} = {str(junk)[:40]!r}", dumps(value), False


def dumps(value: Any) -> bytes:
    """Return JSON text, with `Raw` values written unchanged."""
    raw: list[str] = []

    def mark(each: Any) -> Any:
        if isinstance(each, Raw):
            raw.append(each)
            return f"@raw {len(raw) - 1}@"
        if isinstance(each, dict):
            return {key: mark(inner) for key, inner in each.items()}
        return [mark(inner) for inner in each] if isinstance(each, list) else each

    text = json.dumps(mark(value))
    return re.sub(r'"@raw (\d+)@"', lambda found: raw[int(found[1])], text).encode()


# -- safetensors ----------------------------------------------------------------------------------

DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "U64", "X9")


def damage_safetensors(data: bytes, rng: random.Random) -> Mutant:
    """Return a mutant of a safetensors file: truncated, with changed bytes, or with one header entry changed."""
    length = int.from_bytes(data[:8], "little")
    way = rng.randrange(8)
    if way == 0:
        return cut(data, [1, 7, 8, 8 + length], rng)
    if way == 1:
        return flipped(data, 0, 8 + length, rng)
    if way == 2:
        return set_number(data, 0, 8, hostile_number(length, 8, rng), "header length", strict=True)
    header = json.loads(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    entry, what, strict = header[name], "", True
    start, stop = entry["data_offsets"]
    if way == 3:
        what, entry["data_offsets"] = "overlapping", list(header[rng.choice(names)]["data_offsets"])
        strict = entry["data_offsets"] != [start, stop]
    elif way == 4:
        which, value = rng.randrange(2), hostile_number(rng.choice((start, stop)), 8, rng)
        what, strict = f"offset {value}", entry["data_offsets"][which] != value
        entry["data_offsets"][which] = value
    elif way == 5 and entry["shape"]:
        which = rng.randrange(len(entry["shape"]))
        value = hostile_number(entry["shape"][which], 8, rng)
        what, strict = f"dimension {value}", entry["shape"][which] != value
        entry["shape"][which] = value
    elif way == 6:
        dtype = rng.choice(DTYPES)  # not strict: another dtype of the same size makes a sound file
        what, strict, entry["dtype"] = f"dtype {dtype}", False, dtype
    else:
        change, text, strict = damage_value(header, rng)
        return Mutant(f"header: {change}", struct.pack("<Q", len(text)) + text + data[8 + length :], strict)
    text = json.dumps(header).encode()
    return Mutant(f"{name}: {what}", struct.pack("<Q", len(text)) + text + data[8 + length :], strict)


# -- the native engine's packed file --------------------------------------------------------------

HEAD = struct.Struct("<16sQQQ")


def damage_packed(data: bytes, rng: random.Random) -> Mutant:
    """Return a mutant of a packed file, possibly with a damaged index and a matching checksum.

    Every mutant is strict: the engine must make a damaged file again and return the same model.
    """
    _, at, length, _ = HEAD.unpack_from(data)
    way = rng.randrange(6)
    if way == 0:
        return cut(data, [16, 40, 64, at, at + length], rng)
    if way == 1:
        mutant = flipped(data, 0, HEAD.size, rng)
    elif way == 2:
        mutant = flipped(data, 64, len(data), rng)
    elif way == 3:
        place = rng.choice((16, 24, 32))
        value = hostile_number(int.from_bytes(data[place : place + 8], "little"), 8, rng)
        mutant = set_number(data, place, 8, value, "head", strict=True)
    else:
        what, text, _ = damage_value(json.loads(data[at : at + length]), rng)
        head = HEAD.pack(b"zeropoint packed", at, len(text), zlib.crc32(text))
        mutant = Mutant(f"index: {what}", head + data[HEAD.size : at] + text)
    return Mutant(mutant.what, mutant.content, strict=True)
