"""The tokenizer of a model folder: Zeropoint's own for a tokenizer.json, else that of transformers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from transformers import AutoTokenizer, GenerationConfig

from zeropoint import tokenizer
from zeropoint.errors import CheckpointError, reason
from zeropoint.tokenizer import HubTokenizer, Text


@lru_cache(maxsize=4)
def load_tokenizer(path: str) -> Text:
    """Return the folder's tokenizer; callers with the same folder share one object.

    Raises `CheckpointError` if the files are missing or damaged, `ArtifactError` for a damaged tokenizer.json.
    """
    if (Path(path) / "tokenizer.json").is_file():
        return tokenizer.load_tokenizer(Path(path))
    try:
        hub_tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        return HubTokenizer(hub_tokenizer, generation_defaults(path))
    except Exception as cause:  # missing and damaged files raise many kinds of errors
        raise CheckpointError(f"the tokenizer of {path} cannot be read: {reason(cause)}") from cause


def generation_defaults(path: str) -> GenerationConfig | None:
    """Return the folder's generation defaults, or None."""
    if not (Path(path) / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(path, local_files_only=True)
