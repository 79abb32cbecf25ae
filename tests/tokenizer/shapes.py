"""Tiny folders with the tokenizer pipelines, settings and chat templates of published models, typed in as facts.

Each shape has the normalizer, pre-tokenizer, post-processor, decoder, special tokens, `tokenizer_config.json` and chat
template of the model that it is named after; only the vocabulary is small: all bytes and the words of a few sentences.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = (
    "Why is the sky blue? The user asks what the assistant answers, and the system says that it is well.",
    "Numbers such as 2024, 31337 and 3.14159 stand in the text; it's a test, we're here and they'll see.",
    "def main():\n    return [INST] <<SYS>> user assistant system model Instruct: Output: end of turn\n\n\n",
    "the then that this thesis sky skies blue blues answer answers answered answering token tokens",
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

GPT4_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_SPLIT = GPT4_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Shape:
    """`model_type` for config.json, `settings` for tokenizer_config.json, other `files` by name; `build` gives the
    tokenizer of `special` tokens."""

    model_type: str
    build: Callable[[Sequence[str | AddedToken]], Tokenizer]
    special: Sequence[str | AddedToken]
    settings: dict[str, Any]
    template: str | list[dict[str, str]] | None = None
    files: dict[str, Any] = field(default_factory=dict)
    bos: str | None = None
    """What its tokenizer puts before a text."""
    tokenizer_file: bool = True

    @property
    def is_chat(self) -> bool:
        return self.template is not None or "chat_template.jinja" in self.files

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        made = self.build(self.special)
        if self.tokenizer_file:
            made.save(str(folder / "tokenizer.json"))
        else:
            made.model.save(str(folder))
        template = {} if self.template is None else {"chat_template": self.template}
        files = {
            "config.json": {"model_type": self.model_type},
            "tokenizer_config.json": {**self.settings, **template},
            **self.files,
        }
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return folder


def text_of(token: str | AddedToken) -> str:
    return token if isinstance(token, str) else token.content


def before(tokenizer: Tokenizer, bos: str) -> processors.TemplateProcessing:
    """A post-processor that puts `bos` before each text."""
    return processors.TemplateProcessing(
        single=f"{bos}:0 $A:0",
        pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )


def byte_level(
    *,
    split: str | None = None,
    digits: bool = False,
    nfc: bool = False,
    bos: str | None = None,
    after: bool = False,
    ignore_merges: bool = False,
) -> Callable[[Sequence[str | AddedToken]], Tokenizer]:
    """Byte-level BPE: GPT-2's, or with another `split`; `after`: BOS comes after a ByteLevel post-processor."""

    def build(special: Sequence[str | AddedToken]) -> Tokenizer:
        made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
        steps: list[Any] = []
        if digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if split is not None:
            steps.append(pre_tokenizers.Split(Regex(split), behavior="isolated", invert=False))
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
        made.pre_tokenizer = pre_tokenizers.Sequence([*steps, level]) if steps else level
        trainer = trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=[
                AddedToken(text_of(t), special=True) if isinstance(t, str) else t for t in special
            ],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        made.train_from_iterator(CORPUS, trainer)
        if nfc:
            made.normalizer = normalizers.NFC()
        made.decoder = decoders.ByteLevel()
        level_after = processors.ByteLevel(trim_offsets=False)
        if bos is None:
            made.post_processor = level_after
        else:
            template = before(made, bos)
            made.post_processor = processors.Sequence([level_after, template]) if after else template
        return made

    return build


def sentencepiece(
    *, prefix: bool, bos: str | None, split: bool = False, metaspace: str | None = None
) -> Callable[[Sequence[str | AddedToken]], Tokenizer]:
    """SentencePiece's BPE as tokenizers write it: `prefix`, a space before a text as Llama 2's; `split` at spaces as
    Gemma's; `metaspace`, the prepend scheme of later Llama and Mistral files."""

    def build(special: Sequence[str | AddedToken]) -> Tokenizer:
        words = sorted({"\u2581" + word for text in CORPUS for word in text.split()})
        letters = sorted({letter for word in words for letter in word} | {"\u2581", "\n"})
        pieces = dict.fromkeys(word[:end] for end in range(2, 14) for word in words if len(word) >= end)
        pieces |= dict.fromkeys(word[1:end] for end in range(3, 14) for word in words if len(word) >= end)
        runs = ["\u2581" * n for n in range(2, 5)]
        tokens = list(dict.fromkeys([*map(text_of, special), *BYTES, *letters, *runs, *pieces]))
        known = set(tokens)
        merges = []
        for piece in [*runs, *pieces]:
            cut = next(
                (i for i in range(len(piece) - 1, 0, -1) if piece[:i] in known and piece[i:] in known), None
            )
            if cut is not None:
                merges.append((piece[:cut], piece[cut:]))
        unknown = "<unk>" if "<unk>" in known else None
        made = Tokenizer(
            models.BPE(
                vocab={token: index for index, token in enumerate(tokens)},
                merges=merges,
                byte_fallback=True,
                unk_token=unknown,
                fuse_unk=True,
            )
        )
        replace = normalizers.Replace(" ", "\u2581")
        if metaspace is not None:
            made.pre_tokenizer = pre_tokenizers.Metaspace(
                replacement="\u2581", prepend_scheme=metaspace, split=False
            )
        else:
            made.normalizer = (
                normalizers.Sequence([normalizers.Prepend("\u2581"), replace]) if prefix else replace
            )
        if split:
            made.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous", invert=False)
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
        made.add_special_tokens(
            [t if isinstance(t, AddedToken) else AddedToken(t, special=True) for t in special]
        )
        made.post_processor = (
            processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
            if bos is None
            else before(made, bos)
        )
        return made

    return build


def settings(kind: str, bos: str | None, eos: str | None, **others: Any) -> dict[str, Any]:
    return {"tokenizer_class": kind, "bos_token": bos, "eos_token": eos, "model_max_length": 4096, **others}


def written(text: str, **flags: bool) -> dict[str, Any]:
    """A special token as older tokenizer_config.json spell it."""
    return {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": False, "rstrip": False,
            "single_word": False, **flags}  # fmt: skip
