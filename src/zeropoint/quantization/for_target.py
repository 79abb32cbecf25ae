"""Plans for another runtime (`quantize --for`): uniform plans whose artifacts can be exported to the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from zeropoint.artifact.outline import Outline, Planned
from zeropoint.checkpoint import Checkpoint
from zeropoint.planning import uniform_plan
from zeropoint.planning.uniform import Limits, layout_of
from zeropoint.quantization.to_artifact import source_config
from zeropoint.sources.texts import text_folder
from zeropoint.values.plan import Plan
from zeropoint.values.scheme import Scheme, parse


class Target(Protocol):
    """A runtime to quantize for. `zeropoint.exporters` has the implementation, which also describes the members."""

    @property
    def name(self) -> str: ...

    @property
    def embedding(self) -> str | None: ...

    @property
    def lm_head(self) -> str | None: ...

    def formats(self, config: Mapping[str, Any]) -> Mapping[str, str]: ...

    def refusals(self, outline: Outline, name: str, scheme: Scheme) -> list[str]: ...

    def check(self, source: str, outline: Outline) -> None: ...


def scheme_for(target: Target, format: str | None, config: Mapping[str, Any]) -> Scheme:
    """Return the target's scheme for a short name (None: the default), or the scheme that a scheme string describes."""
    formats = target.formats(config)
    return parse(formats.get(format, format) if format is not None else next(iter(formats.values())))


def plan_for(
    target: Target,
    checkpoint: Checkpoint,
    scheme: Scheme,
    *,
    embedding: str | None = None,
    lm_head: str | None = None,
    **arguments: Any,
) -> Plan:
    """Return the plan of `uniform_plan` with groups that the target supports; `arguments` are those of `uniform_plan`.

    An embedding or output head for which the user names no format stays unquantized if the target does not support its
    default format. The plan may still have problems, which `check_plan` raises.
    """
    outline = outline_of(checkpoint, Plan({}, 0))
    free = {kind for kind, format in (("embedding", embedding), ("lm_head", lm_head)) if format is None}
    if (
        outline.layout.tied and len(free) == 1
    ):  # a tied pair is one weight, so the user chose the format of both
        free = set()
    if not scheme.is_float:
        embedding = target.embedding if "embedding" in free else embedding
        lm_head = target.lm_head if "lm_head" in free else lm_head
    limits = Limits(target.name, lambda name, scheme: target.refusals(outline, name, scheme), frozenset(free))
    return uniform_plan(checkpoint, scheme, embedding=embedding, lm_head=lm_head, limits=limits, **arguments)


def check_plan(target: Target, checkpoint: Checkpoint, plan: Plan) -> None:
    """Raise `UnsupportedError` with the reasons why the artifact of a plan cannot be exported to the target."""
    target.check(checkpoint.name, outline_of(checkpoint, plan))


def outline_of(checkpoint: Checkpoint, plan: Plan) -> Planned:
    """Return the outline of the artifact that a plan makes of a checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {info.name: info.shape for info in checkpoint.parameters()}
    shapes |= {view.name: view.shape for view in checkpoint.views()[0]}
    return Planned(
        text_folder(checkpoint.path), source_config(checkpoint), plan, layout_of(checkpoint), shapes
    )
