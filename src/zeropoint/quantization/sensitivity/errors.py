"""The errors that a format causes in a layer: of its weight, and of its input if the input is quantized to 8 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from zeropoint.errors import SchemeError, UsageError
from zeropoint.planning.uniform import fit_groups
from zeropoint.progress import Progress
from zeropoint.quantization.layers import quantize_view
from zeropoint.values.plan import Choice
from zeropoint.values.scheme import Activation, parse
from zeropoint.values.stats import LayerStats
from zeropoint.views import LayerView

#: A pseudo-format: exact weights, and each layer's input quantized to 8 bits with one scale per token.
INPUTS_ALONE = "a8token"


@dataclass(frozen=True, slots=True)
class Perturbation:
    """The effect of one format on one weight.

    - `delta`: bfloat16 `[out, in]`, quantized minus exact weight; None if the weight stays exact;
    - `activation`: the format of 8-bit inputs; None if the inputs stay exact.
    """

    delta: torch.Tensor | None
    activation: Activation | None

    def output_error(self, weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Return the error of the output `[..., out]` for `inputs` `[..., in]` (token ids for an embedding)."""
        if not inputs.is_floating_point():
            return torch.zeros(()) if self.delta is None else self.delta[inputs].float()
        error = torch.zeros(())
        if self.activation is not None:
            rounded = fake_quantize(inputs, self.activation)
            error = error + (rounded - inputs) @ weight.t()
            inputs = rounded
        return error if self.delta is None else error + inputs @ self.delta.float().t()


def check_formats(formats: Sequence[str]) -> None:
    """Raise `UsageError` if `formats` is empty or has duplicates, `SchemeError` for a float or unknown format."""
    if not formats or len(set(formats)) != len(formats):
        raise UsageError("name at least one format, and each format once, such as int4 and int8")
    for format_name in formats:
        if format_name != INPUTS_ALONE and parse(format_name).is_float:
            raise SchemeError(
                f"{format_name} is a float format, but sensitivity is measured for integer formats: use int4 or int8"
            )


def perturbations(
    views: Mapping[str, LayerView],
    formats: Sequence[str],
    stats: Mapping[str, LayerStats],
    step: Progress,
) -> dict[str, dict[str, Perturbation]]:
    """Return format -> view name -> perturbation; weights are rounded to nearest, the embedding and head too.

    `stats` weights the errors of the grid search; `step` reports progress.
    """
    by_format: dict[str, dict[str, Perturbation]] = {format_name: {} for format_name in formats}
    for index, (name, view) in enumerate(views.items()):
        step(f"rounding {name}", index, len(views))
        exact = view.read()
        for format_name in formats:
            if format_name == INPUTS_ALONE:
                by_format[format_name][name] = Perturbation(None, Activation(8))
                continue
            scheme, _ = fit_groups(parse(format_name), view.shape[1])
            quantized = quantize_view(view, Choice(scheme), stats.get(name)).weight
            delta = (torch.from_numpy(quantized.dequantize()) - exact).bfloat16()
            coarse = scheme.activation is not None and scheme.activation.bits == 8
            by_format[format_name][name] = Perturbation(delta, scheme.activation if coarse else None)
    return by_format


def fake_quantize(inputs: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Round `inputs` `[..., in]` to the levels of `activation`: symmetric, one scale per token or group of channels."""
    grouped = inputs.reshape(*inputs.shape[:-1], -1, activation.group_size or inputs.shape[-1])
    scale = (grouped.abs().amax(-1, keepdim=True) / activation.qmax).clamp_min(1e-30)
    rounded: torch.Tensor = ((grouped / scale).round() * scale).flatten(-2)
    return rounded
