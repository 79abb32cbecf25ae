"""The files that go with a model folder's weights, whatever their format."""

from __future__ import annotations

import shutil
from pathlib import Path

#: Files beside the weights that belong to a model: generation defaults, tokenizer, chat template.
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
#: The folder of further chat templates, one file each, named by their purpose: `tool_use.jinja`.
TEMPLATES = "additional_chat_templates"


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model folder that go with any weights, in the folder itself and in `TEMPLATES`."""
    names = [name for name in MODEL_FILES if (folder / name).is_file()]
    templates = sorted(file for file in (folder / TEMPLATES).glob("*.jinja") if file.is_file())
    return [*(folder / name for name in names), *templates]


def model_file_name(file: Path) -> Path:
    """Return where such a file lies in its model folder: `tokenizer.json`, or a path of two parts."""
    return (
        Path(TEMPLATES, file.name)
        if file.parent.name == TEMPLATES and file.suffix == ".jinja"
        else Path(file.name)
    )


def copy_model_file(file: Path, folder: Path) -> Path:
    """Copy such a file to its place in another model folder; return the copy. Raises `OSError`."""
    copy = folder / model_file_name(file)
    copy.parent.mkdir(exist_ok=True)
    shutil.copyfile(file, copy)
    return copy
