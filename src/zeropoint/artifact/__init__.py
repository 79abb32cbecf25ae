"""Artifacts on disk: a compressed-tensors model folder and the quality card beside it. No torch."""

from zeropoint.artifact.card import update_card
from zeropoint.artifact.reader import Artifact, open

__all__ = ["Artifact", "open", "update_card"]
