"""GGUF files: Q8_0, Q5_0 and Q4_0 keep their grid, Q4_1 where its minima are whole multiples of its scales.

Other types (K-quants) are dequantized as ggml's reference does it and kept in float32. The header becomes a config.json
again (`zeropoint.gguf.configs`), and the rows of Llama's queries and keys return to transformers' order.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from zeropoint.errors import CheckpointError, SchemeError, UnsupportedError
from zeropoint.gguf import blocks
from zeropoint.gguf.configs import config_of
from zeropoint.gguf.families import Placement, describe
from zeropoint.gguf.tokenizer import write_tokenizer
from zeropoint.ggufile import MAGIC, GgufFile
from zeropoint.importers import Source
from zeropoint.qtensor import Weight
from zeropoint.reference.rounding import check_finite

logger = logging.getLogger(__name__)

Kind = GGMLQuantizationType

FLOATS = {Kind.F32: np.float32, Kind.F16: np.float16, Kind.BF16: ml_dtypes.bfloat16}
DTYPES = {Kind.F16: "F16", Kind.BF16: "BF16"}

#: What llama.cpp's own converter adds and no config.json needs.
IGNORED = {"rope_freqs.weight"}


def recognizes(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def open(path: Path) -> Source:
    file = GgufFile(path)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{path} has no token_embd.weight: it is not a language model")
    try:
        config = config_of(file.metadata, file.tensors, embedding.shape[0])
        description, problems = describe(config)
    except (CheckpointError, UnsupportedError) as cause:
        raise type(cause)(f"{path}: {cause}") from cause
    if description is None:
        raise UnsupportedError(f"{path}: {'; '.join(problems)}")
    places = {place.source: place for place in description.placements}
    if strange := {place.name for place in places.values()} ^ (set(file.tensors) - IGNORED):
        raise CheckpointError(f"{path} does not fit its header: tensor {min(strange)} is missing or unknown")
    tensors = {name: _described(file, place) for name, place in places.items()}
    return Source(
        "gguf",
        config,
        (path,),
        tensors,
        lambda name: _read(file, places[name]),
        lambda folder: _write_tokenizer(file, folder),
    )


def _write_tokenizer(file: GgufFile, folder: Path) -> list[Path]:
    try:
        write_tokenizer(file.metadata, folder)
    except UnsupportedError as cause:  # a file without a usable tokenizer is still a model
        logger.warning("%s: %s; the artifact has no tokenizer", file.path, cause)
    return sorted(folder.iterdir())


def _described(file: GgufFile, place: Placement) -> tuple[str, tuple[int, ...]]:
    entry = file.tensors[place.name]
    shape = entry.shape[::-1] if place.transposed and len(entry.shape) == 2 else entry.shape
    return ("F32" if len(shape) == 1 else DTYPES.get(entry.kind, "F32")), shape


def _read(file: GgufFile, place: Placement) -> Weight:
    kind = file.tensors[place.name].kind
    if kind in blocks.DECODERS:
        try:
            return place.restore(blocks.decode(file.raw(place.name), kind))
        except SchemeError:
            pass  # minima between the codes: not a grid of ours
    raw: NDArray[Any] = file.raw(place.name).view(FLOATS[kind]) if kind in FLOATS else file.floats(place.name)
    check_finite(raw, place.name)
    return place.restore(raw)
