"""Files for other runtimes. One module per target; the file's name is the target's, `--to` finds it by itself.

A module here has a docstring (what it writes, for whom) and three functions:

- `problems(artifact)`: why this artifact cannot be written exactly, a sentence each; empty when it can;
- `write(artifact, path, progress)`: the file (or folder), exact in every weight. Raises `UnsupportedError` with the
  problems, before any work;
- `read_back(artifact, path)`: every weight as float32, once as the file says it and once as the artifact means it, in
  the file's order of rows.

`export` puts them together: written beside its final name, read back, compared bit for bit, then renamed. No torch.

A target may have types of numbers that no scheme describes, `TYPES` by name. Weights are then made in them, from the
original model and never from an artifact, by two functions more, which `export_original` puts together:

- `write_original(original, type, path, progress)`: the file, and a digest of each weight as it was meant;
- `read_original(path)`: each weight as float32, as the file says it.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from zeropoint.artifact import Artifact
from zeropoint.artifact.writer import as_artifact_error, sync
from zeropoint.errors import GateError, UsageError

Progress = Callable[[str, int, int], None]
"""Called as `progress(what, done, total)`."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Written:
    """What `write` made: how many weights in each of the target's formats, and what the user should know.

    `digests`: the `digest` of each weight of `write_original`, whose numbers nothing else remembers.
    """

    formats: Mapping[str, int]
    notes: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pair:
    """One weight read back: `found` in the file, `meant` by the artifact, float32 of one shape."""

    name: str
    found: Floats
    meant: Floats


class Exporter(Protocol):
    """What a module of this package provides."""

    def problems(self, artifact: Artifact) -> list[str]: ...
    def write(self, artifact: Artifact, path: Path, progress: Progress) -> Written: ...
    def read_back(self, artifact: Artifact, path: Path) -> Iterator[Pair]: ...


class Original(Protocol):
    """A float model, as `zeropoint.originals` opens one: its tokenizer's `folder`, its config.json, and the `shapes` of
    its weights by name, matrices as `[out, in]`."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    warnings: list[str]

    def weights(self, kinds: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Each weight once, in the order of `shapes`: matrices in the target's `kinds`, by name, the others float32.
        `warnings` then says what was not made as it should be."""
        ...


class OriginalExporter(Protocol):
    """What a module of this package with `TYPES` provides as well."""

    TYPES: tuple[str, ...]

    def write_original(self, original: Original, type: str, path: Path, progress: Progress) -> Written: ...
    def read_original(self, path: Path) -> Iterator[tuple[str, Floats]]: ...


@dataclass(frozen=True, slots=True)
class Export:
    """A finished export. `verified`: how many numbers were read back and equal; None when that was not asked for."""

    target: str
    path: Path
    nbytes: int
    written: Written
    verified: int | None

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "file_bytes": self.nbytes,
            "formats": dict(self.written.formats),
            "notes": list(self.written.notes),
            "verified_weights": self.verified,
        }


def names() -> list[str]:
    """The targets of this release, as `--to` takes them."""
    found = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [name.replace("_", "-") for name in found if not name.startswith("_")]


def load(target: str) -> Exporter:
    """The module of a target. Raises `UsageError` for an unknown one."""
    if target not in names():
        raise UsageError(f"there is no export target {target!r}: use {', '.join(names())}")
    return cast(Exporter, importlib.import_module(f"{__name__}.{target.replace('-', '_')}"))


def export(
    artifact: Artifact,
    target: str,
    out: str | Path,
    *,
    verify: bool = True,
    overwrite: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Export:
    """Write an artifact for another runtime, everything or nothing.

    Raises `UsageError` when `out` exists, `UnsupportedError` when the target cannot hold the artifact exactly,
    `GateError` when what was written is not what the artifact means, `ArtifactError` when it cannot be written.
    """
    exporter, path = load(target), Path(out).expanduser()
    refuse_existing(path, overwrite=overwrite)
    with _partial(path) as partial:
        written = exporter.write(artifact, partial, progress)
        verified = compare(artifact, exporter.read_back(artifact, partial), progress) if verify else None
        nbytes = _size(partial)
    return Export(target, path, nbytes, written, verified)


def export_original(
    original: Original,
    target: str,
    type: str,
    out: str | Path,
    *,
    verify: bool = True,
    overwrite: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Export:
    """Write a float model with weights in a type of the target's own, everything or nothing.

    Raises as `export` does, `check_type` and what making the weights raises.
    """
    check_type(target, type)
    exporter, path = cast(OriginalExporter, load(target)), Path(out).expanduser()
    refuse_existing(path, overwrite=overwrite)
    with _partial(path) as partial:
        written = exporter.write_original(original, type, partial, progress)
        read = exporter.read_original(partial)
        verified = compare_digests(written.digests, read, progress) if verify else None
        nbytes = _size(partial)
    return Export(target, path, nbytes, written, verified)


def check_type(target: str, type: str) -> None:
    """Raise `UsageError` when the target has no such type of its own."""
    types: tuple[str, ...] = getattr(load(target), "TYPES", ())
    if not types:
        raise UsageError(f"{target} has no types of its own: export an artifact to it, without --type")
    if type not in types:
        raise UsageError(f"{target} has no type {type!r}: use {', '.join(types)}")


def digest(values: Floats) -> str:
    """Of every bit of the numbers; zeros of either sign are one number."""
    return hashlib.sha256(np.ascontiguousarray(values + np.float32(0), np.float32).tobytes()).hexdigest()


def compare_digests(meant: Mapping[str, str], found: Iterable[tuple[str, Floats]], progress: Progress) -> int:
    """The number of values that were read back, every weight's `digest` the one that was meant.

    Raises `GateError` naming the first weight that differs or is missing.
    """
    missing, count = set(meant), 0
    for name, values in found:
        missing.discard(name)
        progress(f"verify {name}", len(meant) - len(missing), len(meant))
        if digest(values) != meant.get(name):
            raise GateError(f"{name} was read back with other values than were meant: nothing was written")
        count += values.size
    if missing:
        raise GateError(f"{min(missing)} is not in what was written: nothing was written")
    return count


def compare(artifact: Artifact, pairs: Iterator[Pair], progress: Progress) -> int:
    """The number of values that were read back, all equal to the artifact's, every weight of it among them.

    Raises `GateError` naming the first weight that differs or is missing.
    """
    missing, total = set(artifact.names()), len(artifact.names())
    count = 0
    for pair in pairs:
        missing.discard(pair.name)
        progress(f"verify {pair.name}", total - len(missing), total)
        if pair.found.shape != pair.meant.shape:
            raise GateError(f"{pair.name} was read back as {pair.found.shape}, not {pair.meant.shape}")
        if not np.array_equal(pair.found, pair.meant):
            wrong = pair.found != pair.meant
            raise GateError(
                f"{pair.name} was read back with {int(wrong.sum())} of {wrong.size} values changed, by up to "
                f"{float(np.abs(pair.found - pair.meant).max()):.3g}: nothing was written"
            )
        count += pair.found.size
    if missing:
        raise GateError(f"{min(missing)} is not in what was written: nothing was written")
    return count


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise `UsageError` when the output exists and may not be replaced; a folder never is."""
    if os.path.lexists(path) and (not overwrite or path.is_dir()):
        advice = (
            "choose another name" if path.is_dir() else "choose another name, or overwrite it (--overwrite)"
        )
        raise UsageError(f"{path} exists: {advice}")


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """A hidden sibling of `out` that takes its name when the block succeeds, and is removed when it does not."""
    partial = out.absolute().parent / f".{out.name}.partial-{uuid.uuid4().hex[:12]}"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        for path in (*partial.rglob("*"), partial) if partial.is_dir() else (partial,):
            sync(path)
        partial.replace(out.absolute())
        sync(out.absolute().parent)
    except OSError as cause:
        raise as_artifact_error(out, cause) from cause
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)


def _size(path: Path) -> int:
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
