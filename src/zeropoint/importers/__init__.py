"""Models that another tool quantized, as artifacts: their grid is kept, no weight is quantized again.

One module per format, `recognizes(path)` and `open(path) -> Source`. `import_model` finds the module, checks the
tensors against the architecture as for any checkpoint, and writes the artifact. What has no integer grid of ours (a
K-quant, codes in an order of their own) is kept in float, or refused, and the summary says so.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, cast

import numpy as np

from zeropoint import artifact, sources
from zeropoint.artifact import Card
from zeropoint.checkpoint.architecture import config_from
from zeropoint.checkpoint.source import Checkpoint, assemble
from zeropoint.errors import CheckpointError, UnsupportedError
from zeropoint.files.json_file import CARD_NAME
from zeropoint.models.families import engine_of
from zeropoint.planning.uniform import layout_of, plan_nbytes
from zeropoint.quantization.pipeline import versions
from zeropoint.sources import quantized
from zeropoint.values.plan import Choice, Plan
from zeropoint.values.qtensor import QuantizedTensor, Weight
from zeropoint.values.scheme import Activation

Progress = Callable[[str, int, int], None]

#: Inputs of imported layers whose format says nothing of them: 16 bits, 1e-5 nats from float (docs/formats.md).
FLOAT_INPUTS = Activation(16)

ALGORITHM = "imported"


@dataclass(frozen=True, slots=True)
class Source:
    """A quantized model, opened.

    `tensors` names every stored parameter as transformers does, with its safetensors type ("F32" if quantized) and the
    shape that the model's own code gives it; `read` gives one as a `QuantizedTensor` or as an array of that type.
    `tokenizer_files` are the tokenizer's files, in `path` or made from it into the folder that is given.
    """

    format: str
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    read: Callable[[str], Weight]
    tokenizer_files: Callable[[Path], list[Path]]


class Importer(Protocol):
    """What a module of this package provides."""

    def recognizes(self, path: Path) -> bool: ...
    def open(self, path: Path) -> Source: ...


@dataclass(frozen=True, slots=True)
class Imported:
    """What was written: weights by number format, kept ones as `float`."""

    format: str
    tensor_bytes: int
    formats: Mapping[str, int]
    notes: tuple[str, ...]


def names() -> list[str]:
    found = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [name for name in found if not name.startswith("_")]


def open_source(path: str | Path) -> Source:
    """The quantized model in a file or folder. Raises `CheckpointError` when no importer knows it."""
    where = Path(path).expanduser()
    if not where.exists():
        raise CheckpointError(f"{where} does not exist: give a .gguf file or the folder of a quantized model")
    for name in names():
        importer = cast(Importer, importlib.import_module(f"{__name__}.{name}"))
        if importer.recognizes(where):
            return importer.open(where)
    known = f"{', '.join(names())} are imported"
    if where.is_dir() and (where / CARD_NAME).exists():
        raise CheckpointError(f"{where} is an artifact already: there is nothing to import")
    section = quantized.section_of(where) if where.is_dir() else None
    if section is None:
        raise CheckpointError(f"{where} is not a quantized model of a known format: {known}")
    raise UnsupportedError(
        f"{where} is quantized as {quantized.describe(section)}, which is not read ({known}): {quantized.ADVICE}"
    )


def import_model(
    path: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Imported:
    """Write the artifact of a quantized model; everything or nothing.

    Raises `CheckpointError` for a damaged model, `UnsupportedError` for one whose grid cannot be kept, `UsageError`
    when `out` exists.
    """
    artifact.refuse_existing(out, overwrite=overwrite)
    source = open_source(path)
    checkpoint = _checkpoint(Path(path).expanduser(), source)
    choices, notes = _choices(checkpoint, source, progress)
    plan = Plan(choices, plan_nbytes(checkpoint, choices), f"as in the {source.format} source")
    config = {**source.config, "tie_word_embeddings": checkpoint.config.tie_word_embeddings}
    with TemporaryDirectory(prefix="zeropoint-") as folder:
        files = source.tokenizer_files(Path(folder))
        written = artifact.write(
            out,
            _stream(checkpoint, source, plan, progress),
            plan=plan,
            layout=layout_of(checkpoint),
            config=config,
            finish=lambda: replace(_card(checkpoint, plan, notes), engine=engine_of(config)),
            files=files,
            overwrite=overwrite,
        )
    formats = Counter("float" if c.scheme is None else str(c.scheme) for c in choices.values())
    return Imported(source.format, written, dict(formats), notes)


def _checkpoint(path: Path, source: Source) -> Checkpoint:
    """The source as a checkpoint of float tensors, so that names and shapes are checked as those of any other."""

    tensors = {name: sources.Tensor(dtype, shape) for name, (dtype, shape) in source.tensors.items()}
    stored = sources.Source(path, str(path), source.config, source.files, tensors, source.read)
    return assemble(stored, config_from(path, source.config))


def _choices(
    checkpoint: Checkpoint, source: Source, progress: Progress
) -> tuple[dict[str, Choice], tuple[str, ...]]:
    """What each parameter is in the source, and what to say of those that have no grid."""
    quantizable = {view.name for view in checkpoint.views()[0]}
    names = [info.name for info in checkpoint.parameters() if info.tied_to is None]
    choices: dict[str, Choice] = {}
    for done, name in enumerate(names):
        progress(f"read {name}", done, len(names))
        weight = source.read(_stored(checkpoint, name))
        if isinstance(weight, QuantizedTensor):
            if name not in quantizable:
                raise UnsupportedError(f"{name} is quantized in the source, and cannot be in an artifact")
            choices[name] = Choice(_with_inputs(weight).scheme, ALGORITHM, {}, "its grid in the source")
        else:
            choices[name] = Choice(None, ALGORITHM, {}, f"{weight.dtype} in the source")
    floats = sorted(name for name in quantizable if choices[name].scheme is None)
    if not floats:
        return choices, ()
    return choices, (
        f"{len(floats)} matrices have no integer grid and are kept in float, {floats[0]} for one",
    )


def _stream(
    checkpoint: Checkpoint, source: Source, plan: Plan, progress: Progress
) -> Iterator[tuple[str, Weight]]:
    for done, name in enumerate(plan.choices):
        progress(f"write {name}", done, len(plan.choices))
        weight = source.read(_stored(checkpoint, name))
        if isinstance(weight, QuantizedTensor):
            yield name, _with_inputs(weight)
        else:
            yield name, np.ascontiguousarray(weight)


def _stored(checkpoint: Checkpoint, name: str) -> str:
    stored = checkpoint.stored_name(name)
    if stored is None:
        raise UnsupportedError(f"{name} is put together from several tensors, whose grids cannot be joined")
    return stored


def _with_inputs(weight: QuantizedTensor) -> QuantizedTensor:
    """The weight with 16-bit inputs where the source says nothing of them."""
    if weight.scheme.activation is not None:
        return weight
    return replace(weight, scheme=replace(weight.scheme, activation=FLOAT_INPUTS))


def _card(checkpoint: Checkpoint, plan: Plan, notes: tuple[str, ...]) -> Card:
    return Card(
        plan=plan,
        layout=layout_of(checkpoint),
        source={
            "name": Path(checkpoint.name).name,
            "sha256": checkpoint.source_digest(),
            "tensor_bytes": checkpoint.source_nbytes(),
        },
        versions=versions(),
        notes=notes,
    )
