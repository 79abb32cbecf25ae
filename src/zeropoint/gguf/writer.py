"""`Contents`: what a new GGUF file will hold, decided before the first byte; `write` writes the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType

from zeropoint.gguf import types
from zeropoint.gguf.architecture.description import Description
from zeropoint.gguf.types.superblocks import Storable
from zeropoint.gguf.vocabulary import Vocabulary
from zeropoint.progress import Progress

INPUTS_NOTE = (
    "llama.cpp rounds the inputs of quantized layers to 8 bits in blocks of 32: its logits differ by that rounding "
    "from what these weights give"
)


@dataclass(frozen=True, slots=True)
class Contents:
    """The contents of a file, without the weights' numbers.

    - `name`, `file_type`: the header's name and number type of the model;
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
        return types.nbytes(self.shapes[source], self.kinds[source])

    def total_nbytes(self) -> int:
        """Return the bytes of all weights in the file."""
        return sum(self.nbytes(placement.source) for placement in self.description.placements)

    def formats(self) -> dict[str, int]:
        """Return the number of weights of each GGUF type."""
        return dict(sorted(Counter(kind.name for kind in self.kinds.values()).items()))

    def notes(self) -> tuple[str, ...]:
        """Return the known differences between llama.cpp's results and the model's."""
        integer = any(not types.is_float(kind) for kind in self.kinds.values())
        return (*((INPUTS_NOTE,) if integer else ()), *self.description.notes)


def most_common_type(
    kinds: Mapping[str, GGMLQuantizationType], shapes: Mapping[str, tuple[int, ...]]
) -> LlamaFileType:
    """Return the file type of the GGUF type that takes the most bytes. llama.cpp only displays the file type."""
    sizes: Counter[GGMLQuantizationType] = Counter()
    for name, kind in kinds.items():
        sizes[kind] += types.nbytes(shapes[name], kind)
    return types.TYPES[sizes.most_common(1)[0][0]].file_type


def write(
    path: Path, contents: Contents, weights: Iterable[tuple[str, Storable]], progress: Progress
) -> Iterator[tuple[str, Storable]]:
    """Write a file. Yield each tensor after it is written, by its name in the file.

    `weights` must yield (checkpoint name, weight) in the order of the placements.
    """
    description = contents.description
    writer = GGUFWriter(path, description.architecture)
    try:
        _write_header(writer, contents)
        for values in description.extras.values():
            writer.write_tensor_data(values)
        count, total = 0, len(description.placements)
        for (source, same), (name, original) in zip(description.by_source().items(), weights, strict=True):
            assert name == source
            for placement in same:
                weight = placement.place(original)
                writer.write_tensor_data(types.encode(weight, contents.kinds[source]))
                count += 1
                progress(f"write {placement.name}", count, total)
                yield placement.name, weight
    finally:
        writer.close()


def _write_header(writer: GGUFWriter, contents: Contents) -> None:
    """Write the header, the tokenizer and the names, types and shapes of all tensors."""
    writer.add_name(contents.name)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_file_type(contents.file_type)
    contents.description.write_metadata(writer)
    contents.vocabulary.write(writer)
    for name, values in contents.description.extras.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    for placement in contents.description.placements:
        source = placement.source
        writer.add_tensor_info(
            placement.name,
            contents.shapes[source],
            np.dtype(np.float32),
            contents.nbytes(source),
            raw_dtype=contents.kinds[source],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
