"""Measurement of the sensitivity table of a checkpoint on a text: all three scores, and how well they agree."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from zeropoint.checkpoint import Checkpoint
from zeropoint.files.json_file import json_digest
from zeropoint.machine.heap import release
from zeropoint.progress import Progress, silent
from zeropoint.quantization.moments import input_moments
from zeropoint.quantization.product_precision import reduced_precision
from zeropoint.quantization.sensitivity.errors import Perturbation, check_formats, perturbations
from zeropoint.quantization.sensitivity.model import FloatModel
from zeropoint.quantization.sensitivity.scores import Scores
from zeropoint.quantization.sensitivity.swaps import Swaps, sample
from zeropoint.values.sensitivity import SENSITIVITY_VERSION, Cost, Estimate, Group, Sensitivity, spearman

#: Tokens per window: shorter windows are more in number, for better standard errors.
WINDOW = 128
#: Number of windows on which the model with one quantized group is measured.
SWAP_WINDOWS = 2


def sensitivity_key(
    checkpoint: Checkpoint, tokens: NDArray[np.int64], formats: Sequence[str], *, swaps: int, seed: int
) -> str:
    """Return a digest of everything that the table depends on, so that equal keys mean equal tables."""
    parts = {
        "version": SENSITIVITY_VERSION,
        "model": checkpoint.source_digest(),
        "tokens": hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest(),
        "formats": list(formats),
        "swaps": swaps,
        "seed": seed,
        "packages": {name: version(name) for name in ("zeropoint", "torch", "transformers", "numpy")},
    }
    return json_digest(parts)


def measure(
    checkpoint: Checkpoint,
    tokens: NDArray[np.int64],
    formats: Sequence[str],
    *,
    swaps: int = 24,
    seed: int = 0,
    progress: Progress = silent,
) -> Sensitivity:
    """Return the sensitivity of each group of layers to each of `formats`.

    `tokens` int64 `[windows, length]` are cut into windows of `WINDOW` tokens. For each format, `swaps` groups are
    measured with only that group quantized; the others get the two cheaper scores. Memory: the model in float32, and 16
    bits per weight for each format. Raises the errors of `check_formats`, and `CheckpointError` for a weight that holds
    NaN or inf.
    """
    check_formats(formats)
    windows = _windows(torch.from_numpy(tokens))
    stats = input_moments(checkpoint, {view.name for view in checkpoint.views()[0]}, seed=seed)
    model = FloatModel(checkpoint)
    changed = perturbations(model.views, formats, stats, progress)
    groups = model.groups(windows)
    scores = Scores(model, groups, changed)
    with reduced_precision():
        scores.run(windows, seed, progress)
    costs = _measured(model, groups, scores.costs(), changed, windows[:SWAP_WINDOWS], swaps, progress)
    release()
    reached = {cost.group for cost in costs}
    return Sensitivity(
        model=checkpoint.path.name,
        key=sensitivity_key(checkpoint, tokens, formats, swaps=swaps, seed=seed),
        formats=tuple(formats),
        tokens=windows.numel(),
        groups=tuple(groups),
        costs=tuple(costs),
        inputs=tuple(scores.inputs()),
        agreement=agreement(costs, formats),
        unreached=tuple(group.name for group in groups if group.name not in reached),
    )


def agreement(costs: Sequence[Cost], formats: Sequence[str]) -> dict[str, float]:
    """Return Spearman's correlation of each pair of scores, per format, over the groups that have both scores.

    The keys are `"SCORE ~ SCORE, FORMAT"`; pairs with fewer than three common groups are left out.
    """
    correlations: dict[str, float] = {}
    for format_name in formats:
        rows = [cost for cost in costs if cost.format == format_name]
        scores: dict[str, dict[str, float]] = {
            "fisher": {cost.group: cost.fisher.value for cost in rows},
            "output error": {cost.group: cost.output_error for cost in rows},
            "measured": {cost.group: cost.measured.value for cost in rows if cost.measured is not None},
        }
        for first, second in combinations(scores, 2):
            both = sorted(scores[first].keys() & scores[second].keys())
            if len(both) > 2:
                values = [[scores[name][group] for group in both] for name in (first, second)]
                correlations[f"{first} ~ {second}, {format_name}"] = spearman(*values)
    return correlations


def _measured(
    model: FloatModel,
    groups: Sequence[Group],
    costs: list[Cost],
    changed: dict[str, dict[str, Perturbation]],
    windows: torch.Tensor,
    count: int,
    progress: Progress,
) -> list[Cost]:
    """Return the costs, with the measured divergence filled in for `count` groups per format."""
    if not count:
        return costs
    by_name = {group.name: group for group in groups}
    meter = Swaps(model, windows)
    divergences: dict[tuple[str, str], Estimate | None] = {}
    for number, format_name in enumerate(changed):
        ranked = sorted(
            (c for c in costs if c.format == format_name), key=lambda c: (-c.fisher.value, c.group)
        )
        chosen = sample(ranked, count)
        for index, name in enumerate(chosen):
            progress(
                f"swapping {name} to {format_name}", number * len(chosen) + index, len(changed) * len(chosen)
            )
            divergences[name, format_name] = meter.divergence(by_name[name], changed[format_name])
    return [replace(cost, measured=divergences.get((cost.group, cost.format))) for cost in costs]


def _windows(tokens: torch.Tensor) -> torch.Tensor:
    """Cut tokens into windows `[windows, WINDOW]`, or shorter ones if the text's windows are shorter."""
    length = min(WINDOW, tokens.shape[1])
    return tokens[:, : tokens.shape[1] // length * length].reshape(-1, length)
