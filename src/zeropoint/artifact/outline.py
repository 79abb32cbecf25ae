"""`Outline`: what an exporter must know of an artifact, without its weights, to tell whether a runtime supports it.

Both an opened `Artifact` and a `Planned`, the outline of a model that is not quantized yet, are outlines. So the check
of an exporter also serves `quantize --for`, which runs it before any work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from zeropoint.artifact.layout import Layout
from zeropoint.values.plan import Plan


class Outline(Protocol):
    """An artifact without its weights.

    - `path`: the folder with the tokenizer's files;
    - `config`: the content of config.json;
    - `plan`, `layout`: as in the artifact's card;
    - `shapes`: the shape of every weight of the plan; `[out, in]` of quantized weights.
    """

    @property
    def path(self) -> Path: ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def plan(self) -> Plan: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...


@dataclass(frozen=True, slots=True)
class Planned:
    """The outline of an artifact that is planned, but not quantized yet."""

    path: Path
    config: Mapping[str, Any]
    plan: Plan
    layout: Layout
    shapes: Mapping[str, tuple[int, ...]]
