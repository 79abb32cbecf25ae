"""Export to the file formats of other runtimes. Each module is one target, and `--to` takes the module's name.

A target's module has a docstring (what it writes, for which runtime) and three functions:

- `problems(outline)` returns the reasons why an artifact cannot be exported exactly, one sentence each. For a plan,
  whose weights are not known yet, it returns the reasons why some weights might not be exact;
- `write(artifact, path, progress)` writes the file or folder with every weight exact, or raises `UnsupportedError` with
  the problems before any work;
- `read_back(artifact, path)` yields every weight as float32, from the written file and from the artifact, both in the
  file's row order.

`export` writes to a temporary name beside `out`, reads the weights back, compares them bit for bit, and renames the
result. It does not import torch.

`quantize --for` makes plans for a target (`exporters/_for_quantize.py`). For this, the target's module also defines:

- `TAKES`: the formats that the target supports, as the end of the sentence "it takes ...";
- `formats(config)` returns a dictionary from short names ("int4") to schemes for a model with this config.json. The
  first one is the default;
- `EMBEDDING`, `LM_HEAD`: the formats of the embedding and the output head if the user names none: a scheme, "keep" to
  leave it unquantized, or None for the default of `uniform_plan`;
- `refusals(outline, name, scheme)` returns the reasons why the target does not support this weight in this scheme.
  `problems` calls it.

A target may have weight types that no `Scheme` describes; its module lists their names in `TYPES`. Weights of such a
type are quantized from the original model, never from an artifact. `export_original` uses two more functions:

- `write_original(original, type, path, progress)` writes the file and returns a digest of each weight;
- `read_original(path)` yields each weight of the file as float32.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from zeropoint.artifact import Artifact
from zeropoint.artifact.outline import Outline
from zeropoint.artifact.writer import as_artifact_error
from zeropoint.errors import GateError, UsageError
from zeropoint.files import atomic
from zeropoint.progress import Progress, silent
from zeropoint.values.arrays import Floats
from zeropoint.values.scheme import Scheme

if TYPE_CHECKING:
    from zeropoint.exporters._for_quantize import QuantizeTarget

#: The target of each runtime whose name is not its target's. `quantize --for` accepts both names.
RUNTIMES = {"llama.cpp": "gguf"}


@dataclass(frozen=True, slots=True)
class Written:
    """The result of `write` or `write_original`.

    - `formats`: the target's name of a weight format -> number of weights;
    - `notes`: messages for the user;
    - `warnings`: those of the notes that are on weights not quantized as asked;
    - `digests`: weight name -> `digest` of its values, set by `write_original` for the later comparison.
    """

    formats: Mapping[str, int]
    notes: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """One weight as float32 in the file's row order: `found` is read from the file, `meant` from the artifact."""

    name: str
    found: Floats
    meant: Floats


class Exporter(Protocol):
    """The interface of a target's module."""

    TAKES: str
    EMBEDDING: str | None
    LM_HEAD: str | None

    def formats(self, config: Mapping[str, Any]) -> Mapping[str, str]:
        """Return the scheme of each short name of a format, the default first."""
        ...

    def refusals(self, outline: Outline, name: str, scheme: Scheme) -> list[str]:
        """Return the reasons why the target does not support this weight in this scheme."""
        ...

    def problems(self, outline: Outline) -> list[str]:
        """Return the reasons why the artifact cannot be exported exactly."""
        ...

    def write(self, artifact: Artifact, path: Path, progress: Progress) -> Written:
        """Write the artifact to `path`. Raises `UnsupportedError` with its problems."""
        ...

    def read_back(self, artifact: Artifact, path: Path) -> Iterator[Pair]:
        """Yield every weight of the written file beside the artifact's."""
        ...


class Original(Protocol):
    """A float model, as `zeropoint.originals` opens it.

    - `folder`: the folder with the tokenizer;
    - `config`: config.json;
    - `shapes`: weight name -> shape, `[out, in]` for matrices;
    - `warnings`: one message for each weight whose quantization fell back to another method.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    warnings: list[str]

    def weights(self, kinds: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield each weight once, in the order of `shapes`, and append messages for the user to `warnings`.

        `kinds` maps the names of matrices to the target's types. Other weights are float32.
        """
        ...


class OriginalExporter(Protocol):
    """The further interface of a target's module with `TYPES`."""

    TYPES: tuple[str, ...]

    def write_original(self, original: Original, type: str, path: Path, progress: Progress) -> Written:
        """Quantize the original's weights to `type` and write them to `path`."""
        ...

    def read_original(self, path: Path) -> Iterator[tuple[str, Floats]]:
        """Yield every weight of the written file as float32."""
        ...


@dataclass(frozen=True, slots=True)
class Export:
    """A finished export. `verified` is the number of values read back and compared, None without comparison."""

    target: str
    path: Path
    nbytes: int
    written: Written
    verified: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the export as a JSON object."""
        return {
            "target": self.target,
            "file_bytes": self.nbytes,
            "formats": dict(self.written.formats),
            "notes": list(self.written.notes),
            "verified_weights": self.verified,
        }


def names() -> list[str]:
    """Return the names of all targets, as `--to` takes them."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [name.replace("_", "-") for name in modules if not name.startswith("_")]


def runtimes() -> list[str]:
    """Return the names that `quantize --for` accepts: those of the targets, and those in `RUNTIMES`."""
    return sorted({*names(), *RUNTIMES})


def quantize_target(name: str) -> QuantizeTarget:
    """Return the target that `quantize --for` calls `name`. Raises `UsageError` for an unknown one."""
    from zeropoint.exporters._for_quantize import QuantizeTarget

    return QuantizeTarget(name)


def load(target: str) -> Exporter:
    """Return the module of a target. Raises `UsageError` for an unknown target."""
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
    progress: Progress = silent,
) -> Export:
    """Write an artifact in a target's format. Nothing remains at `out` after an error.

    Raises `UsageError` if `out` exists and may not be replaced, `UnsupportedError` if the target cannot hold the
    artifact exactly, `GateError` if a weight that was read back differs, `ArtifactError` if writing fails.
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
    progress: Progress = silent,
) -> Export:
    """Quantize a float model to one of the target's `TYPES` and write it. Nothing remains at `out` after an error.

    Raises what `export`, `check_type` and `original.weights` raise.
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
    """Raise `UsageError` if `type` is not among the target's `TYPES`."""
    types: tuple[str, ...] = getattr(load(target), "TYPES", ())
    if not types:
        raise UsageError(f"{target} has no weight types of its own: export an artifact to it, without --type")
    if type not in types:
        raise UsageError(f"{target} has no type {type!r}: use {', '.join(types)}")


def digest(values: Floats) -> str:
    """Return the sha256 of the values' bits, as hex. Zeros of either sign have the same digest."""
    return hashlib.sha256(np.ascontiguousarray(values + np.float32(0), np.float32).tobytes()).hexdigest()


def compare_digests(
    digests: Mapping[str, str], weights: Iterable[tuple[str, Floats]], progress: Progress
) -> int:
    """Check that the weights read back have these digests, by name. Return the number of values compared.

    Raises `GateError` with the name of the first weight that differs or is missing.
    """
    missing, count = set(digests), 0
    for name, values in weights:
        missing.discard(name)
        progress(f"verify {name}", len(digests) - len(missing), len(digests))
        if digest(values) != digests.get(name):
            raise GateError(
                f"{name} was read back with other values than were written: the export was discarded"
            )
        count += values.size
    if missing:
        raise GateError(f"{min(missing)} is missing from the written file: the export was discarded")
    return count


def compare(artifact: Artifact, pairs: Iterator[Pair], progress: Progress) -> int:
    """Check that the pairs are equal and cover the artifact. Return the number of values compared.

    Raises `GateError` with the name of the first weight that differs or is missing.
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
                f"{float(np.abs(pair.found - pair.meant).max()):.3g}: the export was discarded"
            )
        count += pair.found.size
    if missing:
        raise GateError(f"{min(missing)} is missing from the written file: the export was discarded")
    return count


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise `UsageError` if the output exists. `overwrite` permits replacing a file, never a folder."""
    if os.path.lexists(path) and (not overwrite or path.is_dir()):
        advice = (
            "choose another name" if path.is_dir() else "choose another name, or overwrite it (--overwrite)"
        )
        raise UsageError(f"{path} exists: {advice}")


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """Yield what `atomic.whole` yields. Raises `ArtifactError` where that raises `OSError`."""
    try:
        with atomic.whole(out) as partial:
            yield partial
    except OSError as cause:
        raise as_artifact_error(out, cause) from cause


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
