"""The special tokens of a model folder, read from the same files and with the same precedence as in transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zeropoint.errors import ArtifactError
from zeropoint.files.json_file import load_json

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

#: Tokenizer class -> its default special tokens, which files may override.
DEFAULTS: dict[str, dict[str, str]] = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "CodeGenTokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "GPTNeoXTokenizer": {
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
        "pad_token": "<|padding|>",
    },
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    "CohereTokenizer": {
        "bos_token": "<BOS_TOKEN>",
        "eos_token": "<|END_OF_TURN_TOKEN|>",
        "unk_token": "<UNK>",
        "pad_token": "<PAD>",
        "cls_token": "<CLS>",
        "sep_token": "<SEP>",
        "mask_token": "<MASK_TOKEN>",
    },
}


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is matched in text before any other step, with the tokenizers library's flags.

    `listed`: a file gives the token an id; its flags then override those in tokenizer.json.
    """

    content: str
    flags: Mapping[str, bool] = field(default_factory=dict)
    listed: bool = False


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The special tokens of a folder.

    - `named`: attribute (`bos_token`, ..., `image_token`) -> text;
    - `add`: all tokens to add to the tokenizer: first those with ids, in order of their ids.
    """

    named: Mapping[str, str]
    add: tuple[AddedToken, ...]


def read_special_tokens(
    folder: Path, settings: Mapping[str, Any], tokenizer_class: str | None
) -> SpecialTokens:
    """Return the special tokens of a folder whose tokenizer_config.json is `settings`.

    special_tokens_map.json and added_tokens.json are read only if `settings` has no `added_tokens_decoder`. Older
    versions of transformers wrote only these two files, transformers 4 wrote all three. special_tokens_map.json then
    overrides `settings`. Raises `ArtifactError` if an entry is not a token.
    """
    named: dict[str, Any] = {**DEFAULTS.get(tokenizer_class or "", {})}
    source = dict(settings)
    decoder = settings.get("added_tokens_decoder")
    if decoder is None:
        source |= _optional(folder / "special_tokens_map.json")
    # A null in a file overrides a default (Qwen has no BOS)
    named |= {name: source[name] for name in NAMES if name in source}
    named |= {k: v for k, v in source.items() if k.endswith("_token") and k not in NAMES and _is_token(v)}
    extra = source.get("extra_special_tokens") or source.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        named |= extra
        extra = []
    where = folder / "tokenizer_config.json"
    texts = {name: _token(value, where, special=True) for name, value in named.items() if value is not None}
    others = [_token(value, where, special=True) for value in extra if isinstance(extra, list)]
    special = {token.content for token in (*texts.values(), *others)}
    numbered = _legacy(folder, special) if decoder is None else _numbered(decoder, where)
    listed = {token.content: token for _, token in sorted(numbered, key=lambda pair: pair[0])}
    for token in (*texts.values(), *others):
        listed.setdefault(token.content, token)
    return SpecialTokens({name: token.content for name, token in texts.items()}, tuple(listed.values()))


def _legacy(folder: Path, special: set[str]) -> Iterator[tuple[int, AddedToken]]:
    """Yield (id, token) for each token in added_tokens.json."""
    for text, number in _optional(folder / "added_tokens.json").items():
        if isinstance(number, int):
            flags = {"normalized": text not in special, "special": text in special}
            yield number, AddedToken(text, flags, listed=True)


def _numbered(decoder: Any, where: Path) -> Iterator[tuple[int, AddedToken]]:
    """Yield (id, token) for each token in `added_tokens_decoder`."""
    if not isinstance(decoder, dict) or not all(str(number).isdecimal() for number in decoder):
        raise ArtifactError(f"{where}: added_tokens_decoder does not give tokens by their ids: copy it again")
    for number, value in decoder.items():
        yield int(number), replace(_token(value, where, special=False), listed=True)


def _is_token(value: Any) -> bool:
    """Return whether a JSON value states a token: a text, or an object with the text as `content`."""
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str))


def _token(value: Any, where: Path, *, special: bool) -> AddedToken:
    """Return the token that a JSON value states. Raises `ArtifactError` if it states none."""
    if not _is_token(value):
        raise ArtifactError(f"{where} names a token that is not text ({str(value)[:40]}): copy it again")
    if isinstance(value, str):
        return AddedToken(value, {"special": True, "normalized": False} if special else {})
    flags = {name: bool(value[name]) for name in _FLAGS if name in value}
    return AddedToken(value["content"], {**flags, "special": True} if special else flags)


def _optional(path: Path) -> dict[str, Any]:
    """Return the contents of a JSON file, empty if there is no such file."""
    return load_json(path) if path.is_file() else {}
