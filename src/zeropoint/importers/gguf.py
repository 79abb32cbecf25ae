"""GGUF files: Q8_0, Q5_0 and Q4_0 keep their grid, Q4_1 where its minima are whole multiples of its scales.

Other types (K-quants) are dequantized as ggml's reference does it and kept in float32. `zeropoint.gguf.model` reads the
file.
"""

from __future__ import annotations

from pathlib import Path

from zeropoint.gguf.model import GgufModel, is_gguf
from zeropoint.importers import Source


def recognizes(path: Path) -> bool:
    return is_gguf(path)


def open(path: Path) -> Source:
    model = GgufModel(path)
    return Source("gguf", model.config, model.files, model.tensors, model.weight, model.write_tokenizer_files)
