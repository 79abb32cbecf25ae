"""Checkpoint + plan -> a stream of weights, and the artifact written from it."""

from zeropoint.artifact import refuse_existing
from zeropoint.quantization.journal import refuse_output
from zeropoint.quantization.layers import LayerError
from zeropoint.quantization.pipeline import (
    Summary,
    card_of,
    companions,
    quantize_checkpoint,
    read_calibration,
    source_config,
)
from zeropoint.quantization.streaming import Progress, stream

__all__ = [
    "LayerError",
    "Progress",
    "Summary",
    "card_of",
    "companions",
    "quantize_checkpoint",
    "read_calibration",
    "refuse_existing",
    "refuse_output",
    "source_config",
    "stream",
]
