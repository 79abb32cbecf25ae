"""Conversion of a GGUF header's tokenizer to the tokenizer files of a model folder. `to_header.py` is the inverse.

llama.cpp's defaults replace missing header fields. A SentencePiece vocabulary has BOS token 1 and EOS token 2, puts a
space before a text and starts a text with BOS. A byte-level BPE vocabulary starts a text with BOS only if its split is
Llama 3's or Tekken's. Any other special token that the header does not name stays undefined.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType
from numpy.typing import NDArray

from zeropoint.errors import CheckpointError, UnsupportedError
from zeropoint.gguf.vocabulary.sentencepiece import PREPEND, REPLACE, SPACE, merges
from zeropoint.gguf.vocabulary.splits import SPLITS, Split

#: tokenizer_config.json's name of a special token -> GGUF's name.
SPECIALS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

#: GGUF's names of the tokens that end an answer: end of text, of turn, of message.
ENDS = ("eos", "eot", "eom")

#: The special tokens of a SentencePiece vocabulary whose header does not name them.
SENTENCEPIECE_DEFAULTS = {"bos": 1, "eos": 2, "unknown": 0}

#: llama.cpp's list of control tokens that end an answer even if the header does not name them.
END_TEXTS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "</s>",
    "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>",
})  # fmt: skip
#: In a vocabulary with both tokens, `<|end|>` ends a message and not the answer.
HARMONY = frozenset({"<|return|>", "<|call|>"})

PLAIN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


class HeaderTokenizer:
    """The tokenizer of a GGUF header. Raises `CheckpointError` if tokens and token types differ in number."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.kind = str(self._get("model"))[:40]
        self.tokens = self._texts("tokens")
        types = self._get("token_type")
        if types is None:
            types = np.full(len(self.tokens), TokenType.NORMAL.value, np.int32)
        self.types = self._numbers(types, "token_type")

    def token(self, name: str) -> int | None:
        """Return the id of a special token by its GGUF name ("bos"); None if the file has no such token."""
        number = self._get(f"{name}_token_id")
        if number is None and self.kind == "llama":
            number = SENTENCEPIECE_DEFAULTS.get(name)
        return number if type(number) is int and 0 <= number < len(self.tokens) else None

    def stop_tokens(self) -> list[int]:
        """Return the ids of the tokens that end an answer in llama.cpp, end of text first."""
        named = [number for name in ENDS if (number := self.token(name)) is not None]
        control = np.flatnonzero(self.types == TokenType.CONTROL).tolist()
        texts = {self.tokens[i]: i for i in control if self.tokens[i] in END_TEXTS}
        if texts.keys() >= HARMONY:
            texts.pop("<|end|>", None)
        return list(dict.fromkeys([*named, *texts.values()]))

    def flag(self, name: str, default: bool) -> bool:
        """Return a flag of the header, such as `add_bos_token`, or `default` if the header has none."""
        value = self._get(name)
        return bool(value) if isinstance(value, bool | np.bool_) else default

    def write(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and the chat template into `folder`.

        Raises `UnsupportedError` for a tokenizer model or split that Zeropoint does not know, `CheckpointError` for
        damaged fields.
        """
        data = self._sentencepiece() if self.kind == "llama" else self._byte_level()
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        for setting, name in SPECIALS.items():
            number = self.token(name)
            if number is not None:
                settings[setting] = self.tokens[number]
        if self._metadata.get("tokenizer.chat_template") is not None:
            template = self._metadata["tokenizer.chat_template"]
            if not isinstance(template, str):
                raise CheckpointError("its header's chat template is not a text")
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")

    def _sentencepiece(self) -> dict[str, Any]:
        """Return the tokenizer.json of a SentencePiece vocabulary."""
        scores = self._get("scores")
        if (
            not isinstance(scores, np.ndarray)
            or scores.dtype.kind not in "fiu"
            or len(scores) < len(self.tokens)
        ):
            raise CheckpointError("its header does not give each token a score")
        pairs = merges(self.tokens, self.types.tolist(), scores[: len(self.tokens)].tolist())
        prefix = self.flag("add_space_prefix", True)
        steps: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        if prefix:
            steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        unknown = self.token("unknown")
        model = {
            "type": "BPE",
            "unk_token": None if unknown is None else self.tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": bool((self.types == TokenType.BYTE).any()),
            "ignore_merges": False,
            "vocab": self._vocabulary(),
            "merges": pairs,
        }
        normalizer = {"type": "Sequence", "normalizers": [PREPEND, REPLACE]} if prefix else REPLACE
        return self._data(normalizer, None, {"type": "Sequence", "decoders": steps}, model, bos=True)

    def _byte_level(self) -> dict[str, Any]:
        """Return the tokenizer.json of a byte-level BPE vocabulary."""
        name = str(self._metadata.get("tokenizer.ggml.pre", "gpt-2"))
        split = SPLITS.get(name)
        if self.kind != "gpt2" or split is None:
            raise UnsupportedError(f"its tokenizer ({self.kind!r}, split {name[:40]!r}) is not supported")
        pairs = self._texts("merges")
        if not all(text.count(" ") == 1 for text in pairs):
            raise CheckpointError("a merge in its header is not of two tokens")
        model = {
            "type": "BPE",
            "vocab": self._vocabulary(),
            "merges": [text.split(" ") for text in pairs],
            "ignore_merges": split.whole_words,
        }
        decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        steps = {"type": "Sequence", "pretokenizers": split.steps()}
        return self._data(_normalizer(split), steps, decoder, model, bos=split.adds_bos)

    def _data(self, normalizer: Any, splitter: Any, decoder: Any, model: Any, *, bos: bool) -> dict[str, Any]:
        """Return a tokenizer.json with these parts. `bos`: a text starts with BOS unless the header says otherwise."""
        added, kinds = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN), self.types.tolist()
        return {
            "version": "1.0",
            "added_tokens": [
                {"id": i, "content": self.tokens[i], **PLAIN, "special": kinds[i] != TokenType.USER_DEFINED}
                for i in np.flatnonzero(np.isin(self.types, added)).tolist()
            ],
            "normalizer": normalizer,
            "pre_tokenizer": splitter,
            "post_processor": self._post_processor(bos),
            "decoder": decoder,
            "model": model,
        }

    def _vocabulary(self) -> dict[str, int]:
        """Map each token's text to its id. Added tokens are included, because they would get other ids otherwise."""
        kinds = self.types.tolist()
        return {text: i for i, text in enumerate(self.tokens) if kinds[i] != TokenType.UNUSED}

    def _post_processor(self, bos: bool) -> dict[str, Any] | None:
        """Return the step that adds BOS before and EOS after a text, as the header asks; None if it adds neither."""
        first = self.token("bos") if self.flag("add_bos_token", bos) else None
        last = self.token("eos") if self.flag("add_eos_token", False) else None
        if first is None and last is None:
            return None

        def around(name: str, kind: int) -> list[dict[str, Any]]:
            """Return the template of sequence `name` between its special tokens."""
            before, after = ([] if each is None else [self._special(each, kind)] for each in (first, last))
            return [*before, {"Sequence": {"id": name, "type_id": kind}}, *after]

        named = {self.tokens[i]: i for i in (first, last) if i is not None}
        return {
            "type": "TemplateProcessing",
            "single": around("A", 0),
            "pair": [*around("A", 0), *around("B", 1)],
            "special_tokens": {text: {"id": text, "ids": [i], "tokens": [text]} for text, i in named.items()},
        }

    def _special(self, number: int, kind: int) -> dict[str, Any]:
        """Return the template entry of the special token with id `number`."""
        return {"SpecialToken": {"id": self.tokens[number], "type_id": kind}}

    def _get(self, name: str) -> Any:
        """Return a tokenizer field of the header, None if missing."""
        return self._metadata.get(f"tokenizer.ggml.{name}")

    def _texts(self, name: str) -> list[str]:
        """Return a header field that must be a list of texts."""
        texts = self._get(name)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise CheckpointError(f"its header has no list of {name}")
        return texts

    def _numbers(self, values: Any, name: str) -> NDArray[np.integer[Any]]:
        """Return `values` after checking that they are one integer for each token."""
        if (
            not isinstance(values, np.ndarray)
            or values.dtype.kind not in "iu"
            or len(values) != len(self.tokens)
        ):
            raise CheckpointError(f"its header's {name} is not one integer for each token")
        return values


def _normalizer(split: Split) -> dict[str, Any] | None:
    """Return the normalizer of a byte-level tokenizer with this split."""
    return {"type": "NFC"} if split.composes else None
