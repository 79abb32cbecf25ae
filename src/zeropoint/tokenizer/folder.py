"""`Tokenizer`: the tokenizer of a model folder, from tokenizer.json and the config files beside it."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from zeropoint.errors import ArtifactError, UnsupportedError, reason
from zeropoint.files.json_file import load_json
from zeropoint.tokenizer.special import read_special_tokens
from zeropoint.tokenizer.templates import ChatTemplates, find_templates
from zeropoint.tokenizer.text import Text
from zeropoint.tokenizer.token_bytes import byte_level_bytes, sentencepiece_bytes


class Tokenizer(Text):
    """The tokenizer in tokenizer.json, with the special tokens, chat templates and stop tokens of the folder's configs.

    Raises `UnsupportedError` for a folder without tokenizer.json, `ArtifactError` for a damaged tokenizer.json.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UnsupportedError(
                f"{folder} has no tokenizer.json, the only kind that the native engine reads"
            )
        self._settings = _optional_json(folder / "tokenizer_config.json")
        self._config = _optional_json(folder / "config.json")
        self._fast, self.special = _build(path, self._config, self._settings)

    @property
    def has_chat_template(self) -> bool:
        """Return whether the model has a chat template."""
        return bool(self.templates.by_name)

    @cached_property
    def templates(self) -> ChatTemplates:
        return find_templates(self.folder, self._settings)

    def encode(self, text: str) -> list[int]:
        return list(self._fast.encode(text, add_special_tokens=False).ids)

    def encode_whole(self, text: str) -> list[int]:
        return list(self._fast.encode(text, add_special_tokens=True).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._fast.decode(list(ids), skip_special_tokens=False))

    def token_id(self, token: str) -> int | None:
        number: int | None = self._fast.token_to_id(token)
        return number

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Return the ids of special tokens: markers such as a chat template's `<|im_end|>`, not text."""
        added = self._fast.get_added_tokens_decoder()
        return frozenset(number for number, token in added.items() if token.special)

    def token_bytes(self, number: int) -> bytes:
        """Return the bytes of one token, possibly only a part of a character; `b""` for an id without a token."""
        token = self._fast.id_to_token(number)
        if token is None:
            return b""
        if number in self._added:
            return str(token).encode()
        return self._to_bytes(token)

    @cached_property
    def _added(self) -> frozenset[int]:
        """Return the ids of added tokens, whose names are their plain text."""
        return frozenset(self._fast.get_added_tokens_decoder())

    @cached_property
    def _to_bytes(self) -> Callable[[str], bytes]:
        """Return the function that turns the name of a token into its bytes."""
        decoder = self._fast.decoder
        byte_level = decoder is not None and b"ByteLevel" in decoder.__getstate__()
        return byte_level_bytes if byte_level else sentencepiece_bytes

    def to_json(self) -> str:
        """Return the tokenizer in the format of tokenizer.json."""
        return str(self._fast.to_str())

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """Return the content of generation_config.json; `{}` without that file."""
        return _optional_json(self.folder / "generation_config.json")

    def stop_tokens(self) -> frozenset[int]:
        """Return the end-of-sequence ids of the generation config (else of the config) and of the tokenizer."""
        generation = self.generation_config
        text_config = self._config.get("text_config")
        sources = (generation, self._config, text_config if isinstance(text_config, dict) else {})
        named = next((s["eos_token_id"] for s in sources if s.get("eos_token_id") is not None), None)
        return stop_ids(named, self._special_id("eos_token"))


def stop_ids(*named: Any) -> frozenset[int]:
    """Return the ids in `eos_token_id` entries, each of which is an id, a list of ids, or None."""
    each = [i for entry in named for i in (entry if isinstance(entry, list | tuple) else [entry])]
    return frozenset(i for i in each if type(i) is int and i >= 0)


@lru_cache(maxsize=4)
def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the folder's tokenizer. Calls for the same folder share one tokenizer."""
    return Tokenizer(folder)


def _build(path: Path, config: dict[str, Any], settings: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    """Return the `tokenizers.Tokenizer` of a folder, and the texts of its special tokens by name (`bos_token`)."""
    from tokenizers import Tokenizer as Fast

    from zeropoint.tokenizer import pipeline

    try:
        fast = Fast.from_file(str(path))
        name = pipeline.transformers_class(config, settings, byte_level=_holds(path, b'"ByteLevel"'))
        special = read_special_tokens(path.parent, settings, name)
        if name is not None:
            pipeline.apply_class(fast, name, settings)
        pipeline.add_tokens(fast, special)
    except ArtifactError:
        raise
    except Exception as cause:  # the library raises the bare Exception
        raise ArtifactError(
            f"{path} is not a tokenizer ({reason(cause)}): copy it from the model again"
        ) from cause
    fast.no_truncation()
    fast.no_padding()
    return fast, dict(special.named)


def _holds(path: Path, words: bytes) -> bool:
    """Return whether a file holds these bytes. Maps the file, because a copy would stay in the process's memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(words) >= 0


def _optional_json(path: Path) -> dict[str, Any]:
    """Return the contents of a JSON file, empty if there is no such file."""
    return load_json(path) if path.is_file() else {}
