"""Writing an artifact from a stream of weights, completely or not at all.

All files are written to a hidden folder beside the output. Once everything is on disk, the folder is renamed to the
output, so an interrupted or failed run leaves no incomplete artifact. The hidden folder of a killed process is removed
by the next run with the same output.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.artifact import layout as layouts
from zeropoint.artifact.card import Card, dumps
from zeropoint.artifact.format import quantization_config
from zeropoint.artifact.layout import Layout
from zeropoint.dtypes import BY_FORMAT
from zeropoint.errors import ArtifactError, UsageError, reason
from zeropoint.files import identity, safetensors_file
from zeropoint.files.atomic import sync
from zeropoint.files.json_file import CARD_NAME
from zeropoint.files.model_files import copy_model_file
from zeropoint.files.shards import INDEX, SINGLE
from zeropoint.files.tensor_digest import TensorDigest
from zeropoint.values.plan import Plan
from zeropoint.values.qtensor import QuantizedTensor, Weight

logger = logging.getLogger(__name__)

#: Largest shard in bytes. A shard stays in memory until it is full, so this limits memory too.
SHARD_BYTES = 512 << 20

#: Free bytes required beyond tensors and copied files, for config, card and index.
SLACK_BYTES = 16 << 20

#: Hidden folders beside the output are named `.` + output + one of these + random digits: an unfinished artifact, or an
#: old artifact that a new one replaced.
PARTIAL, RETIRED = ".partial-", ".retired-"


def write(
    path: str | Path,
    weights: Iterable[tuple[str, Weight]],
    *,
    plan: Plan,
    layout: Layout,
    config: Mapping[str, Any],
    finish: Callable[[], Card],
    files: Sequence[Path] = (),
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write an artifact folder and return the bytes of its tensors (equal to `plan.nbytes`).

    - `weights`: a stream of exactly the plan's names, with their weights;
    - `config`: the content of the source's config.json;
    - `finish`: a function that returns the card; it is called after the last weight;
    - `files`: files to copy unchanged (tokenizer and others).

    Raises `UsageError` if the output exists and may not be replaced, `ArtifactError` if it cannot be written
    (permission, full disk) or the weights do not match the plan.
    """
    out = Path(path).expanduser()
    refuse_existing(out, overwrite=overwrite)
    check_space(out, plan.nbytes + sum(file.stat().st_size for file in files))
    with _partial_folder(out, overwrite=overwrite) as folder:
        shards = Shards(folder, shard_bytes)
        digest = TensorDigest()
        shapes = _write_weights(weights, plan, layout, shards, digest)
        written = shards.close()
        if written != plan.nbytes:
            raise ArtifactError(
                f"the plan says {plan.nbytes} bytes of tensors, but {written} bytes were written"
            )
        section = quantization_config(plan, layout, shapes)
        write_text(folder / "config.json", json.dumps(_merged(config, section, plan), indent=2) + "\n")
        named = {"tensors": digest.hexdigest(), "config": identity.config_digest(folder)}
        write_text(folder / CARD_NAME, dumps(identity.sealed(finish().to_json(), **named)))
        for file in files:
            copy = copy_model_file(file, folder)
            sync(copy)
            if copy.parent != folder:
                sync(copy.parent)
    return written


def refuse_existing(path: str | Path, *, overwrite: bool = False) -> None:
    """Raise `UsageError` if the output exists and may not be replaced. Callers call this before long work.

    With `overwrite`, an artifact or an empty folder may be replaced, but no other file or folder.
    """
    out = Path(path).expanduser()
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise UsageError(f"{out} exists: choose another name, or overwrite it (--overwrite)")
    if not out.is_dir() or (any(out.iterdir()) and not (out / CARD_NAME).is_file()):
        raise UsageError(f"{out} is not a Zeropoint artifact, so it is not overwritten: choose another name")


def check_space(out: Path, nbytes: int) -> None:
    """Raise `ArtifactError` unless the folder that will contain `out` can be written and has room for `nbytes`."""
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
    except OSError as cause:
        raise ArtifactError(f"{parent} cannot be written ({reason(cause)}): choose another output") from cause
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ArtifactError(f"{parent} cannot be written (no permission): choose another output")
    if free < nbytes + SLACK_BYTES:
        raise ArtifactError(
            f"{parent} has {free / 1e6:.0f} MB free and the artifact takes {nbytes / 1e6:.0f} MB: "
            "free some space or choose another disk"
        )


def _write_weights(
    weights: Iterable[tuple[str, Weight]], plan: Plan, layout: Layout, shards: Shards, digest: TensorDigest
) -> dict[str, tuple[int, ...]]:
    """Write the stream's weights into shards and add them to the digest; return the shapes of all weights by name.

    Raises `ArtifactError` if the stream does not match the plan.
    """

    def add(name: str, tensor: NDArray[Any]) -> None:
        shards.add(name, tensor)
        data = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
        digest.add(name, safetensors_file.dtype_name(tensor.dtype), tensor.shape, data)

    shapes: dict[str, tuple[int, ...]] = {}
    for name, weight in weights:
        choice = plan.choices.get(name)
        if choice is None or name in shapes:
            raise ArtifactError(f"the stream has {name}, which the plan does not name or which came before")
        shapes[name] = weight.shape
        if isinstance(weight, QuantizedTensor):
            if weight.scheme != choice.scheme:
                raise ArtifactError(f"{name} came as {weight.scheme}, the plan says {choice.scheme}")
            for key, tensor in layouts.encode(name, weight, layout):
                add(key, tensor)
        else:
            add(name, weight)
    if missing := [name for name in plan.choices if name not in shapes]:
        raise ArtifactError(f"the stream ended without {missing[0]}, which the plan names")
    return shapes


class Shards:
    """Writes tensors into safetensors files of at most `limit` bytes each (more if a single tensor is larger)."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._pending: dict[str, NDArray[Any]] = {}
        self._pending_bytes = 0
        self._files: list[tuple[Path, list[str]]] = []
        self._total = 0

    def add(self, name: str, tensor: NDArray[Any]) -> None:
        """Add a tensor. If it does not fit into the pending shard, write that shard first."""
        if self._pending and self._pending_bytes + tensor.nbytes > self._limit:
            self._flush()
        self._pending[name] = tensor
        self._pending_bytes += tensor.nbytes

    def _flush(self) -> None:
        path = self._folder / f"shard-{len(self._files):05d}.safetensors"
        self._total += safetensors_file.write(path, self._pending)
        sync(path)
        self._files.append((path, list(self._pending)))
        self._pending = {}
        self._pending_bytes = 0

    def close(self) -> int:
        """Write the remaining tensors, rename the files to their final names, and return the bytes of all tensors."""
        if self._pending or not self._files:
            self._flush()
        count = len(self._files)
        if count == 1:
            self._files[0][0].rename(self._folder / SINGLE)
            return self._total
        weight_map: dict[str, str] = {}
        for index, (path, names) in enumerate(self._files, start=1):
            final = f"model-{index:05d}-of-{count:05d}.safetensors"
            path.rename(self._folder / final)
            weight_map.update(dict.fromkeys(names, final))
        data = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(weight_map.items()))}
        write_text(self._folder / INDEX, json.dumps(data, indent=1) + "\n")
        return self._total


@contextmanager
def _partial_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a hidden folder beside `out`; rename it to `out` if the `with` body succeeds, remove it otherwise."""
    partial = _hidden(out, PARTIAL)
    descriptor: int | None = None
    try:
        try:
            _remove_abandoned(out.absolute())
            partial.mkdir()
            descriptor = lock(partial)
            yield partial
            sync(partial)
            install(partial, out.absolute(), overwrite=overwrite)
        except OSError as cause:
            raise as_artifact_error(out, cause) from cause
    finally:  # also after KeyboardInterrupt and SystemExit; after success the folder has its new name
        shutil.rmtree(partial, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _remove_abandoned(out: Path) -> None:
    """Remove hidden folders of this output that killed processes left behind.

    A replaced artifact is only removed if `out` exists; otherwise it is the only copy.
    """
    for folder in out.parent.iterdir():
        replaced = folder.name.startswith(f".{out.name}{RETIRED}") and os.path.lexists(out)
        if replaced or folder.name.startswith(f".{out.name}{PARTIAL}"):
            descriptor = lock(folder)
            if descriptor is not None:  # no living process writes into the folder
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)


def lock(folder: Path) -> int | None:
    """Lock a folder and return a descriptor, or None if another process has the lock.

    The lock ends when the descriptor is closed or the process ends.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def install(finished: Path, out: Path, *, overwrite: bool) -> None:
    """Rename a finished folder on the same disk to `out`, replacing an artifact there if `overwrite` allows it.

    Raises `UsageError` if it does not, and `OSError`; then the old artifact is still there.
    """
    retired: Path | None = None
    if os.path.lexists(out):
        refuse_existing(out, overwrite=overwrite)  # the output may have appeared in the meantime
        retired = _hidden(out, RETIRED)
        out.rename(retired)
    try:
        finished.rename(out)
    except OSError:
        if retired is not None:
            retired.rename(out)
        raise
    sync(out.parent)
    if retired is not None:
        shutil.rmtree(retired, ignore_errors=True)


def _hidden(out: Path, kind: str) -> Path:
    """Return a new hidden name beside the output, for a folder of the kind `PARTIAL` or `RETIRED`."""
    return out.absolute().parent / f".{out.name}{kind}{uuid.uuid4().hex[:12]}"


def as_artifact_error(out: Path, cause: OSError) -> ArtifactError:
    """Return the `ArtifactError` for an OS error while writing the output `out`."""
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return ArtifactError(
            f"the disk is full while writing {out}: no half artifact was left behind; free some space"
        )
    if cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ArtifactError(f"{out} cannot be written (no permission): choose another output")
    return ArtifactError(f"{out} cannot be written ({reason(cause)}): no half artifact was left behind")


def _merged(config: Mapping[str, Any], section: dict[str, Any] | None, plan: Plan) -> dict[str, Any]:
    """Return the artifact's config.json: the source's, with `section` as its quantization_config.

    Without a section, `dtype` is set to the float format of the plan, if there is exactly one.
    """
    merged = {
        key: value for key, value in config.items() if key not in ("quantization_config", "_name_or_path")
    }
    if section is not None:
        merged["quantization_config"] = section
    casts = {
        c.scheme.float_format for c in plan.choices.values() if c.scheme is not None and c.scheme.is_float
    }
    if len(casts) == 1 and section is None:
        merged.pop("torch_dtype", None)
        merged["dtype"] = BY_FORMAT[casts.pop() or ""].name
    return merged


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file and wait until it is on disk."""
    path.write_text(text, encoding="utf-8")
    sync(path)
