"""Source models as transformers models: local folders, hub names and GGUF files, read one parameter at a time."""

from zeropoint.checkpoint.source import Checkpoint, ParameterInfo, open_checkpoint

__all__ = ["Checkpoint", "ParameterInfo", "open_checkpoint"]
