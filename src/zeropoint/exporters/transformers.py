"""Export for transformers with compressed-tensors: a folder with the artifact's tensors, without its card.

transformers loads most artifacts directly. This exporter checks that, names the weights that transformers cannot load,
and writes a folder to share.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from zeropoint.artifact import Artifact
from zeropoint.artifact.format import loader_problems
from zeropoint.exporters import Pair, Written
from zeropoint.exporters._folders import read_folder, write_folder
from zeropoint.exporters._refusals import refusal
from zeropoint.progress import Progress


def problems(artifact: Artifact) -> list[str]:
    """Return every reason why transformers cannot load the artifact."""
    shapes = {name: weight.shape for name, weight in artifact.stream()}
    return loader_problems(artifact.plan, artifact.layout, shapes)


def write(artifact: Artifact, path: Path, progress: Progress) -> Written:
    """Write the folder `path`. Raises `UnsupportedError` with the problems of the artifact."""
    if reasons := problems(artifact):
        raise refusal(artifact.path, "transformers", reasons)
    return write_folder(artifact, path, artifact.config, progress)


def read_back(artifact: Artifact, path: Path) -> Iterator[Pair]:
    """Yield every weight of the written folder beside the artifact's."""
    return read_folder(artifact, path)
