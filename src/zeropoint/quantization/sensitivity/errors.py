"""What a format does to a layer: the weight's error, and that of an input quantized to 8 bits as the layer runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from zeropoint.errors import SchemeError, UsageError
from zeropoint.planning.uniform import fit
from zeropoint.quantization.layers import quantize_view
from zeropoint.values.plan import Choice
from zeropoint.values.scheme import Activation, parse
from zeropoint.values.stats import LayerStats
from zeropoint.views import LayerView

#: A format of its own: weights as they are, each layer's input in 8 bits with one scale per token.
INPUTS_ALONE = "a8token"


@dataclass(frozen=True, slots=True)
class Perturbation:
    """`delta` bfloat16 `[out, in]`: quantized minus exact weight (None: exact); `activation`: 8-bit inputs, or None."""

    delta: torch.Tensor | None
    activation: Activation | None

    def output_error(self, weight: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """What the output `[..., out]` of inputs `given` (ids for a lookup) is off by."""
        if not given.is_floating_point():
            return torch.zeros(()) if self.delta is None else self.delta[given].float()
        error = torch.zeros(())
        if self.activation is not None:
            rounded = fake_quantize(given, self.activation)
            error = error + (rounded - given) @ weight.t()
            given = rounded
        return error if self.delta is None else error + given @ self.delta.float().t()


def check_formats(formats: Sequence[str]) -> None:
    """Raise `UsageError` for formats given twice or none, `SchemeError` for what is no format."""
    if not formats or len(set(formats)) != len(formats):
        raise UsageError("name formats that differ, int4 and int8 say")
    for text in formats:
        if text != INPUTS_ALONE and parse(text).is_float:
            raise SchemeError(
                f"{text} is not quantized, so that nothing is sensitive to it: use int4 or int8"
            )


def perturbations(
    views: Mapping[str, LayerView],
    formats: Sequence[str],
    stats: Mapping[str, LayerStats],
    step: Callable[[str, float, float], None],
) -> dict[str, dict[str, Perturbation]]:
    """`[format][view]`, with weights as round-to-nearest makes them for that format in every place."""
    found: dict[str, dict[str, Perturbation]] = {text: {} for text in formats}
    for index, (name, view) in enumerate(views.items()):
        step(f"rounding {name}", index, len(views))
        exact = view.read()
        for text in formats:
            if text == INPUTS_ALONE:
                found[text][name] = Perturbation(None, Activation(8))
                continue
            scheme, _ = fit(parse(text), view.shape[1])
            made = quantize_view(view, Choice(scheme), stats.get(name)).weight
            delta = (torch.from_numpy(made.dequantize()) - exact).bfloat16()
            coarse = scheme.activation is not None and scheme.activation.bits == 8
            found[text][name] = Perturbation(delta, scheme.activation if coarse else None)
    return found


def fake_quantize(given: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Float inputs `[..., in]` rounded as a kernel rounds them: symmetric, one scale per token or group."""
    grouped = given.reshape(*given.shape[:-1], -1, activation.group_size or given.shape[-1])
    scale = (grouped.abs().amax(-1, keepdim=True) / activation.qmax).clamp_min(1e-30)
    rounded: torch.Tensor = ((grouped / scale).round() * scale).flatten(-2)
    return rounded
