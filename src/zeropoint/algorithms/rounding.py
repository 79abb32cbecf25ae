"""Learned rounding (alias `autoround`): train the codes of a block's layers together, on the error of its output.

Idea (Cheng et al. 2023, "AutoRound", arXiv:2309.05516): a layer-wise algorithm does not know that the next layer can
compensate an error, or that a non-linearity removes it. Here the weights of a transformer block are
`(clamp(round(u + v)) - z) * s`, where `u = w / s + z` for the float weight w. The offsets v, at most 0.5, are learned
for all layers of the block together, by sign gradient descent on the distance between the block's output and the float
model's. Gradients pass through the rounding unchanged (straight-through). The scale s is learned too, as a factor
between 1 - `clip` and 1 + `clip`; two-level scales stay as they are.

u is fixed. Where the first code is not the nearest one (`gptq`), u is the point nearest to `w / s + z` that rounds to
the first code. The distance is relative to the size of each token and each channel, because some are a thousand times
larger than the rest, and the next norm evens that out. With a distance that ignores the size of channels, training
halves the distance on SmolLM2-135M, but the model gets worse.

The distance on all inputs is measured three times: for the first codes, after half of the steps, and after all steps.
The best codes are returned; `Tuned.before == Tuned.after` says that the first codes were the best.

Cost: each of `steps` steps runs the block forward and backward on `batch` batches and reads its weights about ten
times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from zeropoint.reference.rounding import grouped, round_scale
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import Scheme

NEEDS: frozenset[str] = frozenset()

Loss = Callable[[Mapping[str, torch.Tensor], int], torch.Tensor]
"""Returns the distance between the block's output with weights `{name: [out, in]}` and the float output, on a batch.

The second argument is the number of the batch.
"""

#: The largest distance between a code and its starting point u, in steps of the grid: below 0.5, u rounds to the code.
MARGIN = 0.49


@dataclass(frozen=True, slots=True)
class Options:
    """Options of learned rounding.

    - `steps`: steps of descent;
    - `batch`: batches per step;
    - `rate`: how far v moves in the first step of descent, in steps of the grid; falls linearly to 0;
    - `clip`: the largest relative change of a scale; 0 leaves scales as they are.
    """

    steps: int = 40
    batch: int = 2
    rate: float = 0.008
    clip: float = 0.1


@dataclass(frozen=True, slots=True)
class Layer:
    """A float weight of the block and its quantized form to start from, both `[out, in]`."""

    weight: torch.Tensor
    start: QuantizedTensor


@dataclass(frozen=True, slots=True)
class Tuned:
    """The block's quantized weights by name, and the mean distance before and after.

    If nothing better was found, `before` equals `after` and `weights` are the ones from the start.
    """

    weights: dict[str, QuantizedTensor]
    before: float
    after: float


def quantize_block(
    layers: Mapping[str, Layer], loss: Loss, batches: int, options: Options, seed: int
) -> Tuned:
    """Learn the codes of `layers` together, over batches `0 .. batches - 1` of `loss`; `seed` draws the batches."""
    learned = {name: _Learned(layer, options.clip) for name, layer in layers.items()}
    generator = torch.Generator().manual_seed(seed)

    def measure() -> float:
        """Return the mean distance of the current codes over all batches."""
        with torch.no_grad():
            weights = {name: part.weight() for name, part in learned.items()}
            return sum(float(loss(weights, number)) for number in range(batches)) / batches

    before = least_distance = measure()
    best = {name: layer.start for name, layer in layers.items()}
    for step in range(options.steps):
        weights = {name: part.weight().requires_grad_() for name, part in learned.items()}
        for number in torch.randint(batches, (options.batch,), generator=generator).tolist():
            loss(weights, number).backward()  # type: ignore[no-untyped-call]
        for name, part in learned.items():
            gradient = weights[name].grad
            if gradient is not None:  # None: an expert that received no token of these batches
                part.descend(gradient, options.rate * (1 - step / options.steps))
        if step + 1 in (options.steps // 2, options.steps):
            distance = measure()
            if distance < least_distance:
                least_distance, best = distance, {name: part.quantized() for name, part in learned.items()}
    return Tuned(best, before, least_distance)


class _Learned:
    """The learned values of one weight: offsets v, and a factor for each scale."""

    def __init__(self, layer: Layer, clip: float) -> None:
        start = layer.start
        self._scheme, self._shape, self._clip = start.scheme, start.shape, clip
        self._scale, self._start = torch.from_numpy(start.scale.copy()), start
        self._factor = torch.ones_like(self._scale)
        self._zero = 0.0 if start.zero_point is None else self._spread(torch.tensor(start.zero_point).float())
        codes = torch.tensor(start.codes).float()
        target = layer.weight / self._spread(self._scale) + self._zero
        self._from = codes + (target - codes).clamp_(-MARGIN, MARGIN)
        self._offset = torch.zeros_like(self._from)

    @property
    def _learns_scales(self) -> bool:
        """Return whether the scales are learned too."""
        return self._scheme.scale_dtype != "nested" and self._clip > 0

    def _spread(self, per_group: torch.Tensor) -> torch.Tensor:
        """Expand values of `Scheme.scale_shape` to a shape that broadcasts with `[out, in]`."""
        if self._scheme.granularity != "group":
            return per_group
        return per_group.repeat_interleave(self._scheme.group_size, dim=1)[:, : self._shape[1]]

    def _codes(self) -> torch.Tensor:
        """Return the current codes as float32 `[out, in]`."""
        codes = (self._from + self._offset).round_()
        return codes.clamp_(self._scheme.qmin, self._scheme.qmax)

    def _scales(self) -> torch.Tensor:
        """Return the current scales, rounded to their stored type."""
        if not self._learns_scales:
            return self._scale
        return torch.from_numpy(round_scale((self._scale * self._factor).numpy(), self._scheme.scale_dtype))

    def weight(self) -> torch.Tensor:
        """Return the dequantized weight `[out, in]`."""
        return self._codes().sub_(self._zero).mul_(self._spread(self._scales()))

    def descend(self, gradient: torch.Tensor, rate: float) -> None:
        """Take one step of sign gradient descent; `gradient` `[out, in]` is the loss's derivative by the weight."""
        if self._learns_scales:
            levels = self._codes().sub_(self._zero).mul_(gradient)
            change = _sum_groups(levels, self._scheme) * self._scale
            self._factor.sub_(rate * self._clip * change.sign()).clamp_(1 - self._clip, 1 + self._clip)
        downhill = gradient.sign().mul_(self._spread(self._scale).sign())
        self._offset.sub_(downhill, alpha=rate).clamp_(-0.5, 0.5)

    def quantized(self) -> QuantizedTensor:
        """Return the current codes and scales as a quantized weight."""
        codes = self._codes().numpy().astype(np.int8)
        return QuantizedTensor(self._scheme, codes, self._scales().numpy(), self._start.zero_point)


def _sum_groups(values: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return the sum of `values` `[out, in]` over each group that shares a scale, in `Scheme.scale_shape`."""
    return torch.from_numpy(grouped(values.numpy(), scheme).sum(axis=2))


def relative_sizes(exact: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean square `[width]` of each channel of outputs `[..., width]`, with each token scaled to size 1."""
    rows = [out.reshape(-1, out.shape[-1]) for out in exact]
    total = sum(
        (row / row.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)).square().sum(0) for row in rows
    )
    sizes: torch.Tensor = torch.as_tensor(total) / sum(len(row) for row in rows)
    return sizes.clamp_min(1e-6)


def relative_distance(out: torch.Tensor, exact: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return the mean of `(out - exact)^2` over outputs `[..., width]`, relative to the token's and channel's size.

    `sizes` `[width]` are the channels' sizes from `relative_sizes`.
    """
    token = exact.square().mean(-1, keepdim=True).clamp_min(1e-12)
    return ((out - exact).square() / token / sizes).mean()
