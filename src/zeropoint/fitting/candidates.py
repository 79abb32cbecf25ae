"""Candidates: one model in several formats at once, packed for the native engine, so that any mix runs in seconds.

A group is a set of layers that must share a format: layers with the same input (query, key and value; gate and up),
which other engines fuse, and a tied embedding with its head. The model spec says where each weight is used, so groups
need no table of weight names.
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
from zeropoint.progress import Progress
from zeropoint.quantization import WeightDone, stream
from zeropoint.runtime.native.library import Decoder, Weight
from zeropoint.runtime.native.packed_weights import Packed, PackedWeights, pack_stream
from zeropoint.sources.records import describe
from zeropoint.values.plan import Plan

#: The format of the unquantized 16-bit weights. Every loss is measured against the 16-bit model.
WIDE = "16-bit"

#: Linear slots with a common input, by the name of the group kind in reports.
KINDS: dict[str, tuple[LinearSlot, ...]] = {
    "qkv": (LinearSlot.Q, LinearSlot.K, LinearSlot.V),
    "o": (LinearSlot.O,),
    "gate_up": (LinearSlot.GATE, LinearSlot.UP),
    "down": (LinearSlot.DOWN,),
    "embedding": (LinearSlot.EMBEDDING,),
    "head": (LinearSlot.HEAD,),
}


@dataclass(frozen=True, slots=True)
class Group:
    """Weights (parameter names) that share a format. `layer` is the transformer block's number, or `MODEL`."""

    name: str
    layer: int
    kind: str
    weights: tuple[str, ...]


def groups_of(record: ModelSpec) -> list[Group]:
    """Return the groups of a model in the order of the forward pass, the embedding first."""
    kind_of = {slot: kind for kind, slots in KINDS.items() for slot in slots}
    weights_by_group: dict[tuple[int, str], list[str]] = {}
    names_used: set[str] = set()
    for layer, slot, source in record.linears():
        if slot in kind_of and source.weight not in names_used:
            names_used.add(source.weight)
            weights_by_group.setdefault((layer, kind_of[slot]), []).append(source.weight)
    return [
        Group(kind if layer == MODEL else f"block {layer} {kind}", layer, kind, tuple(names))
        for (layer, kind), names in weights_by_group.items()
    ]


class Candidates:
    """One model in every one of `formats` (`WIDE` first), by groups of layers.

    Sizes are known after construction; decoders and packed weights exist after `make`. Raises `SchemeError` for an
    unknown format, `UsageError` if a format is repeated or none is given.
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
            raise UsageError(f"fit needs one or more different formats, not {', '.join(formats) or 'none'}")
        self.checkpoint = checkpoint
        self.record = record
        self._plans = {WIDE: uniform_plan(checkpoint, _wide_format(checkpoint), seed=seed)}
        for text in formats:
            self._plans[text] = uniform_plan(checkpoint, text, embedding=text, algorithm=algorithm, seed=seed)
        self.formats = tuple(self._plans)
        self._packed_weights: dict[str, PackedWeights] = {}
        narrow = self._plans[self.formats[-1]].choices
        quantized = {name for name, choice in narrow.items() if choice.scheme is not None}
        groups = [
            replace(g, weights=tuple(n for n in g.weights if n in quantized)) for g in groups_of(record)
        ]
        self.groups = tuple(group for group in groups if group.weights)

    def make(
        self, tokens: NDArray[np.int64] | None, step: Progress, cache: Cache, key: Mapping[str, Any]
    ) -> None:
        """Read the packed model of each format from `cache` (under `key` and the plan), or quantize and pack it.

        `tokens` is the calibration text, None for algorithms without one. Raises the errors of `stream` and
        `pack_stream`.
        """
        for text, plan in self._plans.items():

            def packed(text: str = text, plan: Plan = plan) -> Iterator[Packed]:
                watch = _watch(step, f"quantizing to {text}")
                calibration = None if text == WIDE else tokens
                weights = stream(self.checkpoint, plan, tokens=calibration, progress=watch)
                return pack_stream(self.record, weights)

            self._packed_weights[text] = cache.packed_weights(
                {**key, "plan": plan.to_json()}, plan.nbytes, packed
            )

    def decoder(self, picks: Picks) -> Decoder:
        """Return the model with group g in format `formats[picks[g]]`; it shares the packed weights without a copy."""
        source_of = {
            name: self._packed_weights[self.formats[pick]]
            for group, pick in zip(self.groups, picks, strict=True)
            for name in group.weights
        }
        rest = self._packed_weights[self.formats[-1]]
        weights = {part: source_of.get(part[0], rest).weights[part] for part in rest.weights}
        return PackedWeights(weights, rest.vectors).decoder(self.record)

    def weights(self, group: Group, format: str) -> list[Weight]:
        """Return the packed weights of a group that take part in products: none for an untied embedding (a look-up)."""
        if group.kind == "embedding" and any(other.kind == "head" for other in self.groups):
            return []
        return [w for part, w in self._packed_weights[format].weights.items() if part[0] in group.weights]

    def plan(self, picks: Picks, reasons: Sequence[str], label: str, seed: int) -> Plan:
        """Return the plan in which group i has format number `picks[i]` and the reason `reasons[i]`."""
        choices = dict(self._plans[self.formats[-1]].choices)
        for group, pick, reason in zip(self.groups, picks, reasons, strict=True):
            for name in group.weights:
                choices[name] = replace(self._plans[self.formats[pick]].choices[name], reason=reason)
        return Plan(choices, plan_nbytes(self.checkpoint, choices), label, seed)

    def nbytes(self) -> tuple[NDArray[np.float64], float]:
        """Return the exact bytes of each group in each format `[groups, formats]`, and of the rest of the model."""
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
    """Return the 16-bit format of a checkpoint: bf16 if any parameter is bfloat16, else fp16."""
    dtypes = {info.dtype for info in checkpoint.parameters()}
    return "bf16" if torch.bfloat16 in dtypes else "fp16"


def _watch(step: Progress, what: str) -> Callable[[WeightDone], None]:
    """Return a callback that passes quantization progress on to `step` under the name `what`."""

    def watch(weight: WeightDone) -> None:
        step(what, weight.done / weight.total)

    return watch


def read_record(checkpoint: Checkpoint) -> ModelSpec:
    """Return the native engine's spec of the model.

    Raises `UnsupportedError` if the native engine, which makes all measurements of `fit`, does not run the model.
    """
    return describe(checkpoint.source).record
