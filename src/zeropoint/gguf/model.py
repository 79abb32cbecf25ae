"""A model in a GGUF file, opened without reading its weights: the one reader of such files.

The header becomes a config.json and a tokenizer's files again, tensors take the names, shapes and order of rows that
transformers gives them. `weight` keeps an integer grid (Q8_0, Q5_0, Q4_0, and Q4_1 where its minima are whole multiples
of its scales), and dequantizes other blocks as ggml's reference does. `importers/gguf.py` makes an artifact of it,
`sources/folder.py` the source that both engines read.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from zeropoint.errors import CheckpointError, SchemeError, UnsupportedError
from zeropoint.files.gguf_file import MAGIC, GgufFile
from zeropoint.gguf import blocks
from zeropoint.gguf.configs import config_of
from zeropoint.gguf.graphs import restored
from zeropoint.gguf.headers import ROPE_FACTORS
from zeropoint.gguf.placements import Placement
from zeropoint.gguf.tokenizer import HeaderTokenizer
from zeropoint.reference.rounding import check_finite
from zeropoint.values.qtensor import QuantizedTensor, Weight

logger = logging.getLogger(__name__)

Kind = GGMLQuantizationType

FLOATS = {Kind.F32: np.float32, Kind.F16: np.float16, Kind.BF16: ml_dtypes.bfloat16}
DTYPES = {Kind.F16: "F16", Kind.BF16: "BF16"}

#: Tables that a header's numbers, or the model's own code, stand for.
TABLES = frozenset({ROPE_FACTORS})


def is_gguf(path: Path) -> bool:
    """Return whether a path is a file that begins as GGUF files do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == MAGIC


class GgufModel:
    """A language model in a GGUF file, or in one of several parts: any part's path opens all.

    `config` is its config.json, `files` the parts, `tensors` every stored parameter by transformers' name with its
    safetensors type ("F32" for blocks) and shape, `nbytes` what the tensors take in the file. Raises `CheckpointError`
    for a damaged file or a missing part, `UnsupportedError` for an architecture or a field that is not known here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = file = GgufFile(path)
        self.files = file.files
        embedding = file.tensors.get("token_embd.weight")
        if embedding is None:
            raise CheckpointError(f"{path} has no token_embd.weight: it is not a language model")
        try:
            self._tokenizer = HeaderTokenizer(file.metadata) if _has_tokens(file.metadata) else None
            config = config_of(
                file.metadata, file.tensors, embedding.shape[0], lambda: file.floats(ROPE_FACTORS)
            )
            self.config: Mapping[str, Any] = config | self._special_tokens()
            placed = restored(self.config).placements
        except (CheckpointError, UnsupportedError) as cause:
            raise type(cause)(f"{path}: {cause}") from cause
        self._places = {place.source: place for place in placed}
        if strange := {place.name for place in placed} ^ (set(file.tensors) - TABLES):
            raise CheckpointError(f"{path} does not fit its header: {_strange(strange, file)}")
        self.tensors = {name: self._described(place) for name, place in self._places.items()}
        self.nbytes = sum(entry.nbytes for entry in file.tensors.values())

    def weight(self, name: str) -> Weight:
        """Return one parameter, on its integer grid where it has one that a scheme describes.

        Raises `CheckpointError` when it holds NaN or infinity.
        """
        place = self._places[name]
        kind = self._file.tensors[place.name].kind
        if kind in blocks.DECODERS:
            try:
                return place.restore(blocks.decode(self._file.raw(place.name), kind))
            except SchemeError:
                pass  # minima between the codes: not a grid of ours
        return self._floats(place)

    def floats(self, name: str) -> NDArray[Any]:
        """Return one parameter as the array that its blocks mean, in the type that `tensors` names."""
        weight = self.weight(name)
        return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight

    def write_tokenizer_files(self, folder: Path) -> list[Path]:
        """Write the tokenizer's files, the chat template and generation_config.json into `folder`; return them.

        A tokenizer that is not known here is left out, with a warning.
        """
        if self._tokenizer is not None:
            try:
                self._tokenizer.write(folder)
            except UnsupportedError as cause:  # a file without a usable tokenizer is still a model
                logger.warning("%s: %s; the model has no tokenizer", self.path, cause)
            except CheckpointError as cause:
                raise CheckpointError(f"{self.path}: {cause}") from cause
            made = self._special_tokens() | {"eos_token_id": self._tokenizer.stop_tokens() or None}
            text = json.dumps({name: number for name, number in made.items() if number is not None}, indent=2)
            (folder / "generation_config.json").write_text(text, encoding="utf-8")
        return sorted(folder.iterdir())

    def _special_tokens(self) -> dict[str, int | None]:
        """The ids of config.json, null where the header names none: transformers would fill in its own."""
        if self._tokenizer is None:
            return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
        return {field: self._tokenizer.token(name) for field, name in names.items()}

    def _described(self, place: Placement) -> tuple[str, tuple[int, ...]]:
        entry = self._file.tensors[place.name]
        shape = entry.shape[::-1] if place.transposed and len(entry.shape) == 2 else entry.shape
        return ("F32" if len(shape) == 1 else DTYPES.get(entry.kind, "F32")), shape

    def _floats(self, place: Placement) -> NDArray[Any]:
        kind = self._file.tensors[place.name].kind
        raw: NDArray[Any] = (
            self._file.raw(place.name).view(FLOATS[kind]) if kind in FLOATS else self._file.floats(place.name)
        )
        check_finite(raw, place.name)
        restored_weight = place.restore(raw)
        assert isinstance(restored_weight, np.ndarray)
        return restored_weight


def _has_tokens(metadata: Mapping[str, Any]) -> bool:
    return "tokenizer.ggml.tokens" in metadata


def _strange(names: set[str], file: GgufFile) -> str:
    """What does not fit, in words."""
    name = min(names)
    if name in file.tensors:
        if re.search(r"_exps|_shexp|ffn_gate_inp", name):
            return f"tensor {name[:60]} belongs to a mixture of experts, which is not read from GGUF"
        return f"tensor {name[:60]} is unknown"
    return f"tensor {name[:60]} is missing"
