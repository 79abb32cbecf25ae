"""The pre-tokenizer splits of byte-level BPE tokenizers, by llama.cpp's names (`tokenizer.ggml.pre`).

Each name stands for regular expressions in llama.cpp's source (src/llama-vocab.cpp). The expressions in this file come
from the models' own tokenizer.json files, as llama.cpp's do. The table lists only splits with a known exact form,
because a wrong split raises no error: it silently produces other tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: GPT-2's split, which the ByteLevel step performs itself if `use_regex` is true.
GPT2 = "ByteLevel"
DIGITS = "Digits"

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
REST = r"\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s|"


@dataclass(frozen=True, slots=True)
class Split:
    """The steps that split text into words before BPE merges.

    - `pieces`: the steps in order, each `DIGITS`, `GPT2` or a regular expression;
    - `whole_words`: a word that is itself a token skips merging;
    - `adds_bos`: a text starts with the BOS token unless the header says otherwise;
    - `composes`: the family's tokenizers normalize text to NFC first.
    """

    pieces: tuple[str, ...]
    whole_words: bool = False
    adds_bos: bool = False
    composes: bool = False

    def steps(self) -> list[dict[str, Any]]:
        """Return the pre-tokenizer steps in the format of tokenizer.json."""
        steps: list[dict[str, Any]] = []
        for piece in self.pieces:
            if piece == DIGITS:
                steps.append({"type": "Digits", "individual_digits": True})
            elif piece != GPT2:
                pattern = {"Regex": piece}
                steps.append({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
        last = {"add_prefix_space": False, "trim_offsets": True, "use_regex": GPT2 in self.pieces}
        return [*steps, {"type": "ByteLevel", **last}]


_GPT2 = Split((GPT2,))
_SINGLE = Split((DIGITS, GPT2))
_LLAMA3 = Split((WORDS % "{1,3}",), whole_words=True, adds_bos=True)
_QWEN2 = Split((WORDS % "",), composes=True)
_TEKKEN = Split((CASED % ("", "") + REST % "",), whole_words=True, adds_bos=True)
_GPT4O = Split((CASED % (ENDINGS, ENDINGS) + REST % "{1,3}",))

#: llama.cpp's name -> split. Several names may have the same split: export writes the first one.
SPLITS: Mapping[str, Split] = {
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "mpt": _GPT2,
    "olmo": _GPT2,
    "exaone4": _GPT2,
    "smollm": _SINGLE,
    "starcoder": _SINGLE,
    "refact": _SINGLE,
    "command-r": _SINGLE,
    "codeshell": _SINGLE,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "dbrx": Split((WORDS % "{1,3}",)),
    "smaug-bpe": Split((WORDS % "{1,3}",)),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "megrez": _QWEN2,
    "stablelm2": Split((WORDS % "",)),
    "tekken": _TEKKEN,
    "gpt-4o": _GPT4O,
    "llama4": _GPT4O,
}


def name_of(pieces: tuple[str, ...], *, whole_words: bool) -> str | None:
    """Return llama.cpp's name for the split with these steps, or None if there is none."""
    return next(
        (
            name
            for name, split in SPLITS.items()
            if split.pieces == pieces and split.whole_words == whole_words
        ),
        None,
    )
