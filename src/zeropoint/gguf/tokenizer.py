"""The tokenizer in a GGUF header as the files of a model folder: the inverse of `vocabulary.py`.

Written here, not by transformers' reader, which takes every byte-level tokenizer to split text as GPT-2's does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType

from zeropoint.errors import CheckpointError, UnsupportedError
from zeropoint.gguf.vocabulary import DIGITS, GPT2, SPECIALS, SPLITS, WHOLE_WORDS


def write_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template into `folder`.

    Raises `UnsupportedError` for a kind of tokenizer or a way of splitting text that is not known here.
    """
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    steps = next((steps for steps, name in SPLITS.items() if name == str(split)), None)
    if not isinstance(kind, str) or kind != "gpt2" or steps is None:
        raise UnsupportedError(
            f"its tokenizer ({str(kind)[:40]!r}, split {str(split)[:40]!r}) is not known here"
        )
    tokens, types = _list(metadata, "tokens"), metadata.get("tokenizer.ggml.token_type")
    merges = _list(metadata, "merges")
    if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or len(types) != len(tokens):
        raise CheckpointError("its header does not give each token a type")
    if not all(text.count(" ") == 1 for text in merges):
        raise CheckpointError("a merge in its header is not of two tokens")
    data = {
        "version": "1.0",
        "added_tokens": [_added(number, tokens[number], int(types[number])) for number in _added_ids(types)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _steps(steps)},
        "post_processor": _template(tokens, metadata),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {
                text: number
                for number, (text, kind) in enumerate(zip(tokens, types, strict=True))
                if kind != TokenType.UNUSED  # added ones too: they would get other ids otherwise
            },
            "merges": [text.split(" ") for text in merges],
            "ignore_merges": split in WHOLE_WORDS,
        },
    }
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, (setting, _) in SPECIALS.items():
        key = "unknown" if name == "unk" else "padding" if name == "pad" else name
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(number) is int and 0 <= number < len(tokens):
            settings[setting] = tokens[number]
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _list(metadata: Mapping[str, Any], name: str) -> list[str]:
    found = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise CheckpointError(f"its header has no list of {name}")
    return found


def _added_ids(types: Any) -> list[int]:
    return [i for i, kind in enumerate(types) if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)]


def _added(number: int, text: str, kind: int) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **plain, "special": kind == TokenType.CONTROL}


def _steps(steps: tuple[str, ...]) -> list[dict[str, Any]]:
    """Pre-tokenizer steps in tokenizer.json's words."""
    found: list[dict[str, Any]] = []
    for step in steps:
        if step == DIGITS:
            found.append({"type": "Digits", "individual_digits": True})
        elif step != GPT2:
            pattern = {"Regex": step}
            found.append({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
    bytes_too = {"add_prefix_space": False, "trim_offsets": True, "use_regex": GPT2 in steps}
    return [*found, {"type": "ByteLevel", **bytes_too}]


def _template(tokens: list[str], metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """A post-processor that puts the beginning-of-text token before a text, if the header says so."""
    number = metadata.get("tokenizer.ggml.bos_token_id")
    if not metadata.get("tokenizer.ggml.add_bos_token") or type(number) is not int or number >= len(tokens):
        return None
    text = tokens[number]
    before = {"SpecialToken": {"id": text, "type_id": 0}}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [before, sequence],
        "pair": [before, sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]}},
    }
