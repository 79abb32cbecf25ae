"""One model in several formats at once, packed for the native engine, so that any mix of them runs in seconds.

Layers that must share a format are one group: those that read the same input (query, key and value; gate and up),
which other engines fuse, and a tied embedding with its head. Groups come from the decoder's record, which says where
each weight is used; there is no table of names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zeropoint.checkpoint import Checkpoint
from zeropoint.errors import UsageError
from zeropoint.fitting.cache import Cache
from zeropoint.models.spec import MODEL, LinearSlot, ModelSpec
from zeropoint.planning import uniform_plan
from zeropoint.planning.solver import Picks
from zeropoint.planning.uniform import choice_nbytes, layout_of, plan_nbytes
from zeropoint.quantization import Progress, stream
from zeropoint.runtime.native.library import Decoder, Weight
from zeropoint.runtime.native.packed_weights import Packed, PackedWeights, pack_stream
from zeropoint.sources.records import describe
from zeropoint.values.plan import Plan

#: The unquantized weights, in 16 bits: what every loss is measured against.
WIDE = "16-bit"

#: Slots that read one input, by the name shown to people.
KINDS: dict[str, tuple[LinearSlot, ...]] = {
    "qkv": (LinearSlot.Q, LinearSlot.K, LinearSlot.V),
    "o": (LinearSlot.O,),
    "gate_up": (LinearSlot.GATE, LinearSlot.UP),
    "down": (LinearSlot.DOWN,),
    "embedding": (LinearSlot.EMBEDDING,),
    "head": (LinearSlot.HEAD,),
}

Step = Callable[[str, float], None]
"""Told what is being done and the finished share of it."""


@dataclass(frozen=True, slots=True)
class Group:
    """Weights that move together, by parameter name. `layer` is the block's number, or `MODEL`."""

    name: str
    layer: int
    kind: str
    weights: tuple[str, ...]


def groups_of(record: ModelSpec) -> list[Group]:
    """The groups of a model in the order in which a token meets them, the embedding first."""
    kind_of = {slot: kind for kind, slots in KINDS.items() for slot in slots}
    found: dict[tuple[int, str], list[str]] = {}
    seen: set[str] = set()
    for layer, slot, source in record.linears():
        if slot in kind_of and source.weight not in seen:
            seen.add(source.weight)
            found.setdefault((layer, kind_of[slot]), []).append(source.weight)
    return [
        Group(kind if layer == MODEL else f"block {layer} {kind}", layer, kind, tuple(names))
        for (layer, kind), names in found.items()
    ]


class Candidates:
    """`formats`, `WIDE` first; what they cost in bytes is known at once, what they do after `make`.

    Raises `SchemeError` or `UsageError` for a format that is none, or for one given twice.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        record: ModelSpec,
        formats: Sequence[str],
        *,
        algorithm: str,
        seed: int,
    ) -> None:
        if len({WIDE, *formats}) != len(formats) + 1 or not formats:
            raise UsageError(f"fit chooses from formats that differ, not from {', '.join(formats) or 'none'}")
        self.checkpoint = checkpoint
        self.record = record
        self._plans = {WIDE: uniform_plan(checkpoint, _wide_format(checkpoint), seed=seed)}
        for text in formats:
            self._plans[text] = uniform_plan(checkpoint, text, embedding=text, algorithm=algorithm, seed=seed)
        self.formats = tuple(self._plans)
        self._packed_weights: dict[str, PackedWeights] = {}
        narrow = self._plans[self.formats[-1]].choices
        wanted = {name for name, choice in narrow.items() if choice.scheme is not None}
        groups = [replace(g, weights=tuple(n for n in g.weights if n in wanted)) for g in groups_of(record)]
        self.groups = tuple(group for group in groups if group.weights)

    def make(
        self, tokens: NDArray[np.int64] | None, step: Step, cache: Cache, key: Mapping[str, Any]
    ) -> None:
        """Quantize the whole model to each format, and pack it; what `cache` has by `key` and plan is taken from there.

        Raises what `stream` and `pack_stream` do.
        """
        for text, plan in self._plans.items():

            def packed(text: str = text, plan: Plan = plan) -> Iterator[Packed]:
                watch = _watch(step, f"quantizing to {text}")
                given = None if text == WIDE else tokens
                return pack_stream(self.record, stream(self.checkpoint, plan, tokens=given, progress=watch))

            self._packed_weights[text] = cache.packed_weights(
                {**key, "plan": plan.to_json()}, plan.nbytes, packed
            )

    def decoder(self, picks: Picks) -> Decoder:
        """The model with group g in format `formats[picks[g]]`. Nothing is copied."""
        chosen = {
            name: self._packed_weights[self.formats[pick]]
            for group, pick in zip(self.groups, picks, strict=True)
            for name in group.weights
        }
        rest = self._packed_weights[self.formats[-1]]
        weights = {part: chosen.get(part[0], rest).weights[part] for part in rest.weights}
        return PackedWeights(weights, rest.vectors).decoder(self.record)

    def weights(self, group: Group, format: str) -> list[Weight]:
        """The packed parts of a group that decoding a token multiplies by: an untied embedding is only looked up."""
        if group.kind == "embedding" and any(other.kind == "head" for other in self.groups):
            return []
        return [w for part, w in self._packed_weights[format].weights.items() if part[0] in group.weights]

    def plan(self, picks: Picks, reasons: Sequence[str], label: str, seed: int) -> Plan:
        """The mix as a plan that `quantize` carries out."""
        choices = dict(self._plans[self.formats[-1]].choices)
        for group, pick, reason in zip(self.groups, picks, reasons, strict=True):
            for name in group.weights:
                choices[name] = replace(self._plans[self.formats[pick]].choices[name], reason=reason)
        return Plan(choices, plan_nbytes(self.checkpoint, choices), label, seed)

    def nbytes(self) -> tuple[NDArray[np.float64], float]:
        """Exact bytes of each group in each format `[groups, formats]`, and of everything else."""
        layout = layout_of(self.checkpoint)
        shapes = {view.name: view.shape for view in self.checkpoint.views()[0]}
        infos = {info.name: info for info in self.checkpoint.parameters()}

        def of(name: str, format: str) -> int:
            choice = self._plans[format].choices[name]
            return choice_nbytes(name, choice, infos.get(name), shapes.get(name), layout)

        table = np.array(
            [[float(sum(of(n, f) for n in group.weights)) for f in self.formats] for group in self.groups]
        )
        return table, self._plans[self.formats[-1]].nbytes - float(table[:, -1].sum())


def _wide_format(checkpoint: Checkpoint) -> str:
    dtypes = {info.dtype for info in checkpoint.parameters()}
    return "bf16" if torch.bfloat16 in dtypes else "fp16"


def _watch(step: Step, what: str) -> Callable[[Progress], None]:
    def watch(progress: Progress) -> None:
        step(what, progress.done / progress.total)

    return watch


def read_record(checkpoint: Checkpoint) -> ModelSpec:
    """How the native engine, with which everything is measured, sees the model.

    Raises `UnsupportedError` for a model that it does not run.
    """
    return describe(checkpoint.source).record
