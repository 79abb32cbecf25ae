"""GGUF export, for llama.cpp and programs based on it: one file with weights, header, tokenizer and chat template.

The steps: describe the model in GGUF's form or refuse (`gguf/architecture/`), choose each weight's number type
(`gguf/types/`), convert the tokenizer (`gguf/vocabulary/`), write (`gguf/writer.py`), read back (`gguf/file.py`). Codes
and scales become GGUF blocks without rounding. Unquantized matrices keep their type (F32, F16 or BF16), vectors become
F32. llama.cpp always rounds inputs to 8 bits in blocks of 32, whatever the artifact states.

`TYPES` are llama.cpp's own mixes, such as Q4_K_M. No artifact can hold their K-quants, so `write_original` quantizes
the original weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from zeropoint.artifact import Artifact
from zeropoint.artifact.outline import Outline
from zeropoint.artifact.writer import check_space
from zeropoint.errors import ArtifactError, SchemeError, UnsupportedError
from zeropoint.exporters import Original, Pair, Written, digest
from zeropoint.exporters._refusals import by_reason, refusal
from zeropoint.gguf import types, writer
from zeropoint.gguf.architecture.description import Description, describe
from zeropoint.gguf.file import GgufFile
from zeropoint.gguf.types import blocks
from zeropoint.gguf.types.mixes import MIXES, Model
from zeropoint.gguf.vocabulary import Vocabulary, read_vocabulary
from zeropoint.gguf.writer import Contents
from zeropoint.progress import Progress
from zeropoint.values.arrays import Floats
from zeropoint.values.scheme import Scheme

TARGET = "gguf"

#: The values of `--type`.
TYPES: tuple[str, ...] = tuple(MIXES)

TAKES = "weights with fp16 scales, in groups of a multiple of 32 or without groups, those of 8 bits symmetric"
#: A GGUF block stores a scale for its 32 weights in any case, so one scale per row would save nothing.
EMBEDDING, LM_HEAD = "int8:g32:sym:fp16", "int8:g32:sym:fp16:a8g32"


def formats(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the scheme of each short name of a format, the default first: Q8_0, Q5_0 and Q4_0.

    llama.cpp rounds inputs to 8 bits in blocks of 32, so the artifact's activations have this format, too.
    """
    return {f"int{bits}": f"int{bits}:g32:sym:fp16:a8g32" for bits in (8, 5, 4)}


def refusals(outline: Outline, name: str, scheme: Scheme) -> list[str]:
    """Return every reason why this weight in this scheme might have values that no GGUF type holds exactly."""
    reasons = blocks.refusals(scheme, outline.shapes[name][1])
    if scheme.scale_dtype != "fp16":
        reasons.append(f"{scheme.scale_dtype} scales may be no FP16 numbers")
    if scheme.bits == 8 and not scheme.symmetric:
        reasons.append("8-bit codes with a zero point may span more than 8 bits")
    return reasons


def problems(outline: Outline) -> list[str]:
    """Return every reason why an artifact cannot be exported exactly, or why the artifact of a plan might not be."""
    if isinstance(outline, Artifact):
        return _contents(outline)[1]
    _, _, reasons = _read(outline)
    pairs = [
        (name, why)
        for name, scheme in outline.plan.quantized.items()
        for why in refusals(outline, name, scheme)
    ]
    return [*reasons, *by_reason(pairs)]


def write(artifact: Artifact, path: Path, progress: Progress) -> Written:
    """Write the file `path`. Raises `UnsupportedError` with the problems of the artifact."""
    contents, reasons = _contents(artifact)
    if contents is None:
        raise refusal(artifact.path, TARGET, reasons)
    weights = ((source, artifact.read(source)) for source in contents.description.by_source())
    check_space(path, contents.total_nbytes())
    for _ in writer.write(path, contents, weights, progress):
        pass
    return Written(contents.formats(), contents.notes())


def write_original(original: Original, mix: str, path: Path, progress: Progress) -> Written:
    """Quantize a float model to `mix`, one of `TYPES`, weight by weight, and write the file `path`.

    Raises `UnsupportedError` if GGUF cannot hold the model, and what `original.weights` raises.
    """
    contents = _contents_of_original(original, mix)
    matrices = {name: kind for name, kind in contents.kinds.items() if len(contents.shapes[name]) > 1}
    weights = original.weights(matrices)
    check_space(path, contents.total_nbytes())
    written = writer.write(path, contents, weights, progress)
    digests = {name: digest(types.floats(weight)) for name, weight in written}
    digests |= {name: digest(values) for name, values in contents.description.extras.items()}
    warnings = tuple(original.warnings)
    return Written(contents.formats(), (*contents.notes(), *warnings), digests, warnings)


def read_original(path: Path) -> Iterator[tuple[str, Floats]]:
    """Yield every tensor of a file as float32, by its name in the file (as in `Written.digests`)."""
    file = GgufFile(path, ArtifactError)
    for name in file.tensors:
        yield name, file.floats(name)


def read_back(artifact: Artifact, path: Path) -> Iterator[Pair]:
    """Yield every weight of the written file beside the artifact's."""
    description, reasons = describe(artifact.config)
    if description is None:
        raise refusal(artifact.path, TARGET, reasons)
    file = GgufFile(path, ArtifactError)
    expected = {placement.name for placement in description.placements} | set(description.extras)
    if strange := expected ^ set(file.tensors):
        raise ArtifactError(f"only one of {path} and its artifact has the tensor {min(strange)}")
    for placement in description.placements:
        original = placement.place(artifact.read(placement.source))
        yield Pair(placement.source, file.floats(placement.name), types.floats(original))


def _contents(artifact: Artifact) -> tuple[Contents | None, list[str]]:
    """Return `(contents, [])`, or `(None, reasons)` if GGUF cannot hold the artifact exactly.

    Reads each weight once.
    """
    description, vocabulary, reasons = _read(artifact)
    if description is None:
        return None, reasons
    places = {name: same[0] for name, same in description.by_source().items()}
    kinds, shapes = {}, {}
    refused: list[tuple[str, str]] = []
    for name, weight in artifact.stream():
        placed = places[name].place(weight)
        shapes[name] = placed.shape
        try:
            kinds[name] = types.choose(placed)
        except SchemeError as cause:
            refused.append((name, str(cause)))
    reasons = [*by_reason(refused), *reasons]
    if vocabulary is None or reasons:
        return None, reasons
    name = Path(artifact.card["source"]["name"]).name
    file_type = writer.most_common_type(kinds, shapes)
    return Contents(name, file_type, description, vocabulary, kinds, shapes), []


def _read(outline: Outline) -> tuple[Description | None, Vocabulary | None, list[str]]:
    """Return the model and its tokenizer as GGUF describes them, None if it cannot, and the reasons why it cannot.

    Reads no weights.
    """
    description, reasons = describe(outline.config)
    if description is None:
        return None, None, reasons
    if reasons := _misplaced(description.by_source(), outline.plan.choices):
        return None, None, reasons
    try:
        rows = description.record.config.vocab
        return description, read_vocabulary(outline.path, outline.config, rows), []
    except UnsupportedError as cause:
        return description, None, [str(cause)]


def _contents_of_original(original: Original, mix_name: str) -> Contents:
    """Return the contents for a float model. Raises `UnsupportedError` with every reason why GGUF cannot hold it."""
    mix = MIXES[mix_name]
    description, reasons = describe(original.config)
    by_source = {} if description is None else description.by_source()
    places = {name: same[0] for name, same in by_source.items()}
    if description is not None:
        reasons = _misplaced(places, original.shapes)
    if description is None or reasons:
        raise refusal(original.name, TARGET, reasons)
    ordered = tuple(place for name in original.shapes for place in by_source[name])
    description = replace(description, placements=ordered)
    separate = {place.name for place in places.values()}  # a tied embedding that is stored twice has one type
    model = Model(description.family.arch, description.record.config.layers, "output.weight" not in separate)
    kinds = {name: mix.choose(places[name].name, shape, model) for name, shape in original.shapes.items()}
    vocabulary = read_vocabulary(original.folder, original.config, description.record.config.vocab)
    name = Path(original.name).name
    return Contents(name, mix.file_type, description, vocabulary, kinds, original.shapes)


def _misplaced(places: Mapping[str, object], names: Iterable[str]) -> list[str]:
    """Return messages that name weights without a place in GGUF, and weights that GGUF expects but the model lacks."""
    present = set(names)
    strange = [(name, "GGUF has no place for a weight") for name in names if name not in places]
    return by_reason([*strange, *((name, "a weight is missing") for name in places if name not in present)])
