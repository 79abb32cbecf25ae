"""The files of a model folder besides config and weights: generation defaults, tokenizer, chat templates."""

from __future__ import annotations

import shutil
from pathlib import Path

#: Names of generation defaults, tokenizer files and chat templates.
MODEL_FILES = (
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
#: Folder of additional chat templates; a file's name is the template's purpose: `tool_use.jinja`.
TEMPLATES = "additional_chat_templates"


def model_files(folder: Path) -> list[Path]:
    """Return the existing files of `MODEL_FILES` in a folder, and the chat templates in its folder `TEMPLATES`."""
    names = [name for name in MODEL_FILES if (folder / name).is_file()]
    templates = sorted(file for file in (folder / TEMPLATES).glob("*.jinja") if file.is_file())
    return [*(folder / name for name in names), *templates]


def model_file_name(file: Path) -> Path:
    """Return a model file's path relative to its model folder: `tokenizer.json`, or `TEMPLATES/name.jinja`."""
    return (
        Path(TEMPLATES, file.name)
        if file.parent.name == TEMPLATES and file.suffix == ".jinja"
        else Path(file.name)
    )


def copy_model_file(file: Path, folder: Path) -> Path:
    """Copy a model file to its place in another model folder and return the copy. Raises `OSError`."""
    copy = folder / model_file_name(file)
    copy.parent.mkdir(exist_ok=True)
    shutil.copyfile(file, copy)
    return copy
