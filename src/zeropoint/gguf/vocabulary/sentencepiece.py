"""Conversion of SentencePiece vocabularies (Llama 2, Gemma) between tokenizer.json's merges and GGUF's scores.

llama.cpp joins the two neighbouring pieces whose joined piece has the highest score, however that piece is split. The
tokenizers library joins the pair that comes first in a list of merges. Both give the same tokens if the list holds
every split of each piece, piece by piece, in falling order of score. `merges` builds such a list from scores. `scores`
checks that a list has this form and returns minus the position of each piece as its score.
Kudo and Richardson, SentencePiece, arXiv:1808.06226.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from gguf import TokenType

from zeropoint.errors import UnsupportedError

SPACE = "▁"
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {"type": "Prepend", "prepend": SPACE}
#: Gemma's pre-tokenizer. It has no effect, because the normalizer has already replaced the spaces it splits at.
NO_EFFECT = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def is_sentencepiece(model: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer.json model is a SentencePiece vocabulary."""
    return model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def space_prefix(data: Mapping[str, Any]) -> bool:
    """Return whether the tokenizer puts a space before a text.

    Raises `UnsupportedError` if the tokenizer treats spaces in a way that llama.cpp cannot.
    """
    normalizer, splitter = data.get("normalizer"), data.get("pre_tokenizer")
    steps = normalizer.get("normalizers") if isinstance(normalizer, dict) else None
    if steps == [PREPEND, REPLACE] and splitter is None:
        return True
    if normalizer == REPLACE and splitter in (None, NO_EFFECT):
        return False
    if normalizer is None and isinstance(splitter, dict) and splitter.get("type") == "Metaspace":
        scheme = splitter.get("prepend_scheme")
        if (
            splitter.get("replacement") == SPACE
            and splitter.get("split") is False
            and scheme in ("always", "never")
        ):
            return bool(scheme == "always")
    raise UnsupportedError("its SentencePiece tokenizer treats spaces in a way that llama.cpp does not")


def scores(model: Mapping[str, Any], tokens: Sequence[str], types: Sequence[TokenType]) -> list[float]:
    """Return a score for each token. Raises `UnsupportedError` if no scores reproduce the order of the merges."""
    vocabulary = set(tokens)
    places: dict[str, int] = {}
    splits: dict[str, int] = {}
    last = ""
    for merge in model.get("merges") or ():
        pair = merge.split(" ") if isinstance(merge, str) else merge
        piece = "".join(pair)
        if piece != last and piece in places:
            raise UnsupportedError(f"its tokenizer merges {piece!r} in two places, which no score expresses")
        last = piece
        places.setdefault(piece, len(places))
        splits[piece] = splits.get(piece, 0) + 1
    for piece, each in zip(tokens, types, strict=True):
        if each != TokenType.NORMAL:  # both programs match added tokens before they merge
            continue
        listed = splits.get(piece, 0)
        possible = sum(piece[:i] in vocabulary and piece[i:] in vocabulary for i in range(1, len(piece)))
        if listed != possible:
            raise UnsupportedError(
                f"its tokenizer merges {piece!r} in {listed} of {possible} ways, and llama.cpp in each"
            )
    floor = -float(len(places))
    return [-float(places[token]) if token in places else floor for token in tokens]


def merges(tokens: Sequence[str], types: Sequence[int], token_scores: Sequence[float]) -> list[list[str]]:
    """Return the merges equivalent to the scores: all splits of each piece, in falling order of score.

    Raises `UnsupportedError` if two pieces that merges can produce have the same score: no list expresses that.
    """
    vocabulary = set(tokens)
    mergeable: list[tuple[float, list[list[str]]]] = []
    for piece, kind, score in zip(tokens, types, token_scores, strict=True):
        if kind != TokenType.NORMAL or len(piece) < 2:
            continue
        splits = [
            [piece[:i], piece[i:]]
            for i in range(1, len(piece))
            if piece[:i] in vocabulary and piece[i:] in vocabulary
        ]
        if splits:
            mergeable.append((float(score), splits))
    mergeable.sort(key=lambda each: -each[0])
    for (one, first), (other, second) in pairwise(mergeable):
        if one == other:
            pair = "".join(first[0]), "".join(second[0])
            raise UnsupportedError(f"its tokens {pair[0]!r} and {pair[1]!r} have one score ({one:g})")
    return [split for _, splits in mergeable for split in splits]


def kind(text: str, unknown: str | None) -> TokenType:
    """Return the type of a token of the base vocabulary (not an added token): unknown, byte or normal."""
    if text == unknown:
        return TokenType.UNKNOWN
    return TokenType.BYTE if BYTE.fullmatch(text) else TokenType.NORMAL
