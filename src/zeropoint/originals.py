"""Original models, quantized into another runtime's own types as they are exported.

An artifact holds schemes; what a K-quant says is no scheme, and converting rounded weights would round them twice. So
an export in such types begins at the float model: its blocks are observed on a calibration text and quantized one after
the other, as `quantize --algorithm good` does it, but on the grids of these types
(`algorithms/_ggml_grids.py`). What no block holds, embedding and output head, is rounded to nearest.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType

from zeropoint import artifact
from zeropoint.algorithms import _ggml_grids as grids
from zeropoint.algorithms import gptq, part_options, parts, resolve
from zeropoint.calibrate import Calibration
from zeropoint.checkpoint import Checkpoint, open_checkpoint
from zeropoint.errors import CheckpointError, SchemeError, StatisticsError, UsageError
from zeropoint.gguf.superblocks import Storable, SuperTensor
from zeropoint.quantization.calibrated import CalibratedBlocks
from zeropoint.quantization.layers import Quantized, measure, quantize_views
from zeropoint.quantization.pipeline import read_calibration, source_config
from zeropoint.reference.rounding import check_finite
from zeropoint.sources.notes import tell
from zeropoint.values.plan import Choice, Plan
from zeropoint.values.qtensor import Coded, Floats, QuantizedTensor
from zeropoint.values.scheme import Scheme, parse
from zeropoint.values.stats import LayerStats
from zeropoint.views import LayerView

logger = logging.getLogger(__name__)

Kind = GGMLQuantizationType

FLOATS = (Kind.F32, Kind.F16)

#: Types that a scheme describes, which the algorithms quantize to as they stand.
SCHEMES: Mapping[GGMLQuantizationType, Scheme] = {
    Kind.Q8_0: parse("int8:g32:sym:fp16"),
    Kind.Q5_0: parse("int5:g32:sym:fp16"),
    Kind.Q4_0: parse("int4:g32:sym:fp16"),
}


def open_original(
    path: str | Path, *, calibration: str | Path | None = None, tokens: int | None = None
) -> OriginalModel:
    """A float model, to be observed on so many `tokens` of a text (None: the built-in one, the usual number).

    Raises `UsageError` where the weights are no longer the original ones, and as `open_checkpoint` and
    `read_calibration` do.
    """
    if artifact.is_artifact(path):
        made = artifact.open(path)
        if any(
            choice.scheme is not None and not choice.scheme.is_float for choice in made.plan.choices.values()
        ):
            raise UsageError(
                f"{path} is quantized already, and quantizing its numbers again would lose twice: --type takes the "
                f"model that it was made from ({made.card['source']['name']}) in its place"
            )
    checkpoint = open_checkpoint(path)
    if not checkpoint.path.is_dir():
        raise UsageError(
            f"{path} is converted already: --type takes the model's own folder, as it was published, in its place"
        )
    tell(checkpoint.notes)
    counted = {} if tokens is None else {"tokens": tokens}
    return OriginalModel(checkpoint, read_calibration(checkpoint, calibration, **counted))


class OriginalModel:
    """An `exporters.Original` in ggml's types. `warnings` names each weight that was not made as it should be."""

    def __init__(self, checkpoint: Checkpoint, calibration: Calibration) -> None:
        self.name, self.folder = checkpoint.name, checkpoint.path
        self.config: Mapping[str, Any] = source_config(checkpoint)
        self.warnings: list[str] = []
        self._checkpoint, self._tokens = checkpoint, torch.from_numpy(calibration.tokens)
        views, kept = checkpoint.views()
        self._views = {view.name: view for view in views}
        order = {info.name: number for number, info in enumerate(checkpoint.parameters())}
        found = [(order[view.parameter], view.name, tuple(view.shape)) for view in views]
        found += [(order[each.name], each.name, each.shape) for each in kept]
        self.shapes: Mapping[str, tuple[int, ...]] = {name: shape for _, name, shape in sorted(found)}

    def weights(self, kinds: Mapping[str, GGMLQuantizationType]) -> Iterator[tuple[str, Storable]]:
        """Each weight once, matrices in their `kinds`; blocks are observed and quantized as they are asked for.

        Raises `CheckpointError` naming the weight that holds NaN or inf, `SchemeError` when a scale overflows.
        """
        choices = self._choices(kinds)

        def quantize(views: Sequence[LayerView], choice: Choice, stats: LayerStats | None) -> list[Quantized]:
            return quantize_to(kinds, views, choice, stats)

        blocks = CalibratedBlocks(self._checkpoint, Plan(choices, 0), self._tokens, quantize)
        for name, choice in choices.items():
            if choice.scheme is None:
                yield name, self._kept(name, kinds.get(name, Kind.F32), blocks.folded(name))
                continue
            covered = blocks.covers(name)
            made = blocks.take(name) if covered else quantize([self._views[name]], choice, None)[0]
            blocks.replace(name, made.weight)
            if made.warning:
                self.warnings.append(made.warning)
            yield name, _storable(made.weight)

    def _choices(self, kinds: Mapping[str, GGMLQuantizationType]) -> dict[str, Choice]:
        """What happens to each weight. All have the scheme of the most common type, or one like it: folds into layers
        that share an input are searched with it. `quantize_to` goes by each weight's kind."""
        integer = Counter(kind for kind in kinds.values() if kind not in FLOATS)
        scheme = scheme_of(integer.most_common(1)[0][0]) if integer else None
        inside = Choice(scheme, *resolve("good", {}, scheme))

        def choose(name: str) -> Choice:
            if kinds.get(name, Kind.F32) in FLOATS:
                return Choice(None)
            return Choice(scheme) if self._views[name].kind in ("embedding", "lm_head") else inside

        return {name: choose(name) for name in self.shapes}

    def _kept(self, name: str, kind: GGMLQuantizationType, folded: torch.Tensor | None) -> Storable:
        """A parameter, or what it was `folded` into."""
        values = (self._checkpoint.read(name) if folded is None else folded).float().numpy()
        check_finite(values, name)
        if kind == Kind.F32:
            return values
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise CheckpointError(f"{name} holds values beyond FP16, in which rows of its length are stored")
        return halves


def scheme_of(kind: GGMLQuantizationType) -> Scheme:
    """The scheme that a type is, or else one of as many codes and groups."""
    return SCHEMES.get(kind) or grids.flat_scheme(kind)


def quantize_to(
    kinds: Mapping[str, GGMLQuantizationType],
    views: Sequence[LayerView],
    choice: Choice,
    stats: LayerStats | None,
) -> list[Quantized]:
    """A `Quantizer`: weights that share an input and a choice, each in its kind."""
    found: dict[str, Quantized] = {}
    for kind in dict.fromkeys(kinds[view.name] for view in views):
        alike = [view for view in views if kinds[view.name] == kind]
        if kind in SCHEMES:
            done = quantize_views(alike, replace(choice, scheme=SCHEMES[kind]), stats)
        else:
            done = _fit(alike, kind, choice, stats)
        found |= {view.name: made for view, made in zip(alike, done, strict=True)}
    return [found[view.name] for view in views]


def _fit(
    views: Sequence[LayerView], kind: GGMLQuantizationType, choice: Choice, stats: LayerStats | None
) -> list[Quantized]:
    """Weights of one input as one tall weight, in one of `FORMATS`."""
    values = [view.read().numpy() for view in views]
    names = ", ".join(view.name for view in views)
    for view, value in zip(views, values, strict=True):
        check_finite(value, view.name)
    try:
        made, warning = _choose(np.concatenate(values), kind, choice, stats)
    except SchemeError as cause:
        raise SchemeError(f"{names} as {kind.name}: {cause}") from cause
    if warning:
        warning = f"{names} was rounded to nearest instead: {warning}"
        logger.warning("%s", warning)
    found, start = [], 0
    for view, value in zip(views, values, strict=True):
        part = made.rows(start, start + len(value))
        found.append(Quantized(part, measure(view.name, value, part, kind.name), "" if start else warning))
        start += len(value)
    return found


def _choose(
    weight: Floats, kind: GGMLQuantizationType, choice: Choice, stats: LayerStats | None
) -> tuple[SuperTensor, str]:
    """A weight by GPTQ on the grid fitted to it; and why it was rounded to nearest, where that was not meant."""
    name = parts(choice.algorithm)["quantize"]
    if name != "gptq":
        return grids.fit(weight, stats, kind), ""
    options = part_options(choice.algorithm, choice.options)[name]
    fitted: list[SuperTensor] = []

    def find(wanted: Floats) -> gptq.Grid:
        fitted.append(grids.fit(wanted, stats, kind))
        centred, offset = grids.as_grid(fitted[-1])
        return gptq.Grid(centred.scheme, centred.scale, None, offset)

    try:
        made = gptq.quantize_on(find, weight, stats, options)
    except StatisticsError as cause:
        return grids.fit(weight, stats, kind), str(cause)
    return grids.with_codes(fitted[-1], made.codes), ""


def _storable(weight: Coded) -> Storable:
    assert isinstance(weight, QuantizedTensor | SuperTensor)
    return weight
