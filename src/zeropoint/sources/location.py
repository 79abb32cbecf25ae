"""Location of a model: a local folder or file, or a snapshot in the cache of the Hugging Face hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from glob import escape
from pathlib import Path, PurePosixPath

from zeropoint.errors import CheckpointError, UsageError, reason

logger = logging.getLogger(__name__)

#: The files to fetch from the hub: weights, configs and tokenizer files, but no code.
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]

_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[\w.-]+)?")
#: A GGUF file of a hub model: `owner/model/file.gguf`; the file may be in a folder of the model.
_HUB_FILE = re.compile(r"([A-Za-z0-9_][\w.-]*/[\w.-]+)/((?:[^/.][^/]*/)*[^/.][^/]*\.gguf)")

#: Number of GGUF files that a message names.
MOST_FILES = 8


def locate(source: str | Path, *, revision: str | None = None) -> Path:
    """Return the local folder or file of a model. A hub name is fetched from the Hugging Face hub.

    `owner/model/file.gguf` names one GGUF file of a hub model. The name of a hub model without safetensors gives its
    GGUF file, if there is only one. The hub client uses its cache first, and nothing else in offline mode. Raises
    `CheckpointError` if there is neither a local path nor a hub model of that name, or if the hub model holds several
    GGUF models, `UsageError` for a `revision` of a local path.
    """
    path = Path(source).expanduser()
    text = str(source)
    if _exists(path):
        if revision is not None:
            raise UsageError(
                f"{text} is a local path, which has no revision {revision}: --revision is for hub names"
            )
        return path
    is_local = path.is_absolute() or text.startswith((".", "~"))
    if not is_local and (file := _HUB_FILE.fullmatch(text)):
        return _file(file[1], file[2], revision)
    if is_local or not _HUB_NAME.fullmatch(text) or path.suffix == ".gguf":
        raise CheckpointError(
            f"{text} does not exist: give a model folder, a .gguf file or a Hugging Face hub name"
        )
    return _model(text, revision)


def _exists(path: Path) -> bool:
    """Return whether a path exists; False for a path that cannot exist."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False


def _model(name: str, revision: str | None) -> Path:
    """Fetch a model from the hub and return its folder in the hub's cache, or its GGUF file if it has nothing else."""
    folder = _fetch(name, revision, HUB_PATTERNS)
    if any(folder.glob("*.safetensors")):
        return folder
    files = _gguf_models(name, revision)
    if len(files) > 1:
        raise CheckpointError(
            f"{name} holds {len(files)} GGUF files and no safetensors: {_how_to_name(name, files)}"
        )
    if files:
        return _file(name, files[0], revision)
    if not folder.is_dir():  # the hub's client makes no folder without files
        raise CheckpointError(f"{name} on the Hugging Face hub holds neither safetensors nor GGUF files")
    return folder


def _file(name: str, file: str, revision: str | None) -> Path:
    """Fetch a GGUF file of a hub model, with all its parts, and return its path in the hub's cache."""
    from zeropoint.gguf.file import part_names

    path = _fetch(name, revision, [escape(part) for part in part_names(file)]) / file
    if path.is_file():
        return path
    files = _gguf_models(name, revision)
    advice = _how_to_name(name, files) if files else "check the name of the file and the network"
    raise CheckpointError(f"{name} on the Hugging Face hub has no file {file}: {advice}")


def _gguf_models(name: str, revision: str | None) -> list[str]:
    """Return the GGUF files of a hub model, of a model in parts the first; empty if the hub cannot be asked."""
    from huggingface_hub import list_repo_files

    try:
        files = list_repo_files(name, revision=revision)
    except Exception as cause:  # offline, say: the folder in the cache then says what is missing
        logger.info("the files of %s cannot be listed: %s", name, cause)
        return []
    if not (paths := [PurePosixPath(file) for file in files if file.endswith(".gguf")]):
        return []
    from zeropoint.gguf.file import first_parts

    return [str(path) for path in first_parts(paths)]


def _how_to_name(name: str, files: Sequence[str]) -> str:
    """Return the advice to name one of a hub model's GGUF files."""
    more = f" and {len(files) - MOST_FILES} more" if len(files) > MOST_FILES else ""
    return f"give one of them, such as {name}/{files[0]}; it has {', '.join(files[:MOST_FILES])}{more}"


def _fetch(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Fetch the files of a hub model that match `patterns`, and return its folder in the hub's cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as cause:
        raise CheckpointError(
            f"{name} is not a local folder, and hub names need huggingface_hub: pip install 'zeropoint[quantize]', or "
            "download the model and give its folder"
        ) from cause
    logger.info("fetching %s from the Hugging Face hub", name)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as cause:  # the client raises a dozen unrelated types: HTTP, cache, validation, gating
        raise CheckpointError(
            f"{name} is not a local folder and could not be fetched from the Hugging Face hub ({reason(cause)}): "
            "check the name and the network, or download the model first and give its folder"
        ) from cause
