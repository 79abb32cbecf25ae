"""The files that go with a model folder's weights, whatever their format."""

from __future__ import annotations

from pathlib import Path

#: Files beside the weights that belong to a model: generation defaults, tokenizer, chat template.
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
)


def companion_files(folder: Path) -> list[Path]:
    """The files of a model folder that go with any weights."""
    return [file for name in COMPANIONS if (file := folder / name).is_file()]
