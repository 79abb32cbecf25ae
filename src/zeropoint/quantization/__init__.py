"""Quantization of a checkpoint by a plan: a stream of quantized weights, and the artifact written from the stream."""

from zeropoint.artifact import refuse_existing
from zeropoint.quantization.layers import LayerError
from zeropoint.quantization.run_checkpoint import refuse_output
from zeropoint.quantization.streaming import Progress, stream
from zeropoint.quantization.to_artifact import (
    Summary,
    card_of,
    quantize_checkpoint,
    read_calibration,
    source_config,
    tokenizer_files,
)

__all__ = [
    "LayerError",
    "Progress",
    "Summary",
    "card_of",
    "quantize_checkpoint",
    "read_calibration",
    "refuse_existing",
    "refuse_output",
    "source_config",
    "stream",
    "tokenizer_files",
]
