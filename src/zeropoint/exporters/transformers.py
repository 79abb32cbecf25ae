"""Export for transformers with compressed-tensors: a folder with the artifact's tensors, without its card.

transformers loads most artifacts directly. This exporter checks that, names the weights that transformers cannot load,
and writes a folder to share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zeropoint.artifact import Artifact
from zeropoint.artifact.format import loader_problems
from zeropoint.artifact.outline import Outline
from zeropoint.exporters import Pair, Written
from zeropoint.exporters._folders import read_folder, write_folder
from zeropoint.exporters._refusals import refusal
from zeropoint.progress import Progress
from zeropoint.values.plan import Choice, Plan
from zeropoint.values.scheme import PRESETS, Scheme

TAKES = "weights of 2 to 8 bits; below 8 bits symmetric ones, or one scale per tensor"
EMBEDDING = LM_HEAD = None


def formats(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the scheme of each short name of a format, the default first."""
    return {name: PRESETS[name] for name in ("int8", "int5", "int4")}


def refusals(outline: Outline, name: str, scheme: Scheme) -> list[str]:
    """Return every reason why transformers cannot load this weight in this scheme."""
    return loader_problems(Plan({name: Choice(scheme)}, 0), outline.layout, outline.shapes)


def problems(outline: Outline) -> list[str]:
    """Return every reason why transformers cannot load the artifact."""
    return loader_problems(outline.plan, outline.layout, outline.shapes)


def write(artifact: Artifact, path: Path, progress: Progress) -> Written:
    """Write the folder `path`. Raises `UnsupportedError` with the problems of the artifact."""
    if reasons := problems(artifact):
        raise refusal(artifact.path, "transformers", reasons)
    return write_folder(artifact, path, artifact.config, progress)


def read_back(artifact: Artifact, path: Path) -> Iterator[Pair]:
    """Yield every weight of the written folder beside the artifact's."""
    return read_folder(artifact, path)
