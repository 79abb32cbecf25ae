"""Conversion of a model folder's tokenizer to GGUF header fields: tokens, merges, special ids, chat template.

A GGUF header names the tokenizer's split (`tokenizer.ggml.pre`) and llama.cpp's source holds its regular expressions.
Only splits in `splits.py` are written. Any other raises `UnsupportedError`, because a wrong split raises no error in
llama.cpp: it silently produces other tokens. llama.cpp does not normalize text to NFC, as Qwen's tokenizer does: it
produces other tokens for text that is not in NFC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from zeropoint.errors import ArtifactError, UnsupportedError
from zeropoint.files.json_file import load_json
from zeropoint.gguf.vocabulary.sentencepiece import is_sentencepiece, kind, scores, space_prefix
from zeropoint.gguf.vocabulary.splits import DIGITS, GPT2, name_of
from zeropoint.tokenizer import chat_template

MAX_TOKENIZER_BYTES = 256 << 20

#: GGUF's name of a special token -> (field of tokenizer_config.json with its text, field of config.json with its id).
SPECIALS = {
    "bos": ("bos_token", "bos_token_id"),
    "eos": ("eos_token", "eos_token_id"),
    "unk": ("unk_token", "unk_token_id"),
    "pad": ("pad_token", "pad_token_id"),
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A vocabulary in GGUF's form.

    - `model`: "gpt2" (byte-level BPE, with `split` and `merges`) or "llama" (SentencePiece, with `scores` and
      `space_prefix`);
    - `tokens`, `types`: text and type of each token id;
    - `specials`: GGUF's name of a special token -> id;
    - `starts_with_bos`: a text starts with the BOS token.
    """

    model: str
    split: str
    tokens: Sequence[str]
    types: Sequence[TokenType]
    merges: Sequence[str]
    scores: Sequence[float]
    space_prefix: bool
    specials: Mapping[str, int]
    starts_with_bos: bool
    chat_template: str | None

    def write(self, writer: GGUFWriter) -> None:
        """Write the vocabulary's header fields."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.model == "llama":
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space_prefix)
        else:
            writer.add_token_merges(self.merges)
        for name, number in self.specials.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.starts_with_bos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path, config: Mapping[str, Any], rows: int) -> Vocabulary:
    """Return the folder's vocabulary for a model whose embedding has `rows` rows.

    Raises `UnsupportedError`, with the reason, if llama.cpp cannot express the tokenizer, `ArtifactError` for a damaged
    file.
    """
    try:
        return _read(folder, config, rows)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as cause:
        raise ArtifactError(
            f"{folder / 'tokenizer.json'} is not a tokenizer ({type(cause).__name__.removesuffix('Error')}: {cause}): "
            "copy it from the model again"
        ) from cause


def _read(folder: Path, config: Mapping[str, Any], rows: int) -> Vocabulary:
    """Read the vocabulary. A damaged file may raise any lookup error."""
    if not (folder / "tokenizer.json").is_file():
        raise UnsupportedError(f"{folder} has no tokenizer.json, the only kind of tokenizer that is exported")
    data = load_json(folder / "tokenizer.json", MAX_TOKENIZER_BYTES)
    model = _section(data, "model")
    if model.get("type") != "BPE":
        raise UnsupportedError(f"its tokenizer is a {model.get('type')} model; BPE is exported")
    if not model.get("merges"):
        raise UnsupportedError("its tokenizer has no merges, and llama.cpp needs some")
    pieces = is_sentencepiece(model)
    split = "default" if pieces else _split(data, model)
    tokens, types = _tokens(data, model, rows)
    settings = _optional(folder / "tokenizer_config.json")
    specials = _specials(settings, config, tokens)
    return Vocabulary(
        model="llama" if pieces else "gpt2",
        split=split,
        tokens=tokens,
        types=types,
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        scores=scores(model, tokens, types) if pieces else (),
        space_prefix=space_prefix(data) if pieces else False,
        specials=specials,
        starts_with_bos=_starts_with(data.get("post_processor"), tokens, specials.get("bos")),
        chat_template=chat_template(folder, settings),
    )


def _split(data: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of a byte-level tokenizer's split. Raises `UnsupportedError` if there is none."""
    normalizer = data.get("normalizer")
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise UnsupportedError("its tokenizer normalizes text in a way that llama.cpp does not")
    steps = tuple(_steps(data.get("pre_tokenizer")))
    split = name_of(steps, whole_words=bool(model.get("ignore_merges")))
    if split is None:
        raise UnsupportedError(f"its tokenizer splits text by {list(steps)}, which llama.cpp has no name for")
    return split


def _steps(step: Any) -> list[str]:
    """Return a pre-tokenizer's steps in the form of `Split.pieces`; "?" stands for an unknown step."""
    if not isinstance(step, dict):
        return ["?"]
    kind = step.get("type")
    if kind == "Sequence":
        return [word for each in step.get("pretokenizers") or () for word in _steps(each)]
    if kind == "Digits" and step.get("individual_digits"):
        return [DIGITS]
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        pattern = step.get("pattern")
        return [str(pattern.get("Regex", "?"))] if isinstance(pattern, dict) else ["?"]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return [GPT2] if step.get("use_regex", True) else []
    return ["?"]


def _tokens(
    data: Mapping[str, Any], model: Mapping[str, Any], rows: int
) -> tuple[list[str], list[TokenType]]:
    """Return the texts and types of all ids below `rows`. An id without a token gets a placeholder of type UNUSED."""
    named: dict[int, tuple[str, TokenType]] = {}
    for text, number in _section(model, "vocab").items():
        token_type = kind(text, model.get("unk_token")) if is_sentencepiece(model) else TokenType.NORMAL
        named[number] = (text, token_type)
    for added in data.get("added_tokens") or ():
        if named.get(added["id"], ("", TokenType.NORMAL))[1] != TokenType.UNKNOWN:
            special = TokenType.CONTROL if added.get("special") else TokenType.USER_DEFINED
            named[added["id"]] = (added["content"], special)
    if not named or max(named) >= rows:
        raise UnsupportedError(
            f"its tokenizer has ids up to {max(named, default=0)}, its embedding {rows} rows"
        )
    tokens = [named.get(number, (f"[PAD{number}]", TokenType.UNUSED)) for number in range(rows)]
    return [text for text, _ in tokens], [each for _, each in tokens]


def _specials(
    settings: Mapping[str, Any], config: Mapping[str, Any], tokens: Sequence[str]
) -> dict[str, int]:
    """Return GGUF's name of each special token -> id, from tokenizer_config.json, else from config.json."""
    ids = {text: number for number, text in enumerate(tokens)}
    specials: dict[str, int] = {}
    for name, (setting, field) in SPECIALS.items():
        text = settings.get(setting)
        number: Any = ids.get(str(text.get("content")) if isinstance(text, dict) else str(text))
        if number is None:
            value = config.get(field)
            number = value[0] if isinstance(value, list) and value else value
        if type(number) is int and 0 <= number < len(tokens):
            specials[name] = number
    return specials


def _starts_with(processor: Any, tokens: Sequence[str], bos: int | None) -> bool:
    """Return whether the post-processor puts the BOS token before a text."""
    if not isinstance(processor, dict):
        return False
    if processor.get("type") == "Sequence":
        return any(_starts_with(each, tokens, bos) for each in processor.get("processors") or ())
    first = (processor.get("single") or [{}])[0]
    special = first.get("SpecialToken") if isinstance(first, dict) else None
    return isinstance(special, dict) and bos is not None and special.get("id") == tokens[bos]


def _section(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a part of tokenizer.json that must be an object."""
    value = data.get(name)
    if not isinstance(value, dict):
        raise UnsupportedError(f"tokenizer.json has no {name}")
    return value


def _optional(path: Path) -> dict[str, Any]:
    """Return the contents of a JSON file, empty if there is no such file."""
    return load_json(path) if path.is_file() else {}
