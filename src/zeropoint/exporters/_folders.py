"""Writing and reading back compressed-tensors folders, shared by the `vllm` and `transformers` exporters."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.artifact import Artifact
from zeropoint.artifact import layout as layouts
from zeropoint.artifact.format import INT, MIXED, PACKED
from zeropoint.artifact.writer import SHARD_BYTES, Shards, check_space, write_text
from zeropoint.errors import ArtifactError, ZeropointError
from zeropoint.exporters import Pair, Written
from zeropoint.files.atomic import sync
from zeropoint.files.model_files import copy_model_file, model_files
from zeropoint.files.safetensors_file import TensorFile
from zeropoint.files.shards import shard_files
from zeropoint.progress import Progress
from zeropoint.values.arrays import Floats
from zeropoint.values.qtensor import QuantizedTensor, Weight

Encode = Callable[[Artifact, str, Weight], Iterable[tuple[str, NDArray[Any]]]]
Decode = Callable[[Artifact, str, Mapping[str, TensorFile]], Weight]


def encode(
    artifact: Artifact, name: str, weight: Weight, *, packed: bool = False
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield a weight's tensors as an artifact stores them. `packed` packs 8-bit codes into 32-bit words too."""
    if isinstance(weight, QuantizedTensor):
        yield from layouts.encode(name, weight, artifact.layout, packed=packed)
    else:
        yield name, weight


def decode(artifact: Artifact, name: str, where: Mapping[str, TensorFile], *, packed: bool = False) -> Weight:
    """Return a weight from the tensors of `encode`; `where` maps tensor names to open files."""
    scheme = artifact.plan.choices[name].scheme
    if scheme is None or scheme.is_float:
        return where[name].read(name)
    keys = layouts.tensor_names(name, scheme, artifact.layout, packed=packed)
    return layouts.decode(name, scheme, {key: where[key].read(key) for key in keys}, packed=packed)


def write_folder(
    artifact: Artifact, path: Path, config: Mapping[str, Any], progress: Progress, encode: Encode = encode
) -> Written:
    """Write a model folder: the tensors of `encode`, `config` as config.json, and the tokenizer files; no card."""
    check_space(path, artifact.nbytes)
    path.mkdir()
    shards, formats = Shards(path, SHARD_BYTES), Counter[str]()
    for count, (name, weight) in enumerate(artifact.stream()):
        progress(f"write {name}", count, len(artifact.names()))
        formats["float" if isinstance(weight, np.ndarray) else str(weight.scheme)] += 1
        for key, tensor in encode(artifact, name, weight):
            shards.add(key, tensor)
    shards.close()
    write_text(path / "config.json", json.dumps(config, indent=2) + "\n")
    for file in model_files(artifact.path):
        sync(copy_model_file(file, path))
    return Written(dict(formats))


def read_folder(artifact: Artifact, path: Path, decode: Decode = decode) -> Iterator[Pair]:
    """Yield every weight of a written folder beside the artifact's. Raises `ArtifactError` if one cannot be read."""
    where = {
        key: file
        for file in (TensorFile(each, ArtifactError) for each in shard_files(path, ArtifactError))
        for key in file.names()
    }
    for name, original in artifact.stream():
        try:
            stored = decode(artifact, name, where)
        except (KeyError, ZeropointError) as cause:
            raise ArtifactError(f"{name} cannot be read back: {cause}") from cause
        yield Pair(name, floats(stored), floats(original))


def floats(weight: Weight) -> Floats:
    """Return a weight's values as float32."""
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight.astype(np.float32)


def with_formats(config: Mapping[str, Any], packed: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
    """Return a config.json whose quantization groups have the packed format if `packed(group)`, else the int format."""
    section = dict(config.get("quantization_config") or {})
    if not section:
        return dict(config)
    groups = {
        key: {**group, "format": PACKED if packed(group) else INT}
        for key, group in section["config_groups"].items()
    }
    formats = {group["format"] for group in groups.values()}
    overall = formats.pop() if len(formats) == 1 else MIXED
    return {**config, "quantization_config": {**section, "config_groups": groups, "format": overall}}
