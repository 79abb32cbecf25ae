"""ONNX, for onnxruntime and onnxruntime-genai: a folder with model.onnx, its weights in model.onnx.data, and tokenizer.

The graph is a decoder with a cache (`zeropoint.onnx.decoder`); codes and scales are the artifact's, in the layouts of
MatMulInteger and MatMulNBits (`zeropoint.onnx.weights`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from zeropoint import __version__
from zeropoint.artifact import Artifact
from zeropoint.artifact.writer import check_space, write_text
from zeropoint.errors import ArtifactError, SchemeError, UnsupportedError
from zeropoint.exporters import Pair, Progress, Written
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

TARGET = "onnx"
MODEL, DATA, GENAI = "model.onnx", "model.onnx.data", "genai_config.json"


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What is decided before a byte is written."""

    record: ModelSpec
    ways: decoder.Ways


def problems(artifact: Artifact) -> list[str]:
    return _survey(artifact)[1]


def write(artifact: Artifact, path: Path, progress: Progress) -> Written:
    survey, found = _survey(artifact)
    if survey is None:
        raise refusal(artifact.path, TARGET, found)
    check_space(path, 2 * artifact.nbytes)  # 5- to 7-bit codes take 8 bits here, scales 32
    path.mkdir()
    layers = len(survey.record.layers)
    with DataWriter(path / DATA) as data:
        graph = Graph(data)
        made = decoder.Decoder(survey.record, survey.ways, artifact.read, graph)
        made.write(lambda done: progress(f"write layer {done}", done, layers))
    (path / MODEL).write_bytes(graph.model("zeropoint", __version__).SerializeToString(deterministic=True))
    _write_tokenizer_files(artifact, path, survey.record)
    labels = Counter(way.label for way in survey.ways.values())
    return Written(dict(sorted(labels.items())))


def read_back(artifact: Artifact, path: Path) -> Iterator[Pair]:
    survey, found = _survey(artifact)
    if survey is None:
        raise refusal(artifact.path, TARGET, found)
    try:
        model = onnx.load_model(path / MODEL, load_external_data=False)
    except Exception as cause:  # protobuf's own errors have no common base
        raise ArtifactError(f"{path / MODEL} is not an ONNX model: {cause}") from cause
    data = DataReader(path, {tensor.name: tensor for tensor in model.graph.initializer})
    for name, stored, meant in decoder.read_pairs(survey.record, survey.ways, artifact.read, data):
        yield Pair(name, stored, meant)


def _survey(artifact: Artifact) -> tuple[Survey | None, list[str]]:
    """All decisions, or every reason why the artifact cannot be written. Reads no weight."""
    try:
        record = derive(artifact.config)
    except UnsupportedError as cause:
        return None, [str(cause)]
    wanted, held = record.names(), set(artifact.names())
    refused = [
        (name, "the ONNX graph of this family has no place for a weight") for name in sorted(held - wanted)
    ]
    refused += [(name, "a weight is missing") for name in sorted(wanted - held)]
    ways = {}
    for _, _, source in record.linears():
        choice = artifact.plan.choices.get(source.weight)
        try:
            ways[source.weight, source.rows] = (
                Floats() if choice is None else choose(choice.scheme, source.shape)
            )
        except SchemeError as cause:
            refused.append((source.weight, str(cause)))
    found = [*decoder.problems(record), *by_reason(refused)]
    return (None, found) if found else (Survey(record, ways), [])


def _write_tokenizer_files(artifact: Artifact, path: Path, record: ModelSpec) -> None:
    """Write config.json, tokenizer and genai_config.json."""
    plain = {key: value for key, value in artifact.config.items() if key != "quantization_config"}
    write_text(path / "config.json", json.dumps(plain, indent=2) + "\n")
    for file in model_files(artifact.path):
        copy_model_file(file, path)
    generation = artifact.path / "generation_config.json"
    said = load_json(generation) if generation.is_file() else {}
    text = json.dumps(genai_config(artifact.config, said, record.config, MODEL), indent=2)
    write_text(path / GENAI, text + "\n")
