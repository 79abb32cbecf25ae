"""GGUF, for llama.cpp and what is built on it: one file with weights, hyperparameters, tokenizer and chat template.

Codes and scales are re-encoded in ggml's blocks without changing a number (`zeropoint.gguf.blocks`); kept matrices stay
F32, F16 or BF16, vectors become F32. llama.cpp computes with 8-bit inputs in blocks of 32 whatever the artifact says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import GGML_QUANT_SIZES, GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType

from zeropoint.artifact import Artifact
from zeropoint.artifact.writer import check_space
from zeropoint.errors import ArtifactError, SchemeError, UnsupportedError
from zeropoint.exporters import Floats, Pair, Progress, Written
from zeropoint.gguf import blocks
from zeropoint.gguf.families import Description, describe
from zeropoint.gguf.vocabulary import Vocabulary, read_vocabulary
from zeropoint.ggufile import GgufFile
from zeropoint.qtensor import QuantizedTensor, Weight

Kind = GGMLQuantizationType

FLOATS: dict[np.dtype[np.generic], GGMLQuantizationType] = {
    np.dtype(np.float32): Kind.F32,
    np.dtype(np.float16): Kind.F16,
    np.dtype(ml_dtypes.bfloat16): Kind.BF16,
}

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
    "llama.cpp rounds the inputs of quantized layers to 8 bits in blocks of 32: its logits differ from this artifact's "
    "by that rounding"
)


@dataclass(frozen=True, slots=True)
class Survey:
    """Everything that is decided before a byte is written. `kinds` and `shapes` are by stored name."""

    description: Description
    vocabulary: Vocabulary
    kinds: Mapping[str, GGMLQuantizationType]
    shapes: Mapping[str, tuple[int, ...]]

    def nbytes(self, source: str) -> int:
        block, size = GGML_QUANT_SIZES[self.kinds[source]]
        return int(np.prod(self.shapes[source], dtype=np.int64)) // int(block) * int(size)


def problems(artifact: Artifact) -> list[str]:
    return _survey(artifact)[1]


def write(artifact: Artifact, path: Path, progress: Progress) -> Written:
    survey, found = _survey(artifact)
    if survey is None:
        raise UnsupportedError(f"{artifact.path} cannot be exported to gguf: {_listed(found)}")
    description = survey.description
    check_space(path, sum(survey.nbytes(placement.source) for placement in description.placements))
    writer = GGUFWriter(path, description.architecture)
    try:
        _write_header(writer, artifact, survey)
        for values in description.extras.values():
            writer.write_tensor_data(values)
        for done, placement in enumerate(description.placements):
            progress(f"write {placement.name}", done, len(description.placements))
            weight = placement.place(artifact.read(placement.source))
            writer.write_tensor_data(_bytes(weight, survey.kinds[placement.source]))
    finally:
        writer.close()
    formats = Counter(kind.name for kind in survey.kinds.values())
    integer = any(kind not in FLOATS.values() for kind in survey.kinds.values())
    return Written(dict(sorted(formats.items())), (INPUTS_NOTE,) if integer else ())


def read_back(artifact: Artifact, path: Path) -> Iterator[Pair]:
    description, found = describe(artifact.config)
    if description is None:
        raise UnsupportedError(_listed(found))
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
    places = {placement.source: placement for placement in description.placements}
    found += [f"GGUF has no place for {name}" for name in artifact.names() if name not in places]
    found += [f"the artifact lacks {name}" for name in places if name not in artifact.plan.choices]
    if found:
        return None, found
    kinds, shapes = {}, {}
    for name, weight in artifact.stream():
        weight = places[name].place(weight)
        shapes[name] = weight.shape
        try:
            kinds[name] = _kind(weight)
        except SchemeError as cause:
            found.append(f"{name}: {cause}")
    rows = description.record.config.vocab
    try:
        vocabulary = read_vocabulary(artifact.path, artifact.config, rows)
    except UnsupportedError as cause:
        return None, [*found, str(cause)]
    return (None, found) if found else (Survey(description, vocabulary, kinds, shapes), [])


def _kind(weight: Weight) -> GGMLQuantizationType:
    if isinstance(weight, QuantizedTensor):
        return blocks.choose(weight)
    if weight.dtype not in FLOATS:
        raise SchemeError(f"GGUF weights are not of type {weight.dtype}")
    return FLOATS[weight.dtype]


def _write_header(writer: GGUFWriter, artifact: Artifact, survey: Survey) -> None:
    writer.add_name(Path(artifact.card["source"]["name"]).name)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    sizes: Counter[GGMLQuantizationType] = Counter()
    for name, kind in survey.kinds.items():
        sizes[kind] += survey.nbytes(name)
    writer.add_file_type(FILE_TYPES[sizes.most_common(1)[0][0]])
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


def _bytes(weight: Weight, kind: GGMLQuantizationType) -> blocks.Bytes:
    if isinstance(weight, QuantizedTensor):
        return blocks.encode(weight, kind)
    return weight.reshape(-1).view(np.uint8)


def _floats(weight: Weight) -> Floats:
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight.astype(np.float32)


def _listed(found: list[str], most: int = 5) -> str:
    shown = "; ".join(found[:most])
    return shown if len(found) <= most else f"{shown}; and {len(found) - most} more"
