"""ONNX export, for onnxruntime and onnxruntime-genai: a folder with model.onnx, model.onnx.data and the tokenizer.

`zeropoint.onnx.decoder` builds the graph, a decoder with a KV cache. `zeropoint.onnx.weights` stores the artifact's
codes and scales, unchanged, in the layouts of MatMulInteger and MatMulNBits.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from zeropoint import __version__
from zeropoint.artifact import Artifact
from zeropoint.artifact.outline import Outline
from zeropoint.artifact.writer import check_space, write_text
from zeropoint.errors import ArtifactError, SchemeError, UnsupportedError
from zeropoint.exporters import Pair, Written
from zeropoint.exporters._refusals import by_reason, refusal
from zeropoint.files.json_file import load_json
from zeropoint.files.model_files import copy_model_file, model_files
from zeropoint.models.families import derive
from zeropoint.models.spec import ModelSpec
from zeropoint.onnx import decoder
from zeropoint.onnx.data import DataReader, DataWriter
from zeropoint.onnx.genai import genai_config
from zeropoint.onnx.graph import Graph
from zeropoint.onnx.weights import Floats, choose
from zeropoint.progress import Progress
from zeropoint.values.scheme import PRESETS, Scheme

TARGET = "onnx"
TAKES = "weights of 2 to 8 bits in groups that a power of two from 16 up divides, or without groups"
EMBEDDING = LM_HEAD = None
MODEL, DATA, GENAI = "model.onnx", "model.onnx.data", "genai_config.json"


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """The decisions made before writing: the model spec, and how each weight is stored."""

    record: ModelSpec
    ways: decoder.Ways


def formats(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the scheme of each short name of a format, the default first."""
    return {name: PRESETS[name] for name in ("int8", "int5", "int4")}


def refusals(outline: Outline, name: str, scheme: Scheme) -> list[str]:
    """Return a list with the reason why ONNX Runtime has no layout for this weight in this scheme, or an empty list."""
    rows, columns = outline.shapes[name]
    try:
        choose(scheme, (rows, columns))
    except SchemeError as cause:
        return [str(cause)]
    return []


def problems(outline: Outline) -> list[str]:
    """Return every reason why the artifact cannot be exported exactly."""
    return _survey(outline)[1]


def write(artifact: Artifact, path: Path, progress: Progress) -> Written:
    """Write the folder `path`. Raises `UnsupportedError` with the problems of the artifact."""
    survey, reasons = _survey(artifact)
    if survey is None:
        raise refusal(artifact.path, TARGET, reasons)
    check_space(path, 2 * artifact.nbytes)  # in ONNX, 5- to 7-bit codes take 8 bits and scales 32
    path.mkdir()
    with DataWriter(path / DATA) as data:
        graph = Graph(data)
        builder = decoder.Decoder(survey.record, survey.ways, artifact.read, graph)
        builder.write(progress)
    (path / MODEL).write_bytes(graph.model("zeropoint", __version__).SerializeToString(deterministic=True))
    _write_tokenizer_files(artifact, path, survey.record)
    labels = Counter(way.label for way in survey.ways.values())
    return Written(dict(sorted(labels.items())))


def read_back(artifact: Artifact, path: Path) -> Iterator[Pair]:
    """Yield every weight of the written folder beside the artifact's."""
    survey, reasons = _survey(artifact)
    if survey is None:
        raise refusal(artifact.path, TARGET, reasons)
    try:
        model = onnx.load_model(path / MODEL, load_external_data=False)
    except Exception as cause:  # protobuf's own errors have no common base
        raise ArtifactError(f"{path / MODEL} is not an ONNX model: {cause}") from cause
    data = DataReader(path, {tensor.name: tensor for tensor in model.graph.initializer})
    for name, stored, original in decoder.read_pairs(survey.record, survey.ways, artifact.read, data):
        yield Pair(name, stored, original)


def _survey(outline: Outline) -> tuple[Survey | None, list[str]]:
    """Return `(survey, [])`, or `(None, reasons)` if the artifact cannot be exported exactly. Reads no weights."""
    try:
        record = derive(outline.config)
    except UnsupportedError as cause:
        return None, [str(cause)]
    expected, present = record.names(), set(outline.plan.choices)
    refused = [
        (name, "the ONNX graph of this family has no place for a weight")
        for name in sorted(present - expected)
    ]
    refused += [(name, "a weight is missing") for name in sorted(expected - present)]
    ways = {}
    for _, _, source in record.linears():
        choice = outline.plan.choices.get(source.weight)
        try:
            ways[source.weight, source.rows] = (
                Floats() if choice is None else choose(choice.scheme, source.shape)
            )
        except SchemeError as cause:
            refused.append((source.weight, str(cause)))
    reasons = [*decoder.problems(record), *by_reason(refused)]
    return (None, reasons) if reasons else (Survey(record, ways), [])


def _write_tokenizer_files(artifact: Artifact, path: Path, record: ModelSpec) -> None:
    """Write config.json, the tokenizer files and genai_config.json."""
    plain = {key: value for key, value in artifact.config.items() if key != "quantization_config"}
    write_text(path / "config.json", json.dumps(plain, indent=2) + "\n")
    for file in model_files(artifact.path):
        copy_model_file(file, path)
    generation = artifact.path / "generation_config.json"
    settings = load_json(generation) if generation.is_file() else {}
    text = json.dumps(genai_config(artifact.config, settings, record.config, MODEL), indent=2)
    write_text(path / GENAI, text + "\n")
