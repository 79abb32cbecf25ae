"""A cache of reference model results, so that checks of several artifacts of one model run the reference model once.

There is one file per reference model and text. The file's name is the digest of everything that the results depend on:
the checkpoint's bytes and config, the tokens and their documents, the resampling, the program versions, the processor,
the threads. The file holds the inputs of the float32 model's output head, from which the head computes the same logits
bit for bit, and the quality of the model's own 16-bit run. A damaged file is replaced, with a warning in the log.

File layout: a line with the SHA-256 of the rest; a line of JSON; float32 values.
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

from zeropoint.errors import ArtifactError
from zeropoint.evaluate import environment
from zeropoint.evaluate.quality.windows import Windows
from zeropoint.evaluate.worker.messages import QualityRequest
from zeropoint.files.atomic import replace_bytes
from zeropoint.files.json_file import json_digest
from zeropoint.files.user_folder import read_own, remove_old
from zeropoint.kernels import active_isa, library
from zeropoint.machine.detect import Machine
from zeropoint.sources import open_source

logger = logging.getLogger(__name__)

PREFIX = "reference-"
#: Maximum number of files in a folder (the least recently used is deleted first), and maximum bytes of one file.
MOST_FILES, MOST_BYTES = 16, 256 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Cached results of a reference model.

    `head`: name of the output head's tensor. `inputs`: the head's inputs, float32 `[windows, tokens, width]`.
    `entries`: quality entries of the reference model's own runs, by dtype.
    """

    head: str
    inputs: NDArray[np.float32]
    entries: Mapping[str, Mapping[str, Any]]


def key(request: QualityRequest, windows: Windows) -> dict[str, Any]:
    """Return everything that cached results depend on. Raises `CheckpointError` if the folder is no checkpoint."""
    reference, machine = request.reference, Machine.detect()
    source = open_source(reference.path)
    return {
        "model": source.digest(),
        "config": dict(source.config),
        "reference": [reference.dtype, reference.engine],
        **windows.key,
        "documents": hashlib.sha256(windows.documents.tobytes()).hexdigest(),
        "draws": [request.seed, request.resamples],
        "programs": environment.versions(),
        "kernels": None if library.missing() else [library.digest(), active_isa()],
        "machine": [machine.processor, machine.isa_levels, request.threads],
    }


def read(folder: Path, key: Mapping[str, Any]) -> Kept | None:
    """Return the cached results for this key, or None."""
    path = _path(folder, key)
    try:
        cached = _parse(read_own(path, 2 * MOST_BYTES))
        os.utime(path)
        return cached
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as cause:
        logger.warning(
            "the cached reference results in %s are not used, and the reference model runs again: %s",
            path,
            cause,
        )
        return None


def write(folder: Path, key: Mapping[str, Any], results: Kept) -> bool:
    """Write the results into the cache, and return whether they are there.

    A failure is logged, not raised. Results above `MOST_BYTES` are skipped.
    """
    if results.inputs.nbytes > MOST_BYTES:
        return False
    header = {"head": results.head, "shape": results.inputs.shape, "entries": results.entries, "key": key}
    body = json.dumps(header).encode() + b"\n" + np.ascontiguousarray(results.inputs).tobytes()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_bytes(_path(folder, key), hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        remove_old(folder.glob(f"{PREFIX}*"), most_files=MOST_FILES)
    except (OSError, ArtifactError) as cause:
        logger.warning("the reference model's results are not cached in %s: %s", folder, cause)
        return False
    return True


def _path(folder: Path, key: Mapping[str, Any]) -> Path:
    return folder / f"{PREFIX}{json_digest(dict(key))[:32]}"


def _parse(data: bytes) -> Kept:
    """Return the results in a file's bytes. Raises `ValueError` if the checksum is wrong."""
    checksum, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise ValueError("it is damaged")
    line, _, values = body.partition(b"\n")
    header = json.loads(line)
    inputs = np.frombuffer(values, np.float32).reshape(header["shape"])
    return Kept(header["head"], inputs, header["entries"])
