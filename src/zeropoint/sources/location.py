"""Location of a model: a local folder or file, or a snapshot in the cache of the Hugging Face hub."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from zeropoint.errors import CheckpointError, UsageError, reason

logger = logging.getLogger(__name__)

#: The files to fetch from the hub: weights, configs and tokenizer files, but no code.
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]

_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[\w.-]+)?")


def locate(source: str | Path, *, revision: str | None = None) -> Path:
    """Return the local folder or file of a model. A hub name is fetched from the Hugging Face hub.

    The hub client uses its cache first, and nothing else in offline mode. Raises `CheckpointError` if there is neither
    a local path nor a hub model of that name, `UsageError` for a `revision` of a local path.
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
    """Return whether a path exists; False for a path that cannot exist."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False


def _download(name: str, revision: str | None) -> Path:
    """Fetch a model from the hub and return its folder in the hub's cache."""
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
        raise CheckpointError(
            f"{name} is not a local folder and could not be fetched from the Hugging Face hub ({reason(cause)}): "
            "check the name and the network, or download the model first and give its folder"
        ) from cause
