"""Quantization of an original float model to GGUF types during export.

No `Scheme` describes a K-quant, so no artifact can hold one, and converting an artifact would round its weights twice.
An export to such types therefore starts from the float model. Its transformer blocks are calibrated and quantized one
after another, as by `quantize --algorithm good`, but on the grids of the GGUF types (`algorithms/_gguf_grids.py`). The
embedding and the output head, which are outside the blocks, are rounded to nearest.
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
from zeropoint.algorithms import _gguf_grids as grids
from zeropoint.algorithms import gptq, part_options, parts, resolve
from zeropoint.calibrate import Calibration
from zeropoint.checkpoint import Checkpoint, open_checkpoint
from zeropoint.errors import CheckpointError, SchemeError, StatisticsError, UsageError
from zeropoint.gguf.types import TYPES, is_float
from zeropoint.gguf.types.superblocks import Storable, SuperTensor
from zeropoint.quantization.calibrated_blocks import CalibratedBlocks
from zeropoint.quantization.layers import Quantized, measure, quantize_views
from zeropoint.quantization.to_artifact import read_calibration, source_config
from zeropoint.reference.rounding import check_finite
from zeropoint.sources.notes import tell
from zeropoint.values.arrays import Floats
from zeropoint.values.plan import Choice, Plan
from zeropoint.values.qtensor import Coded, QuantizedTensor
from zeropoint.values.stats import LayerStats
from zeropoint.views import LayerView

logger = logging.getLogger(__name__)

Kind = GGMLQuantizationType


def open_original(
    path: str | Path,
    *,
    revision: str | None = None,
    calibration: str | Path | None = None,
    tokens: int | None = None,
) -> OriginalModel:
    """Return a float model to calibrate on `tokens` tokens of the text `calibration`.

    The defaults are the built-in text and the usual number of tokens. Raises `UsageError` if the model is quantized or
    converted already, and what `open_checkpoint` and `read_calibration` raise.
    """
    if artifact.is_artifact(path):
        opened = artifact.open(path)
        schemes = [choice.scheme for choice in opened.plan.choices.values()]
        if any(scheme is not None and not scheme.is_float for scheme in schemes):
            raise UsageError(
                f"{path} is quantized already, and quantizing it again would lose accuracy twice: with --type, give "
                f"the model that it was made from ({opened.card['source']['name']})"
            )
    checkpoint = open_checkpoint(path, revision=revision)
    if not checkpoint.path.is_dir():
        raise UsageError(
            f"{path} is converted already: with --type, give the model's own folder, as it was published"
        )
    tell(checkpoint.notes)
    limit = {} if tokens is None else {"tokens": tokens}
    return OriginalModel(checkpoint, read_calibration(checkpoint, calibration, **limit))


class OriginalModel:
    """An `exporters.Original` in GGUF types. `warnings` has a message for each weight that fell back to rounding."""

    def __init__(self, checkpoint: Checkpoint, calibration: Calibration) -> None:
        self.name, self.folder = checkpoint.name, checkpoint.path
        self.config: Mapping[str, Any] = source_config(checkpoint)
        self.warnings: list[str] = []
        self._checkpoint, self._tokens = checkpoint, torch.from_numpy(calibration.tokens)
        views, kept = checkpoint.views()
        self._views = {view.name: view for view in views}
        order = {info.name: number for number, info in enumerate(checkpoint.parameters())}
        ordered = [(order[view.parameter], view.name, tuple(view.shape)) for view in views]
        ordered += [(order[each.name], each.name, each.shape) for each in kept]
        self.shapes: Mapping[str, tuple[int, ...]] = {name: shape for _, name, shape in sorted(ordered)}

    def weights(self, kinds: Mapping[str, GGMLQuantizationType]) -> Iterator[tuple[str, Storable]]:
        """Yield each weight once, matrices in their GGUF types `kinds`.

        Each transformer block is calibrated and quantized when its first weight is due. Raises `CheckpointError`, with
        the weight's name, if a weight holds NaN or inf, `SchemeError` if a scale overflows.
        """
        choices = self._choices(kinds)

        def quantize(views: Sequence[LayerView], choice: Choice, stats: LayerStats | None) -> list[Quantized]:
            """Quantize weights to their types in `kinds`."""
            return quantize_to(kinds, views, choice, stats)

        blocks = CalibratedBlocks(self._checkpoint, Plan(choices, 0), self._tokens, quantize)
        for name, choice in choices.items():
            if choice.scheme is None:
                yield name, self._kept(name, kinds.get(name, Kind.F32), blocks.folded(name))
                continue
            covered = blocks.covers(name)
            result = blocks.take(name) if covered else quantize([self._views[name]], choice, None)[0]
            blocks.replace(name, result.weight)
            if result.warning:
                self.warnings.append(result.warning)
            yield name, _storable(result.weight)

    def _choices(self, kinds: Mapping[str, GGMLQuantizationType]) -> dict[str, Choice]:
        """Return the choice for each weight.

        Every quantized weight has the scheme of the most common type, because layers that share an input need one
        scheme for the search of their fold. `quantize_to` quantizes each weight to its own type.
        """
        integer = Counter(kind for kind in kinds.values() if not is_float(kind))
        scheme = TYPES[integer.most_common(1)[0][0]].scheme if integer else None
        in_block = Choice(scheme, *resolve("good", {}, scheme))

        def choose(name: str) -> Choice:
            """Return the choice of one weight."""
            if is_float(kinds.get(name, Kind.F32)):
                return Choice(None)
            return Choice(scheme) if self._views[name].kind in ("embedding", "lm_head") else in_block

        return {name: choose(name) for name in self.shapes}

    def _kept(self, name: str, kind: GGMLQuantizationType, folded: torch.Tensor | None) -> Storable:
        """Return an unquantized parameter in a float type: its folded values, else those of the checkpoint.

        Raises `CheckpointError` for NaN, inf, and values beyond FP16 if `kind` is F16.
        """
        values = (self._checkpoint.read(name) if folded is None else folded).float().numpy()
        check_finite(values, name)
        if kind == Kind.F32:
            return values
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise CheckpointError(f"{name} holds values beyond FP16, in which rows of its length are stored")
        return halves


def quantize_to(
    kinds: Mapping[str, GGMLQuantizationType],
    views: Sequence[LayerView],
    choice: Choice,
    stats: LayerStats | None,
) -> list[Quantized]:
    """Quantize weights that share an input and a choice, each to its GGUF type. This is a `Quantizer`."""
    by_name: dict[str, Quantized] = {}
    for kind in dict.fromkeys(kinds[view.name] for view in views):
        same_kind = [view for view in views if kinds[view.name] == kind]
        if TYPES[kind].grid is None:  # the scheme describes the type
            results = quantize_views(same_kind, replace(choice, scheme=TYPES[kind].scheme), stats)
        else:
            results = _quantize_blocks(same_kind, kind, choice, stats)
        by_name |= {view.name: result for view, result in zip(same_kind, results, strict=True)}
    return [by_name[view.name] for view in views]


def _quantize_blocks(
    views: Sequence[LayerView], kind: GGMLQuantizationType, choice: Choice, stats: LayerStats | None
) -> list[Quantized]:
    """Quantize weights that share an input, stacked along the output axis, to a type in `superblocks.FORMATS`."""
    values = [view.read().numpy() for view in views]
    names = ", ".join(view.name for view in views)
    for view, value in zip(views, values, strict=True):
        check_finite(value, view.name)
    try:
        stacked, warning = _choose(np.concatenate(values), kind, choice, stats)
    except SchemeError as cause:
        raise SchemeError(f"{names} as {kind.name}: {cause}") from cause
    if warning:
        warning = f"{names} was rounded to nearest instead: {warning}"
        logger.warning("%s", warning)
    results, start = [], 0
    for view, value in zip(views, values, strict=True):
        part = stacked.rows(start, start + len(value))
        results.append(Quantized(part, measure(view.name, value, part, kind.name), "" if start else warning))
        start += len(value)
    return results


def _choose(
    weight: Floats, kind: GGMLQuantizationType, choice: Choice, stats: LayerStats | None
) -> tuple[SuperTensor, str]:
    """Quantize a weight by the choice's algorithm: GPTQ on the grid fitted to the weight, or round to nearest.

    Also return why GPTQ was replaced by round to nearest, "" if it was not.
    """
    name = parts(choice.algorithm)["quantize"]
    if name != "gptq":
        return grids.fit(weight, stats, kind), ""
    options = part_options(choice.algorithm, choice.options)[name]
    fitted: list[SuperTensor] = []

    def find(values: Floats) -> gptq.Grid:
        """Return the grid fitted to `values`, and keep the fitted weight."""
        fitted.append(grids.fit(values, stats, kind))
        centred, offset = grids.as_grid(fitted[-1])
        return gptq.Grid(centred.scheme, centred.scale, None, offset)

    try:
        quantized = gptq.quantize_on(find, weight, stats, options)
    except StatisticsError as cause:
        return grids.fit(weight, stats, kind), str(cause)
    return grids.with_codes(fitted[-1], quantized.codes), ""


def _storable(weight: Coded) -> Storable:
    """Return the weight, narrowed to the types that a GGUF file can hold."""
    assert isinstance(weight, QuantizedTensor | SuperTensor)
    return weight
