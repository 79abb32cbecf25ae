"""Rounding learned per block: change the codes that another algorithm chose where the whole block gains by it.

Idea (Cheng et al. 2023, "AutoRound", arXiv:2309.05516): a layer-wise algorithm does not know that the errors of one
layer can be made up for in the next, nor what the nonlinearity between them passes on. Here a block's quantized
weights are `(clamp(round(u + v)) - z) * s`, u the float weight on the grid, and v within half a step is learned for
all layers of the block together, by descent on the signs of the gradient of the distance between the block's output
and that of the float model. Gradients pass through the rounding as if it were not there. s is learned with it, as a
factor within `clip` of what it was, wherever its type can hold one: nested scales are left as they are.

Where u starts from the codes of `gptq`, which are not the nearest ones, it is the point nearest to the float weight
that rounds to that code. The distance is relative to the size of each token and of each channel: some of either are a
thousand times larger than the rest, and the next norm and its weights make up for that. Without the channels' part the
distance falls by half on SmolLM2-135M, and the model gets worse.

The codes at the start, in the middle and at the end are compared on all inputs given, and the best are taken; the
caller is told when those are the ones at the start.

Cost: each of `steps` runs the block forwards and backwards on `batch` batches and reads its weights some ten times.
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
"""The distance of the block's output from the float one with these weights `{name: [out, in]}`, on one batch."""

#: How near to the border to its neighbours' a starting point may lie, in steps of the grid.
MARGIN = 0.49


@dataclass(frozen=True, slots=True)
class Options:
    """`steps` of descent with `batch` batches each; `rate`: the longest way of v in one, falling to 0.
    `clip`: how far a scale may move, as a part of it."""

    steps: int = 40
    batch: int = 2
    rate: float = 0.008
    clip: float = 0.1


@dataclass(frozen=True, slots=True)
class Layer:
    """A quantized weight of the block and the float one it stands for, both `[out, in]`."""

    weight: torch.Tensor
    start: QuantizedTensor


@dataclass(frozen=True, slots=True)
class Tuned:
    """The block's weights, and the mean distance before and after; equal when nothing better was found."""

    weights: dict[str, QuantizedTensor]
    before: float
    after: float


def quantize_block(
    layers: Mapping[str, Layer], loss: Loss, batches: int, options: Options, seed: int
) -> Tuned:
    """Learn the codes of `layers` together, over batches `0 .. batches - 1` of `loss`."""
    learned = {name: _Learned(layer, options.clip) for name, layer in layers.items()}
    generator = torch.Generator().manual_seed(seed)

    def measure() -> float:
        with torch.no_grad():
            weights = {name: part.weight() for name, part in learned.items()}
            return sum(float(loss(weights, number)) for number in range(batches)) / batches

    before = least = measure()
    best = {name: layer.start for name, layer in layers.items()}
    for step in range(options.steps):
        weights = {name: part.weight().requires_grad_() for name, part in learned.items()}
        for number in torch.randint(batches, (options.batch,), generator=generator).tolist():
            loss(weights, number).backward()  # type: ignore[no-untyped-call]
        for name, part in learned.items():
            gradient = weights[name].grad
            if gradient is not None:  # an expert that no token of these batches reached
                part.descend(gradient, options.rate * (1 - step / options.steps))
        if step + 1 in (options.steps // 2, options.steps):
            found = measure()
            if found < least:
                least, best = found, {name: part.quantized() for name, part in learned.items()}
    return Tuned(best, before, least)


class _Learned:
    """One weight's offsets v and factors of its scales."""

    def __init__(self, layer: Layer, clip: float) -> None:
        start = layer.start
        self._scheme, self._shape, self._clip = start.scheme, start.shape, clip
        self._scale, self._start = torch.from_numpy(start.scale.copy()), start
        self._factor = torch.ones_like(self._scale)
        self._zero = 0.0 if start.zero_point is None else self._spread(torch.tensor(start.zero_point).float())
        codes = torch.tensor(start.codes).float()
        wanted = layer.weight / self._spread(self._scale) + self._zero
        self._from = codes + (wanted - codes).clamp_(-MARGIN, MARGIN)
        self._offset = torch.zeros_like(self._from)

    @property
    def _moves(self) -> bool:
        return self._scheme.scale_dtype != "nested" and self._clip > 0

    def _spread(self, per_group: torch.Tensor) -> torch.Tensor:
        if self._scheme.granularity != "group":
            return per_group
        return per_group.repeat_interleave(self._scheme.group_size, dim=1)[:, : self._shape[1]]

    def _codes(self) -> torch.Tensor:
        codes = (self._from + self._offset).round_()
        return codes.clamp_(self._scheme.qmin, self._scheme.qmax)

    def _scales(self) -> torch.Tensor:
        if not self._moves:
            return self._scale
        return torch.from_numpy(round_scale((self._scale * self._factor).numpy(), self._scheme.scale_dtype))

    def weight(self) -> torch.Tensor:
        """What the codes stand for now."""
        return self._codes().sub_(self._zero).mul_(self._spread(self._scales()))

    def descend(self, gradient: torch.Tensor, rate: float) -> None:
        """A step against the signs of the derivatives of the loss, given that by the weight."""
        if self._moves:
            levels = self._codes().sub_(self._zero).mul_(gradient)
            change = _sum_groups(levels, self._scheme) * self._scale
            self._factor.sub_(rate * self._clip * change.sign()).clamp_(1 - self._clip, 1 + self._clip)
        downhill = gradient.sign().mul_(self._spread(self._scale).sign())
        self._offset.sub_(downhill, alpha=rate).clamp_(-0.5, 0.5)

    def quantized(self) -> QuantizedTensor:
        codes = self._codes().numpy().astype(np.int8)
        return QuantizedTensor(self._scheme, codes, self._scales().numpy(), self._start.zero_point)


def _sum_groups(values: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """The sum over each group that shares a scale, `Scheme.scale_shape`."""
    return torch.from_numpy(grouped(values.numpy(), scheme).sum(axis=2))


def relative_sizes(exact: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean square `[width]` of each channel of outputs `[..., width]`, of which every token's is 1 on average."""
    rows = [out.reshape(-1, out.shape[-1]) for out in exact]
    total = sum(
        (row / row.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)).square().sum(0) for row in rows
    )
    sizes: torch.Tensor = torch.as_tensor(total) / sum(len(row) for row in rows)
    return sizes.clamp_min(1e-6)


def relative_distance(out: torch.Tensor, exact: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """The mean squared distance of outputs `[..., width]`, as a part of the token's size and of the channel's."""
    token = exact.square().mean(-1, keepdim=True).clamp_min(1e-12)
    return ((out - exact).square() / token / sizes).mean()
