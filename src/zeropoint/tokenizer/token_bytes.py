"""Conversion of a token's name in the vocabulary to the token's bytes."""

from __future__ import annotations

import re
from functools import cache


def byte_level_bytes(token: str) -> bytes:
    """Return the bytes of a token of a byte-level vocabulary, which writes each byte as a printable character."""
    table = _characters()
    try:
        return bytes(table[character] for character in token)
    except KeyError:  # a token that was added as plain text
        return token.encode()


def sentencepiece_bytes(token: str) -> bytes:
    """Return the bytes of a SentencePiece token: `<0x0A>` is a byte, and U+2581 is a space."""
    if re.fullmatch("<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


@cache
def _characters() -> dict[str, int]:
    """Return GPT-2's table of characters: printable Latin-1 characters are themselves, other bytes follow U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }
