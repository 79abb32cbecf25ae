"""Predictions of the memory, disk and time that a command will need, and refusals before it begins.

All numbers follow from config.json and the shapes of the stored tensors, so they cost milliseconds and no weights are
read. Memory is the peak of resident bytes of the process that does the work.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from zeropoint.errors import UsageError
from zeropoint.machine.detect import Machine
from zeropoint.sources import Source

#: Resident bytes of a process before it opens a model: with torch and transformers imported, and with neither.
TORCH_BYTES, NATIVE_BYTES = 400_000_000, 60_000_000

#: Bytes of packed weights per byte of an artifact's tensors.
PACKED = 1.1

#: Float32 copies of a weight while it is rounded, and the numbers of an embedding or head that are rounded at once.
ROUNDING_COPIES, PIECE_NUMBERS = 4, 1 << 24
#: Bytes per element of a Hessian: float32 sums, a permuted copy, and a float64 copy with its factor.
HESSIAN_BYTES = 28
#: Float32 copies of a block's weights while it is tuned: weights, codes, gradients, and the optimizer's moments.
TUNING_COPIES = 8
#: Most bytes of the 16-bit model's logits that `fit` keeps; it reads fewer windows if they do not fit.
LOGITS_BYTES = 512 << 20

#: Suffixes of the files that hold weights.
WEIGHT_FILES = {".safetensors", ".gguf", ".onnx", ".data", ".bin"}

_BLOCK = re.compile(r"(.*?\.)(\d+)\.")


@dataclass(frozen=True, slots=True)
class Need:
    """What a command will need: peak bytes of memory, bytes of disk, seconds (None: not known)."""

    memory: int
    disk: int = 0
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Sizes:
    """Counts of a model's numbers.

    - `parameters`: all stored numbers; `block`: those of the largest transformer block; `blocks`: number of blocks;
    - `matrix`: those of the largest matrix;
    - `hidden`, `wide`: width of hidden states, and largest width in a block;
    - `vocabulary`: number of tokens; `stored_width`: bytes per number in the source.
    """

    parameters: int
    block: int
    blocks: int
    matrix: int
    hidden: int
    wide: int
    vocabulary: int
    stored_width: float

    @property
    def embedding(self) -> int:
        """Return the count of the embedding's numbers, and of the output head's."""
        return self.vocabulary * self.hidden

    @classmethod
    def of(cls, source: Source) -> Sizes:
        """Return the sizes of a source model, from the shapes of its tensors."""
        config = source.config.get("text_config", source.config)
        groups: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        outside: dict[str, tuple[int, ...]] = {}
        wide = inside = 0
        for name, tensor in source.tensors.items():
            if (match := _BLOCK.match(name)) is None:
                outside[name] = tensor.shape
            else:
                groups[match[1]][int(match[2])] += prod(tensor.shape)
                wide = max(wide, *tensor.shape[-2:], 0)
                inside = max(inside, prod(tensor.shape[-2:]))
        blocks = max(groups.values(), key=lambda each: sum(each.values()), default={0: 0})
        matrices = [shape for shape in outside.values() if len(shape) == 2]
        largest = max(matrices, key=prod, default=(0, 0))
        vocabulary = _whole(config, "vocab_size") or largest[0]
        hidden = _whole(config, "hidden_size", "n_embd", "d_model") or largest[-1]
        parameters = sum(prod(tensor.shape) for tensor in source.tensors.values())
        return cls(
            parameters=parameters,
            block=max(blocks.values()),
            blocks=len(blocks),
            matrix=max(inside, prod(largest)),
            hidden=hidden,
            wide=max(wide, hidden),
            vocabulary=vocabulary,
            stored_width=source.nbytes() / max(parameters, 1),
        )


def own_widths(source: Source) -> Sequence[int]:
    """Return the bytes per number of the model's own runs beside the float32 model, whose loss is the noise floor."""
    dtypes = [each.dtype for each in source.tensors.values()]
    return [2] if dtypes and max(set(dtypes), key=dtypes.count) == "BF16" else [4, 2]


@dataclass(frozen=True, slots=True)
class Observed:
    """What an algorithm observes of a calibration text of `tokens` tokens (0: no text).

    `hessian`, `drift`: it uses these statistics. `float_model`: the float model runs beside the quantized one. `tunes`:
    it tunes whole blocks by gradient descent.
    """

    tokens: int
    hessian: bool = False
    drift: bool = False
    float_model: bool = False
    tunes: bool = False


def quantizing(sizes: Sizes, observed: Observed, nbytes: int) -> Need:
    """Return what quantizing into an artifact of `nbytes` bytes needs."""
    rounding = (
        ROUNDING_COPIES * 4 * min(sizes.matrix, PIECE_NUMBERS) + (5 + sizes.stored_width) * sizes.matrix
    )
    table = int(min(sizes.stored_width, 4) * sizes.embedding)
    if not observed.tokens:
        return Need(TORCH_BYTES + max(int(rounding), table + 2 * 4 * sizes.block), nbytes)
    tokens, hidden, wide = observed.tokens, sizes.hidden, sizes.wide
    states = 4 * tokens * hidden * (2 if observed.float_model else 1)
    captured = 2 * tokens * (hidden + wide) + 4 * tokens * hidden  # inputs and outputs of last layers
    captured += 2 * tokens * (3 * hidden + wide) if observed.drift else 0
    squares = (HESSIAN_BYTES if observed.hessian else 0) * wide**2
    weights = 4 * sizes.block * (TUNING_COPIES if observed.tunes else 2)
    block = states + captured + weights + squares
    # The run checkpoint keeps finished weights and hidden states beside the artifact.
    return Need(TORCH_BYTES + max(int(rounding), table + states, block), 2 * nbytes + states)


def fitting(sizes: Sizes, nbytes: Sequence[int]) -> Need:
    """Return what `fit` needs with candidates of `nbytes` bytes each: all are in memory at once, and in the cache."""
    everything = int(PACKED * sum(nbytes))
    return Need(TORCH_BYTES + everything + LOGITS_BYTES + 4 * sizes.matrix, everything + max(nbytes))


def stored_bytes(path: str | Path) -> int:
    """Return the bytes of a model's files of weights, 0 if there are none."""
    place = Path(path)
    files = [place] if place.is_file() else place.glob("*")
    return sum(file.stat().st_size for file in files if file.suffix in WEIGHT_FILES and file.is_file())


def running(stored_bytes: int) -> Need:
    """Return what running an artifact natively needs: its weights, as packed for the kernels."""
    return Need(NATIVE_BYTES + int(PACKED * stored_bytes))


def reference_in_memory(source: Source, context: int, artifact_bytes: Sequence[int] = ()) -> Need:
    """Return what `check` and `compare` need with the reference model and its own runs whole in memory."""
    sizes, widths = Sizes.of(source), own_widths(source)
    weights = (4 + sum(widths)) * sizes.parameters
    return Need(
        TORCH_BYTES
        + weights
        + _logits(sizes, context, 1 + len(widths) + len(artifact_bytes))
        + sum(artifact_bytes)
    )


def reference_streamed(source: Source, tokens: int, context: int, artifact_bytes: Sequence[int] = ()) -> Need:
    """Return what `check` and `compare` need with the reference model run block by block."""
    sizes, widths = Sizes.of(source), own_widths(source)
    states = -(-tokens // max(context - 1, 1)) * context * sizes.hidden
    each = 4 + sum(set(widths) - {4})  # bytes of one number in all dtypes
    kept = states * each
    table = sizes.embedding * (sizes.stored_width if sizes.stored_width < 4 else 4)
    rows = 4 * min(tokens * sizes.hidden, sizes.embedding)
    block = 4 * sizes.block + int(sizes.stored_width * sizes.matrix) + 8 * context * sizes.wide * 4
    heads = each * sizes.embedding + 4 * states
    scoring_own = heads + _logits(sizes, context, 1 + len(widths))
    scoring = (
        4 * sizes.embedding
        + 4 * states
        + _logits(sizes, context, 1 + len(artifact_bytes))
        + sum(artifact_bytes)
    )
    return Need(TORCH_BYTES + kept + max(int(table) + rows, block, scoring_own, scoring), kept + 4 * states)


def scoring_seconds(source: Source, tokens: int, pace: float) -> float:
    """Return about how long the float32 model and its own runs take on a text.

    `pace`: multiplications per second of float32 matrix products.
    """
    return tokens * Sizes.of(source).parameters * (1 + len(own_widths(source))) / pace


def _logits(sizes: Sizes, context: int, models: int) -> int:
    """Return the bytes of one window's logits of `models` models, and of copies while they are made."""
    return 4 * context * sizes.vocabulary * (models + 1)


def _whole(config: Mapping[str, Any], *keys: str) -> int:
    """Return the first of a config's fields that is a positive whole number, else 0."""
    return next((v for v in map(config.get, keys) if isinstance(v, int) and v > 0), 0)


def refuse_large(what: str, need: Need, advice: str, machine: Machine | None = None) -> None:
    """Raise `UsageError` if the memory that `what` needs exceeds the free memory; `advice` says what to do."""
    free = (machine or Machine.detect()).ram_available_bytes
    if 0 < free < need.memory:
        raise UsageError(
            f"{what} needs about {need.memory / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} GB are free: {advice}"
        )
