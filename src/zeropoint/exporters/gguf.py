"""GGUF, for llama.cpp and what is built on it: one file with weights, hyperparameters, tokenizer and chat template.

Codes and scales are re-encoded in ggml's blocks without changing a number (`zeropoint.gguf.blocks`); kept matrices stay
F32, F16 or BF16, vectors become F32. llama.cpp computes with 8-bit inputs in blocks of 32 whatever the artifact says.

`TYPES` are llama.cpp's own mixes of types, K-quants among them, which no artifact holds: `write_original` makes them of
the original weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import GGML_QUANT_SIZES, GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType

from zeropoint.artifact import Artifact
from zeropoint.artifact.writer import check_space
from zeropoint.errors import ArtifactError, SchemeError, UnsupportedError
from zeropoint.exporters import Floats, Original, Pair, Progress, Written, digest
from zeropoint.exporters._refusals import by_reason, refusal
from zeropoint.files.gguf_file import GgufFile
from zeropoint.gguf import blocks, superblocks
from zeropoint.gguf.graphs import Description, describe
from zeropoint.gguf.placements import Placement
from zeropoint.gguf.recipes import RECIPES, Model
from zeropoint.gguf.superblocks import Storable, SuperTensor
from zeropoint.gguf.vocabulary import Vocabulary, read_vocabulary
from zeropoint.values.qtensor import QuantizedTensor

Kind = GGMLQuantizationType

FLOATS: dict[np.dtype[np.generic], GGMLQuantizationType] = {
    np.dtype(np.float32): Kind.F32,
    np.dtype(np.float16): Kind.F16,
    np.dtype(ml_dtypes.bfloat16): Kind.BF16,
}

TARGET = "gguf"

#: What `--type` takes.
TYPES: tuple[str, ...] = tuple(RECIPES)

#: How llama.cpp calls a file whose matrices are mostly of a type; it only shows this.
FILE_TYPES = {
    Kind.F32: LlamaFileType.ALL_F32,
    Kind.F16: LlamaFileType.MOSTLY_F16,
    Kind.BF16: LlamaFileType.MOSTLY_BF16,
    Kind.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    Kind.Q5_0: LlamaFileType.MOSTLY_Q5_0,
    Kind.Q4_1: LlamaFileType.MOSTLY_Q4_1,
    Kind.Q4_0: LlamaFileType.MOSTLY_Q4_0,
}

INPUTS_NOTE = (
    "llama.cpp rounds the inputs of quantized layers to 8 bits in blocks of 32: its logits differ by that rounding "
    "from what these weights give"
)


@dataclass(frozen=True, slots=True)
class Survey:
    """Everything that is decided before a byte is written. `kinds` and `shapes` are by stored name."""

    name: str
    file_type: LlamaFileType
    description: Description
    vocabulary: Vocabulary
    kinds: Mapping[str, GGMLQuantizationType]
    shapes: Mapping[str, tuple[int, ...]]

    def nbytes(self, source: str) -> int:
        return _nbytes(self.shapes[source], self.kinds[source])


def problems(artifact: Artifact) -> list[str]:
    return _survey(artifact)[1]


def write(artifact: Artifact, path: Path, progress: Progress) -> Written:
    survey, found = _survey(artifact)
    if survey is None:
        raise refusal(artifact.path, TARGET, found)
    weights = ((source, artifact.read(source)) for source in _by_source(survey.description))
    for _ in _write(path, survey, weights, progress):
        pass
    return Written(_formats(survey), _notes(survey))


def write_original(original: Original, mix: str, path: Path, progress: Progress) -> Written:
    """A float model with its matrices in the types of one of `TYPES`, fitted as they are asked for.

    Raises `UnsupportedError` when GGUF has no place for the model, and what `original.weights` raises.
    """
    survey = _survey_original(original, mix)
    matrices = {name: kind for name, kind in survey.kinds.items() if len(survey.shapes[name]) > 1}
    weights = original.weights(matrices)
    digests = {name: digest(_floats(weight)) for name, weight in _write(path, survey, weights, progress)}
    digests |= {name: digest(values) for name, values in survey.description.extras.items()}
    return Written(_formats(survey), (*_notes(survey), *original.warnings), digests)


def read_original(path: Path) -> Iterator[tuple[str, Floats]]:
    """Every tensor of a file, by the names of `Written.digests`."""
    file = GgufFile(path, ArtifactError)
    for name in file.tensors:
        yield name, file.floats(name)


def _write(
    path: Path, survey: Survey, weights: Iterable[tuple[str, Storable]], progress: Progress
) -> Iterator[tuple[str, Storable]]:
    """Write the file of a survey; gives what was written, by the file's names. `weights` come in its order."""
    description = survey.description
    check_space(path, sum(survey.nbytes(placement.source) for placement in description.placements))
    writer = GGUFWriter(path, description.architecture)
    try:
        _write_header(writer, survey)
        for values in description.extras.values():
            writer.write_tensor_data(values)
        places, total = _by_source(description), len(description.placements)
        done = 0
        for (source, same), (given, made) in zip(places.items(), weights, strict=True):
            assert given == source
            for placement in same:
                weight = placement.place(made)
                writer.write_tensor_data(_bytes(weight, survey.kinds[source]))
                done += 1
                progress(f"write {placement.name}", done, total)
                yield placement.name, weight
    finally:
        writer.close()


def _formats(survey: Survey) -> dict[str, int]:
    return dict(sorted(Counter(kind.name for kind in survey.kinds.values()).items()))


def _notes(survey: Survey) -> tuple[str, ...]:
    integer = any(kind not in FLOATS.values() for kind in survey.kinds.values())
    return (*((INPUTS_NOTE,) if integer else ()), *survey.description.notes)


def _by_source(description: Description) -> dict[str, list[Placement]]:
    """The tensors of the file by the weight that they are: a tied head may be stored twice."""
    found: dict[str, list[Placement]] = {}
    for placement in description.placements:
        found.setdefault(placement.source, []).append(placement)
    return found


def read_back(artifact: Artifact, path: Path) -> Iterator[Pair]:
    description, found = describe(artifact.config)
    if description is None:
        raise refusal(artifact.path, TARGET, found)
    file = GgufFile(path, ArtifactError)
    expected = {placement.name for placement in description.placements} | set(description.extras)
    if strange := expected ^ set(file.tensors):
        raise ArtifactError(f"{path} should not differ from the artifact in the tensor {min(strange)}")
    for placement in description.placements:
        meant = placement.place(artifact.read(placement.source))
        yield Pair(placement.source, file.floats(placement.name), _floats(meant))


def _survey(artifact: Artifact) -> tuple[Survey | None, list[str]]:
    """All decisions, or every reason why the artifact cannot be written. Reads each weight once."""
    description, found = describe(artifact.config)
    if description is None:
        return None, found
    places = {name: same[0] for name, same in _by_source(description).items()}
    if found := _misplaced(places, artifact.names()):
        return None, found
    kinds, shapes = {}, {}
    refused: list[tuple[str, str]] = []
    for name, weight in artifact.stream():
        placed = places[name].place(weight)
        shapes[name] = placed.shape
        try:
            kinds[name] = _kind(placed)
        except SchemeError as cause:
            refused.append((name, str(cause)))
    found = by_reason(refused)
    rows = description.record.config.vocab
    try:
        vocabulary = read_vocabulary(artifact.path, artifact.config, rows)
    except UnsupportedError as cause:
        return None, [*found, str(cause)]
    if found:
        return None, found
    sizes: Counter[GGMLQuantizationType] = Counter()
    for name, kind in kinds.items():
        sizes[kind] += _nbytes(shapes[name], kind)
    file_type = FILE_TYPES[sizes.most_common(1)[0][0]]
    name = Path(artifact.card["source"]["name"]).name
    return Survey(name, file_type, description, vocabulary, kinds, shapes), []


def _survey_original(original: Original, mix: str) -> Survey:
    """The survey of a float model. Raises `UnsupportedError` with every reason why it cannot be written."""
    recipe = RECIPES[mix]
    description, found = describe(original.config)
    places = {} if description is None else {name: same[0] for name, same in _by_source(description).items()}
    if description is not None:
        found = _misplaced(places, original.shapes)
    if description is None or found:
        raise refusal(original.name, TARGET, found)
    by_source = _by_source(description)
    ordered = tuple(place for name in original.shapes for place in by_source[name])
    description = replace(description, placements=ordered)
    separate = {place.name for place in places.values()}  # a tied head that is stored twice has one kind
    model = Model(description.family.arch, description.record.config.layers, "output.weight" not in separate)
    kinds = {
        name: recipe.choose(by_source[name][0].name, shape, model) for name, shape in original.shapes.items()
    }
    vocabulary = read_vocabulary(original.folder, original.config, description.record.config.vocab)
    name = Path(original.name).name
    return Survey(name, recipe.file_type, description, vocabulary, kinds, original.shapes)


def _misplaced(places: Mapping[str, Placement], names: Iterable[str]) -> list[str]:
    """The weights that only one of model and file knows."""
    known = set(names)
    strange = [(name, "GGUF has no place for a weight") for name in names if name not in places]
    return by_reason([*strange, *((name, "a weight is missing") for name in places if name not in known)])


def _kind(weight: Storable) -> GGMLQuantizationType:
    if isinstance(weight, SuperTensor):
        return weight.kind
    if isinstance(weight, QuantizedTensor):
        return blocks.choose(weight)
    if weight.dtype not in FLOATS:
        raise SchemeError(f"GGUF weights are not of type {weight.dtype}")
    return FLOATS[weight.dtype]


def _write_header(writer: GGUFWriter, survey: Survey) -> None:
    writer.add_name(survey.name)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_file_type(survey.file_type)
    survey.description.write_metadata(writer)
    survey.vocabulary.write(writer)
    for name, values in survey.description.extras.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    for placement in survey.description.placements:
        source = placement.source
        writer.add_tensor_info(
            placement.name,
            survey.shapes[source],
            np.dtype(np.float32),
            survey.nbytes(source),
            raw_dtype=survey.kinds[source],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _nbytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    block, size = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape, dtype=np.int64)) // int(block) * int(size)


def _bytes(weight: Storable, kind: GGMLQuantizationType) -> blocks.Bytes:
    if isinstance(weight, QuantizedTensor):
        return blocks.encode(weight, kind)
    if isinstance(weight, SuperTensor):
        return superblocks.encode(weight)
    return weight.reshape(-1).view(np.uint8)


def _floats(weight: Storable) -> Floats:
    return weight.astype(np.float32) if isinstance(weight, np.ndarray) else weight.dequantize()
