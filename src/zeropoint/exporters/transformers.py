"""A folder for transformers with compressed-tensors: the artifact as it is, checked, without its card.

An artifact loads there already, if it can; this names what cannot, and is the plain folder to hand on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from zeropoint.artifact import Artifact
from zeropoint.artifact.format import loader_problems
from zeropoint.exporters import Pair, Progress, Written
from zeropoint.exporters._folders import read_folder, write_folder
from zeropoint.exporters._refusals import refusal


def problems(artifact: Artifact) -> list[str]:
    shapes = {name: weight.shape for name, weight in artifact.stream()}
    return loader_problems(artifact.plan, artifact.layout, shapes)


def write(artifact: Artifact, path: Path, progress: Progress) -> Written:
    if found := problems(artifact):
        raise refusal(artifact.path, "transformers", found)
    return write_folder(artifact, path, artifact.config, progress)


def read_back(artifact: Artifact, path: Path) -> Iterator[Pair]:
    return read_folder(artifact, path)
