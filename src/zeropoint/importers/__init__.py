"""Import of models that another tool quantized: the artifact has the same codes and scales, nothing is requantized.

Each module handles one format with two functions, `recognizes(path)` and `open(path) -> Source`. `import_model` finds
the module, checks the tensors against the architecture, and writes the artifact. A weight that no `Scheme` describes is
kept in float (K-quants) or refused (GPTQ with scattered groups).
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
from zeropoint.progress import Progress, silent
from zeropoint.quantization.to_artifact import versions
from zeropoint.sources import quantized
from zeropoint.values.plan import Choice, Plan
from zeropoint.values.qtensor import QuantizedTensor, Weight
from zeropoint.values.scheme import Activation

#: Activation format of imported layers whose source states none: 16 bits, 1e-5 nats from float (docs/formats.md).
FLOAT_INPUTS = Activation(16)

ALGORITHM = "imported"


@dataclass(frozen=True, slots=True)
class Source:
    """An opened model that another tool quantized.

    - `format`: the importer's name of the format;
    - `config`: config.json without the quantization section;
    - `files`: the files with weights;
    - `tensors`: transformers' name of each stored parameter -> (safetensors type, "F32" if quantized; shape in the
      transformers model);
    - `read`: reads one parameter as a `QuantizedTensor` or a float array;
    - `tokenizer_files`: returns the paths of the tokenizer files; an importer that must create them writes them into
      the folder given;
    - `notes`: messages for the user: what of the source the artifact does not hold.
    """

    format: str
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    read: Callable[[str], Weight]
    tokenizer_files: Callable[[Path], list[Path]]
    notes: tuple[str, ...] = ()


class Importer(Protocol):
    """The interface of a format's module."""

    def recognizes(self, path: Path) -> bool:
        """Return whether `path` is a model in this format. Reads no weights."""
        ...

    def open(self, path: Path) -> Source:
        """Open the model. Raises `UnsupportedError` or `CheckpointError` if it cannot be imported."""
        ...


@dataclass(frozen=True, slots=True)
class Imported:
    """The result of an import. `formats` maps scheme strings (and "float") to numbers of weights."""

    format: str
    tensor_bytes: int
    formats: Mapping[str, int]
    notes: tuple[str, ...]


def names() -> list[str]:
    """Return the names of all formats that Zeropoint imports."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [name for name in modules if not name.startswith("_")]


def open_source(path: str | Path) -> Source:
    """Open the quantized model in a file or folder.

    Raises `CheckpointError` if there is no quantized model, `UnsupportedError` if no importer reads its format.
    """
    where = Path(path).expanduser()
    if not where.exists():
        raise CheckpointError(f"{where} does not exist: give a .gguf file or the folder of a quantized model")
    for name in names():
        importer = cast(Importer, importlib.import_module(f"{__name__}.{name}"))
        if importer.recognizes(where):
            return importer.open(where)
    supported = f"{', '.join(names())} are imported"
    if where.is_dir() and (where / CARD_NAME).exists():
        raise CheckpointError(f"{where} is an artifact already: there is nothing to import")
    section = quantized.section_of(where) if where.is_dir() else None
    if section is None:
        raise CheckpointError(f"{where} is not a quantized model of a known format: {supported}")
    raise UnsupportedError(
        f"{where} is quantized as {quantized.describe(section)}, which is not read ({supported}): {quantized.ADVICE}"
    )


def import_model(
    path: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Imported:
    """Write the artifact of a quantized model to `out`. Nothing remains at `out` after an error.

    Raises `CheckpointError` for a damaged model, `UnsupportedError` for weights that no `Scheme` describes,
    `UsageError` if `out` exists and may not be replaced.
    """
    artifact.refuse_existing(out, overwrite=overwrite)
    source = open_source(path)
    checkpoint = _checkpoint(Path(path).expanduser(), source)
    choices, kept_in_float = _choices(checkpoint, source, progress)
    notes = (*source.notes, *checkpoint.notes, *kept_in_float)
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
    """Return the source as a `Checkpoint`, which checks its names and shapes against the architecture."""
    tensors = {name: sources.Tensor(dtype, shape) for name, (dtype, shape) in source.tensors.items()}
    stored = sources.Source(path, str(path), source.config, source.files, tensors, source.read)
    return assemble(stored, config_from(path, source.config))


def _choices(
    checkpoint: Checkpoint, source: Source, progress: Progress
) -> tuple[dict[str, Choice], tuple[str, ...]]:
    """Return each parameter's choice (its scheme in the source), and a note on matrices that are not quantized."""
    quantizable = {view.name for view in checkpoint.views()[0]}
    names = [info.name for info in checkpoint.parameters() if info.tied_to is None]
    choices: dict[str, Choice] = {}
    for count, name in enumerate(names):
        progress(f"read {name}", count, len(names))
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
    """Yield the name and weight of every parameter in the plan's order."""
    for count, name in enumerate(plan.choices):
        progress(f"write {name}", count, len(plan.choices))
        weight = source.read(_stored(checkpoint, name))
        if isinstance(weight, QuantizedTensor):
            yield name, _with_inputs(weight)
        else:
            yield name, np.ascontiguousarray(weight)


def _stored(checkpoint: Checkpoint, name: str) -> str:
    """Return the stored name of a parameter. Raises `UnsupportedError` if several tensors make up the parameter."""
    stored = checkpoint.stored_name(name)
    if stored is None:
        raise UnsupportedError(
            f"{name} is put together from several quantized tensors, which cannot be joined"
        )
    return stored


def _with_inputs(weight: QuantizedTensor) -> QuantizedTensor:
    """Return the weight with `FLOAT_INPUTS` if its scheme states no activation format."""
    if weight.scheme.activation is not None:
        return weight
    return replace(weight, scheme=replace(weight.scheme, activation=FLOAT_INPUTS))


def _card(checkpoint: Checkpoint, plan: Plan, notes: tuple[str, ...]) -> Card:
    """Return the artifact's card."""
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
