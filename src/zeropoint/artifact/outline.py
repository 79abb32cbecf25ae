"""`Outline`: an artifact without its weights, which is what the rules of another runtime are about.

An opened `Artifact` is an outline, and so is a plan for a model that is not quantized yet (`Planned`). So an exporter
states its rules once, and `quantize --for` checks them before any work.
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
    """The outline of the artifact that a plan makes."""

    path: Path
    config: Mapping[str, Any]
    plan: Plan
    layout: Layout
    shapes: Mapping[str, tuple[int, ...]]
