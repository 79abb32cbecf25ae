"""One seeded change to a file that is whole: GGUF, JSON, safetensors, or the native engine's packed file."""

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
    """Cut short: at a structural edge, beside one, or anywhere."""
    end = (
        rng.choice(edges) + rng.choice((-1, 0, 1))
        if edges and rng.random() < 0.6
        else rng.randrange(len(data))
    )
    end = min(max(end, 0), len(data) - 1)
    return Mutant(f"cut to {end} of {len(data)} bytes", data[:end], strict=True)


def flipped(data: bytes, start: int, stop: int, rng: random.Random) -> Mutant:
    """One to four bits or bytes changed between `start` and `stop`."""
    changed, places = bytearray(data), [rng.randrange(start, stop) for _ in range(rng.choice((1, 1, 2, 4)))]
    for place in places:
        changed[place] = changed[place] ^ 1 << rng.randrange(8) if rng.random() < 0.5 else rng.randrange(256)
    return Mutant(f"bytes {places} changed", bytes(changed))


def set_number(data: bytes, at: int, width: int, value: int, what: str, *, strict: bool) -> Mutant:
    """A little-endian number of `width` bytes replaced."""
    changed = bytearray(data)
    changed[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    return Mutant(f"{what} at {at} = {value}", bytes(changed), strict=strict and bytes(changed) != data)


def hostile_number(value: int, width: int, rng: random.Random) -> int:
    """A number near the true one or near the end of some range."""
    ends = [1 << 8 * width, 1 << (8 * width - 1), 1 << rng.randrange(8 * width), value]
    return rng.choice(
        (0, *(end + step for end in ends for step in (-1, 0, 1)), 2 * value, rng.getrandbits(8 * width))
    )


# -- GGUF -----------------------------------------------------------------------------------------

#: Fields whose value nothing else in the file repeats: another value is another sound file.
FREE = {"key", "value", "text", "elements", "value type", "element type"}
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@dataclass(frozen=True, slots=True)
class Field:
    """A part of a GGUF header, `width` bytes at `at`."""

    what: str
    at: int
    width: int


def gguf_fields(data: bytes) -> list[Field]:
    """Every field of a sound file's header, in order; the last is the padding before the data."""
    found: list[Field] = []
    at = 0

    def take(what: str, width: int) -> int:
        nonlocal at
        found.append(Field(what, at, width))
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
    return found


def damage_gguf(data: bytes, rng: random.Random) -> Mutant:
    fields = gguf_fields(data)
    end = fields[-1].at + fields[-1].width
    way = rng.randrange(8)
    if way == 0:
        return cut(data, [field.at for field in fields] + [end], rng)
    if way == 1:
        return flipped(data, 0, end, rng)
    # Texts of the vocabulary outnumber everything else: choose what is hit before where.
    what = rng.choice(sorted({field.what for field in fields if field.width}))
    field = rng.choice([field for field in fields if field.what == what and field.width])
    if what in ("key", "text", "tensor name", "magic", "elements", "padding"):
        return _hit_text(data, field, rng)
    if what == "offset" and rng.random() < 0.5:  # upon another tensor
        other = rng.choice([each for each in fields if each.what == "offset" and each != field])
        value = int.from_bytes(data[other.at : other.at + 8], "little")
    else:
        value = hostile_number(
            int.from_bytes(data[field.at : field.at + field.width], "little"), field.width, rng
        )
    # Of some types blocks have one size and other meanings, which the file cannot contradict.
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
    """A value written into a JSON file as it stands."""


JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 2**64, 10**400, 0.5, 1e308, "", "x" * 500, "\x1b[2J\n", "../../etc/passwd", [], {},
    [[]], {"a": {}}, [None] * 100, Raw("NaN"), Raw("-Infinity"), Raw("1e999"), Raw("9" * 5000), Raw('"\\ud800"'),
    Raw("[" * 900 + "]" * 900), Raw('{"a":' * 400 + "1" + "}" * 400), Raw("[" * 100_000), Raw("01"), Raw("\x00"),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path into a JSON value but the empty one."""
    keys: Any = (
        list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def damage_json(data: bytes, rng: random.Random) -> Mutant:
    """Cut short, bytes changed, or one value replaced, dropped, renamed or given twice."""
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
    """What was done to one place of a JSON value, the text, and whether it must be noticed."""
    # Deep places outnumber the others: choose the depth first.
    found = list(places(value))
    depth = rng.choice(sorted({len(place) for place in found}))
    place = rng.choice([each for each in found if len(each) == depth])
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
    """JSON in which `Raw` values stand as they are."""
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
        dtype = rng.choice(DTYPES)  # two types of one size, as a file of floats may have them, are both sound
        what, strict, entry["dtype"] = f"dtype {dtype}", False, dtype
    else:
        found, text, strict = damage_value(header, rng)
        return Mutant(f"header: {found}", struct.pack("<Q", len(text)) + text + data[8 + length :], strict)
    text = json.dumps(header).encode()
    return Mutant(f"{name}: {what}", struct.pack("<Q", len(text)) + text + data[8 + length :], strict)


# -- the native engine's packed file --------------------------------------------------------------

HEAD = struct.Struct("<16sQQQ")


def damage_packed(data: bytes, rng: random.Random) -> Mutant:
    """Any damage must go unnoticed: the file is made again. Also damage of the index with its checksum made to fit."""
    _, at, length, _ = HEAD.unpack_from(data)
    way = rng.randrange(6)
    if way == 0:
        return cut(data, [16, 40, 64, at, at + length], rng)
    if way == 1:
        found = flipped(data, 0, HEAD.size, rng)
    elif way == 2:
        found = flipped(data, 64, len(data), rng)
    elif way == 3:
        place = rng.choice((16, 24, 32))
        value = hostile_number(int.from_bytes(data[place : place + 8], "little"), 8, rng)
        found = set_number(data, place, 8, value, "head", strict=True)
    else:
        what, text, _ = damage_value(json.loads(data[at : at + length]), rng)
        head = HEAD.pack(b"zeropoint packed", at, len(text), zlib.crc32(text))
        found = Mutant(f"index: {what}", head + data[HEAD.size : at] + text)
    return Mutant(found.what, found.content, strict=True)
