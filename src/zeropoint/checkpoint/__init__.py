"""Source models: local folders, hub names and GGUF files, read lazily one parameter at a time."""

from zeropoint.checkpoint.source import Checkpoint, ParameterInfo, open_checkpoint

__all__ = ["Checkpoint", "ParameterInfo", "open_checkpoint"]
