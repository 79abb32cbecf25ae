"""A model in a GGUF file, presented as a transformers checkpoint.

The header becomes a config.json and tokenizer files. Tensors get transformers' names, shapes and row order, and are
read on request. `weight` returns integer weights for Q8_0, Q5_0, Q4_0, and for Q4_1 if its minima are integer multiples
of its scales. Other blocks are dequantized as in ggml's reference. `importers/gguf.py` builds artifacts from this
class, and `sources/folder.py` the source that the native engine and the torch runtime read.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import CheckpointError, SchemeError, UnsupportedError
from zeropoint.gguf import types
from zeropoint.gguf.architecture.description import restored
from zeropoint.gguf.architecture.tensors import Placement
from zeropoint.gguf.architecture.to_config import config_of
from zeropoint.gguf.architecture.to_header import ROPE_FACTORS
from zeropoint.gguf.file import MAGIC, GgufFile
from zeropoint.gguf.vocabulary.to_tokenizer import HeaderTokenizer
from zeropoint.reference.rounding import check_finite
from zeropoint.values.qtensor import QuantizedTensor, Weight

logger = logging.getLogger(__name__)

#: Tensors without a counterpart in the checkpoint: config.json holds the same information.
TABLES = frozenset({ROPE_FACTORS})


def is_gguf(path: Path) -> bool:
    """Return whether `path` is a file that starts with GGUF's magic number."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == MAGIC


class GgufModel:
    """A language model in one GGUF file, or in several parts. The path of any part opens the whole model.

    - `config`: the model's config.json;
    - `files`: the paths of the parts;
    - `tensors`: transformers' name of each parameter -> (safetensors type, shape); the type of GGUF blocks is "F32";
    - `nbytes`: the size of all tensors in the file.

    Raises `CheckpointError` for a damaged file or a missing part, `UnsupportedError` for an architecture or header
    field that Zeropoint does not know.
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
            raise CheckpointError(f"{path} does not fit its header: {_mismatch(strange, file)}")
        self.tensors = {name: self._described(place) for name, place in self._places.items()}
        self.nbytes = sum(entry.nbytes for entry in file.tensors.values())

    def weight(self, name: str) -> Weight:
        """Return one parameter: quantized if a `Scheme` describes its blocks, else as a float array.

        Raises `CheckpointError` if a float value is NaN or infinite.
        """
        place = self._places[name]
        try:
            weight = types.decode(self._file.raw(place.name), self._file.tensors[place.name].kind)
        except SchemeError:  # a K-quant, say, or Q4_1 whose minima are not integer multiples of the scales
            weight = self._file.floats(place.name)
        if isinstance(weight, np.ndarray):
            check_finite(weight, place.name)
        return place.restore(weight)

    def floats(self, name: str) -> NDArray[Any]:
        """Return one parameter dequantized, in the type that `tensors` states."""
        weight = self.weight(name)
        return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight

    def write_tokenizer_files(self, folder: Path) -> list[Path]:
        """Write the tokenizer's files, the chat template and generation_config.json into `folder`; return them.

        Leaves out a tokenizer that Zeropoint cannot convert, with a warning. Raises `CheckpointError` for a damaged
        tokenizer.
        """
        if self._tokenizer is not None:
            try:
                self._tokenizer.write(folder)
            except UnsupportedError as cause:  # the model is usable without a tokenizer
                logger.warning("%s: %s; the model has no tokenizer", self.path, cause)
            except CheckpointError as cause:
                raise CheckpointError(f"{self.path}: {cause}") from cause
            ids = self._special_tokens() | {"eos_token_id": self._tokenizer.stop_tokens() or None}
            text = json.dumps({name: number for name, number in ids.items() if number is not None}, indent=2)
            (folder / "generation_config.json").write_text(text, encoding="utf-8")
        return sorted(folder.iterdir())

    def _special_tokens(self) -> dict[str, int | None]:
        """Return config.json's special token ids. An id missing from the header is None, so that config.json says null:
        otherwise transformers would use the family's default id."""
        if self._tokenizer is None:
            return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
        return {field: self._tokenizer.token(name) for field, name in names.items()}

    def _described(self, place: Placement) -> tuple[str, tuple[int, ...]]:
        """Return a parameter's safetensors type and its shape in the checkpoint."""
        entry = self._file.tensors[place.name]
        shape = entry.shape[::-1] if place.transposed and len(entry.shape) == 2 else entry.shape
        if len(shape) > 1 and types.is_float(entry.kind):
            return entry.kind.name, shape
        return "F32", shape


def _has_tokens(metadata: Mapping[str, Any]) -> bool:
    """Return whether the header holds a tokenizer."""
    return "tokenizer.ggml.tokens" in metadata


def _mismatch(names: set[str], file: GgufFile) -> str:
    """Describe the first tensor name that the file and the header do not share."""
    name = min(names)
    if name in file.tensors:
        if re.search(r"_exps|_shexp|ffn_gate_inp", name):
            return f"tensor {name[:60]} belongs to a mixture of experts, which is not read from GGUF"
        return f"tensor {name[:60]} is unknown"
    return f"tensor {name[:60]} is missing"
