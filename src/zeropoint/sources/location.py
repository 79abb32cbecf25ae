"""Where a model is: a local folder or file, or a snapshot in the cache of the Hugging Face hub."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from zeropoint.errors import CheckpointError, UsageError

logger = logging.getLogger(__name__)

#: What is fetched from the hub: weights without code, and the files that tokenizers are made of.
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]

_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[\w.-]+)?")


def locate(source: str | Path, *, revision: str | None = None) -> Path:
    """Return the local folder or file of a model; fetch it from the hub when it is a hub name.

    The hub client looks into its cache first, and only there when it is told to be offline. Raise `CheckpointError`
    when there is neither a file nor a hub model of that name, `UsageError` for a `revision` of a local path.
    """
    path = Path(source).expanduser()
    text = str(source)
    if _exists(path):
        if revision is not None:
            raise UsageError(
                f"{text} is a local path, which has no revision {revision}: --revision is for hub names"
            )
        return path
    if (
        path.is_absolute()
        or text.startswith((".", "~"))
        or not _HUB_NAME.fullmatch(text)
        or path.suffix == ".gguf"
    ):
        raise CheckpointError(
            f"{text} does not exist: give a model folder, a .gguf file or a Hugging Face hub name"
        )
    return _download(text, revision)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name longer than names can be, or one with a NUL
        return False


def _download(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as cause:
        raise CheckpointError(
            f"{name} is not a local folder, and hub names need huggingface_hub: pip install 'zeropoint[quantize]', or "
            "download the model and give its folder"
        ) from cause
    logger.info("fetching %s from the Hugging Face hub", name)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_PATTERNS))
    except Exception as cause:  # the client raises a dozen unrelated types: HTTP, cache, validation, gating
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise CheckpointError(
            f"{name} is not a local folder and could not be fetched from the Hugging Face hub ({reason}): "
            "check the name and the network, or download the model first and give its folder"
        ) from cause
