"""What a reference alone decides of a gate, kept: every plan for a model is held against it on the same text.

One file for a reference and a text, named by the digest of all it depends on: the checkpoint's bytes and config, the
tokens and whose documents they are, how they are resampled, the programs, the processor, the threads. It holds the
inputs of the float32 model's head, of which the head makes its logits again bit for bit, and what was found of the
model's own 16-bit run. A file that is damaged is made again, and that is said in the log.

Layout: the sha256 of the rest, a line; a line of JSON; float32 values.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.artifact.card import replace_bytes
from zeropoint.errors import ArtifactError
from zeropoint.evaluate import environment
from zeropoint.evaluate.windows import Windows
from zeropoint.files.json_file import json_digest
from zeropoint.files.user_folder import read_own
from zeropoint.kernels import active_isa, library
from zeropoint.machine.detect import Machine
from zeropoint.sources import open_source

logger = logging.getLogger(__name__)

PREFIX = "reference-"
#: Files kept in a folder, the one used longest ago goes first; larger ones are not kept.
MOST_FILES, MOST_BYTES = 16, 256 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The name of the head's tensor, its inputs float32 `[windows, tokens, width]`, and the quality entries of the
    reference's own runs by dtype."""

    head: str
    inputs: NDArray[np.float32]
    entries: Mapping[str, Mapping[str, Any]]


def key(request: Mapping[str, Any], windows: Windows) -> dict[str, Any]:
    """All that a kept reference depends on. Raises `CheckpointError` for a folder that is no checkpoint."""
    reference, machine = request["reference"], Machine.detect()
    source = open_source(reference["path"])
    return {
        "model": source.digest(),
        "config": dict(source.config),
        "reference": [reference["dtype"], reference["engine"]],
        **windows.key,
        "documents": hashlib.sha256(windows.documents.tobytes()).hexdigest(),
        "draws": [request["seed"], request["resamples"]],
        "programs": environment.versions(),
        "kernels": None if library.missing() else [library.digest(), active_isa()],
        "machine": [machine.processor, machine.isa_levels, request["threads"]],
    }


def read(folder: Path, key: Mapping[str, Any]) -> Kept | None:
    """What was kept under this key, if anything was."""
    path = _path(folder, key)
    try:
        found = _parse(read_own(path, 2 * MOST_BYTES))
        os.utime(path)
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as cause:
        logger.warning("the kept reference %s is run again: %s", path, cause)
        return None


def write(folder: Path, key: Mapping[str, Any], kept: Kept) -> None:
    """Keep it for the next time; a folder that does not take it is no obstacle."""
    if kept.inputs.nbytes > MOST_BYTES:
        return
    said = {"head": kept.head, "shape": kept.inputs.shape, "entries": kept.entries, "key": key}
    body = json.dumps(said).encode() + b"\n" + np.ascontiguousarray(kept.inputs).tobytes()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_bytes(_path(folder, key), hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        files = sorted(folder.glob(f"{PREFIX}*"), key=lambda file: file.stat().st_mtime)
        for file in files[:-MOST_FILES]:
            file.unlink(missing_ok=True)
    except (OSError, ArtifactError) as cause:
        logger.warning("the reference's run is not kept in %s: %s", folder, cause)


def _path(folder: Path, key: Mapping[str, Any]) -> Path:
    return folder / f"{PREFIX}{json_digest(dict(key))[:32]}"


def _parse(data: bytes) -> Kept:
    said, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != said:
        raise ValueError("it is damaged")
    line, _, values = body.partition(b"\n")
    head = json.loads(line)
    inputs = np.frombuffer(values, np.float32).reshape(head["shape"])
    return Kept(head["head"], inputs, head["entries"])
