"""Where a source model's weights are: a local folder or a hub snapshot, one safetensors file or many."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from zeropoint.errors import CheckpointError
from zeropoint.shards import INDEX, SINGLE, shard_files
from zeropoint.tensorfile import TensorFile

logger = logging.getLogger(__name__)

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

#: What is fetched from the hub: weights without code, and the files that tokenizers are made of.
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]


def locate(source: str | Path, *, revision: str | None = None) -> Path:
    """The local folder or file of a source, fetched from the hub when it is a hub name.

    Raises `CheckpointError` when there is neither.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    text = str(source)
    if path.is_absolute() or text.startswith((".", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text):
        raise CheckpointError(
            f"{text} does not exist: give a model folder, a .gguf file or a Hugging Face hub name"
        )
    return _download(text, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    logger.info("fetching %s from the Hugging Face hub", name)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_PATTERNS))
    except (
        Exception
    ) as cause:  # the hub client raises a dozen unrelated types: HTTP, cache, validation, gating
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise CheckpointError(
            f"{name} is not a local folder and could not be fetched from the Hugging Face hub ({reason}): "
            "check the name and the network, or download the model first and give its folder"
        ) from cause


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in shard order.

    Raises `CheckpointError` when the folder is empty, has no weights, only pickles, or lacks a shard.
    """
    if not any(folder.iterdir()):
        raise CheckpointError(f"{folder} is empty: give a folder with config.json and safetensors weights")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json: it is not a Hugging Face model folder")
    if files := shard_files(folder, CheckpointError):
        return files
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds pickled weights only ({pickles[0]}), which can run code when opened: convert them where "
            "you trust them with `AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)`, "
            "which writes safetensors"
        )
    raise CheckpointError(f"{folder} has a config.json but no weights: {SINGLE} or {INDEX} is missing")


def open_files(paths: list[Path]) -> dict[str, TensorFile]:
    """Tensor name -> the open file that holds it."""
    where: dict[str, TensorFile] = {}
    for path in paths:
        file = TensorFile(path)
        where.update(dict.fromkeys(file.names(), file))
    return where
