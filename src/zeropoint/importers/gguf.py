"""Import of GGUF files.

Q8_0, Q5_0 and Q4_0 stay quantized, also Q4_1 if its minima are integer multiples of its scales. Other types (K-quants)
are dequantized as in ggml's reference and kept in float32. `zeropoint.gguf.model` reads the file.
"""

from __future__ import annotations

from pathlib import Path

from zeropoint.gguf.model import GgufModel, is_gguf
from zeropoint.importers import Source


def recognizes(path: Path) -> bool:
    """Return whether `path` is a GGUF file."""
    return is_gguf(path)


def open(path: Path) -> Source:
    """Open a GGUF file. Raises what `GgufModel` raises."""
    model = GgufModel(path)
    return Source("gguf", model.config, model.files, model.tensors, model.weight, model.write_tokenizer_files)
