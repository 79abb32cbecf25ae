"""Quantization of a checkpoint by a plan: a stream of quantized weights, and the artifact written from the stream."""

from typing import TYPE_CHECKING

from zeropoint._moved import old_attributes
from zeropoint.artifact import refuse_existing
from zeropoint.quantization.layers import LayerError
from zeropoint.quantization.run_checkpoint import refuse_output
from zeropoint.quantization.streaming import WeightDone, stream
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
    "Summary",
    "WeightDone",
    "card_of",
    "quantize_checkpoint",
    "read_calibration",
    "refuse_existing",
    "refuse_output",
    "source_config",
    "stream",
    "tokenizer_files",
]

if not TYPE_CHECKING:
    __getattr__ = old_attributes(__name__)
