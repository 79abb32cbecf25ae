"""Artifacts on disk: reading and writing model folders in the compressed-tensors format, each with a quality card. No
torch."""

from zeropoint.artifact.card import Card, update_card
from zeropoint.artifact.layout import Layout
from zeropoint.artifact.reader import Artifact, is_artifact, open
from zeropoint.artifact.writer import refuse_existing, write
from zeropoint.files.json_file import CARD_NAME

__all__ = [
    "CARD_NAME",
    "Artifact",
    "Card",
    "Layout",
    "is_artifact",
    "open",
    "refuse_existing",
    "update_card",
    "write",
]
