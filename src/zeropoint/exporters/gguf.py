"""GGUF export, for llama.cpp and programs based on it: one file with weights, header, tokenizer and chat template.

`zeropoint.gguf.blocks` converts codes and scales to GGUF blocks without rounding. Unquantized matrices keep their type
(F32, F16 or BF16), vectors become F32. llama.cpp always rounds inputs to 8 bits in blocks of 32, whatever the artifact
states.

`TYPES` are llama.cpp's own mixes, such as Q4_K_M. No artifact can hold their K-quants, so `write_original` quantizes
the original weights.
"""

from __future__ import annotations

import math
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

#: The values of `--type`.
TYPES: tuple[str, ...] = tuple(RECIPES)

#: The header's file type for a file whose matrices mostly have a type. llama.cpp only displays it.
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
    """The decisions made before writing.

    - `kinds`: checkpoint name of a weight -> GGUF type;
    - `shapes`: checkpoint name of a weight -> shape in the file.
    """

    name: str
    file_type: LlamaFileType
    description: Description
    vocabulary: Vocabulary
    kinds: Mapping[str, GGMLQuantizationType]
    shapes: Mapping[str, tuple[int, ...]]

    def nbytes(self, source: str) -> int:
        """Return the bytes of a weight in the file, by its checkpoint name."""
        return _nbytes(self.shapes[source], self.kinds[source])


def problems(artifact: Artifact) -> list[str]:
    """Return every reason why the artifact cannot be exported exactly."""
    return _survey(artifact)[1]


def write(artifact: Artifact, path: Path, progress: Progress) -> Written:
    """Write the file `path`. Raises `UnsupportedError` with the problems of the artifact."""
    survey, reasons = _survey(artifact)
    if survey is None:
        raise refusal(artifact.path, TARGET, reasons)
    weights = ((source, artifact.read(source)) for source in _by_source(survey.description))
    for _ in _write(path, survey, weights, progress):
        pass
    return Written(_formats(survey), _notes(survey))


def write_original(original: Original, mix: str, path: Path, progress: Progress) -> Written:
    """Quantize a float model to `mix`, one of `TYPES`, weight by weight, and write the file `path`.

    Raises `UnsupportedError` if GGUF cannot hold the model, and what `original.weights` raises.
    """
    survey = _survey_original(original, mix)
    matrices = {name: kind for name, kind in survey.kinds.items() if len(survey.shapes[name]) > 1}
    weights = original.weights(matrices)
    digests = {name: digest(_floats(weight)) for name, weight in _write(path, survey, weights, progress)}
    digests |= {name: digest(values) for name, values in survey.description.extras.items()}
    warnings = tuple(original.warnings)
    return Written(_formats(survey), (*_notes(survey), *warnings), digests, warnings)


def read_original(path: Path) -> Iterator[tuple[str, Floats]]:
    """Yield every tensor of a file as float32, by its name in the file (as in `Written.digests`)."""
    file = GgufFile(path, ArtifactError)
    for name in file.tensors:
        yield name, file.floats(name)


def _write(
    path: Path, survey: Survey, weights: Iterable[tuple[str, Storable]], progress: Progress
) -> Iterator[tuple[str, Storable]]:
    """Write the file of a survey. Yield each tensor after it is written, by its name in the file.

    `weights` must yield (checkpoint name, weight) in the order of the survey's placements.
    """
    description = survey.description
    check_space(path, sum(survey.nbytes(placement.source) for placement in description.placements))
    writer = GGUFWriter(path, description.architecture)
    try:
        _write_header(writer, survey)
        for values in description.extras.values():
            writer.write_tensor_data(values)
        places, total = _by_source(description), len(description.placements)
        count = 0
        for (source, same), (name, original) in zip(places.items(), weights, strict=True):
            assert name == source
            for placement in same:
                weight = placement.place(original)
                writer.write_tensor_data(_bytes(weight, survey.kinds[source]))
                count += 1
                progress(f"write {placement.name}", count, total)
                yield placement.name, weight
    finally:
        writer.close()


def _formats(survey: Survey) -> dict[str, int]:
    """Return the number of weights of each GGUF type."""
    return dict(sorted(Counter(kind.name for kind in survey.kinds.values()).items()))


def _notes(survey: Survey) -> tuple[str, ...]:
    """Return the known differences between llama.cpp's results and the model's."""
    integer = any(kind not in FLOATS.values() for kind in survey.kinds.values())
    return (*((INPUTS_NOTE,) if integer else ()), *survey.description.notes)


def _by_source(description: Description) -> dict[str, list[Placement]]:
    """Map each weight's checkpoint name to its tensors in the file. A tied embedding may be stored twice."""
    places: dict[str, list[Placement]] = {}
    for placement in description.placements:
        places.setdefault(placement.source, []).append(placement)
    return places


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
        yield Pair(placement.source, file.floats(placement.name), _floats(original))


def _survey(artifact: Artifact) -> tuple[Survey | None, list[str]]:
    """Return `(survey, [])`, or `(None, reasons)` if GGUF cannot hold the artifact exactly. Reads each weight once."""
    description, reasons = describe(artifact.config)
    if description is None:
        return None, reasons
    places = {name: same[0] for name, same in _by_source(description).items()}
    if reasons := _misplaced(places, artifact.names()):
        return None, reasons
    kinds, shapes = {}, {}
    refused: list[tuple[str, str]] = []
    for name, weight in artifact.stream():
        placed = places[name].place(weight)
        shapes[name] = placed.shape
        try:
            kinds[name] = _kind(placed)
        except SchemeError as cause:
            refused.append((name, str(cause)))
    reasons = by_reason(refused)
    rows = description.record.config.vocab
    try:
        vocabulary = read_vocabulary(artifact.path, artifact.config, rows)
    except UnsupportedError as cause:
        return None, [*reasons, str(cause)]
    if reasons:
        return None, reasons
    sizes: Counter[GGMLQuantizationType] = Counter()
    for name, kind in kinds.items():
        sizes[kind] += _nbytes(shapes[name], kind)
    file_type = FILE_TYPES[sizes.most_common(1)[0][0]]
    name = Path(artifact.card["source"]["name"]).name
    return Survey(name, file_type, description, vocabulary, kinds, shapes), []


def _survey_original(original: Original, mix: str) -> Survey:
    """Return the survey of a float model. Raises `UnsupportedError` with every reason why GGUF cannot hold it."""
    recipe = RECIPES[mix]
    description, reasons = describe(original.config)
    places = {} if description is None else {name: same[0] for name, same in _by_source(description).items()}
    if description is not None:
        reasons = _misplaced(places, original.shapes)
    if description is None or reasons:
        raise refusal(original.name, TARGET, reasons)
    by_source = _by_source(description)
    ordered = tuple(place for name in original.shapes for place in by_source[name])
    description = replace(description, placements=ordered)
    separate = {place.name for place in places.values()}  # a tied embedding that is stored twice has one type
    model = Model(description.family.arch, description.record.config.layers, "output.weight" not in separate)
    kinds = {
        name: recipe.choose(by_source[name][0].name, shape, model) for name, shape in original.shapes.items()
    }
    vocabulary = read_vocabulary(original.folder, original.config, description.record.config.vocab)
    name = Path(original.name).name
    return Survey(name, recipe.file_type, description, vocabulary, kinds, original.shapes)


def _misplaced(places: Mapping[str, Placement], names: Iterable[str]) -> list[str]:
    """Return messages that name weights without a place in GGUF, and weights that GGUF expects but the model lacks."""
    present = set(names)
    strange = [(name, "GGUF has no place for a weight") for name in names if name not in places]
    return by_reason([*strange, *((name, "a weight is missing") for name in places if name not in present)])


def _kind(weight: Storable) -> GGMLQuantizationType:
    """Return the GGUF type that holds a weight exactly. Raises `SchemeError` if there is none."""
    if isinstance(weight, SuperTensor):
        return weight.kind
    if isinstance(weight, QuantizedTensor):
        return blocks.choose(weight)
    if weight.dtype not in FLOATS:
        raise SchemeError(f"GGUF weights are not of type {weight.dtype}")
    return FLOATS[weight.dtype]


def _write_header(writer: GGUFWriter, survey: Survey) -> None:
    """Write the header, the tokenizer and the names, types and shapes of all tensors."""
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
    """Return the bytes of a tensor of this shape and type."""
    block, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // int(block) * int(size)


def _bytes(weight: Storable, kind: GGMLQuantizationType) -> blocks.Bytes:
    """Return the bytes of a weight in the file."""
    if isinstance(weight, QuantizedTensor):
        return blocks.encode(weight, kind)
    if isinstance(weight, SuperTensor):
        return superblocks.encode(weight)
    return weight.reshape(-1).view(np.uint8)


def _floats(weight: Storable) -> Floats:
    """Return a weight's values as float32."""
    return weight.astype(np.float32) if isinstance(weight, np.ndarray) else weight.dequantize()
