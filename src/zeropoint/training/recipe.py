"""The recipe for any training loop: `prepare_qat` makes a model trainable, `convert_qat` writes the artifact.

    model = zeropoint.prepare_qat("HuggingFaceTB/SmolLM2-135M", "int4")
    ...                                   # any loop that trains `model.parameters()`, such as transformers' Trainer
    zeropoint.convert_qat(model, "smollm2-int4")

The artifact has exactly the codes and scales that the model trained with: nothing is rounded again.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from zeropoint import artifact
from zeropoint.algorithms import parts
from zeropoint.artifact.layout import Layout
from zeropoint.checkpoint import Checkpoint, open_checkpoint
from zeropoint.checkpoint.architecture import empty_model
from zeropoint.errors import UsageError
from zeropoint.planning import uniform_plan
from zeropoint.planning.uniform import layout_of
from zeropoint.quantization import card_of, source_config, stream, tokenizer_files
from zeropoint.quantization.layers import LayerError, measure
from zeropoint.tensors import to_numpy, to_torch
from zeropoint.training.fake_quantize import TRAINABLE, FakeQuantizer, Trainable
from zeropoint.training.modules import place, place_experts
from zeropoint.values.plan import Plan
from zeropoint.values.qtensor import QuantizedTensor, Weight

#: Kinds of algorithms after which weights are not those of the checkpoint any more: see `_float_weights`.
_CHANGING = ("rotate", "fold")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a model in training keeps of its origin: everything that its artifact contains besides the weights.

    - `dtypes`: the dtype in which the artifact stores each weight that is not quantized;
    - `quantizers`: the trained form of each quantized weight.
    """

    checkpoint: Checkpoint
    plan: Plan
    layout: Layout
    dtypes: Mapping[str, np.dtype[Any]]
    quantizers: Mapping[str, FakeQuantizer]

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        quantizers = {name: copy.deepcopy(each, memo) for name, each in self.quantizers.items()}
        return Prepared(self.checkpoint, self.plan, self.layout, self.dtypes, quantizers)


def prepare_qat(
    model: str | Path | PreTrainedModel,
    plan: Plan | str = "int4",
    *,
    start: str | Path | None = None,
    trainable: Trainable = "full",
    rank: int = 16,
    exact: bool = False,
    seed: int = 0,
) -> PreTrainedModel:
    """Return a transformers model that trains through the quantization of its weights and inputs, in float32.

    - `model`: a checkpoint folder or hub name. Or a loaded transformers model, which is changed in place; its
      `name_or_path` says where config and tokenizer are;
    - `plan`: a format (`int4`) or a `Plan`. Weights start from the plan's algorithm, rtn for a format;
    - `start`: an artifact of the model, from whose codes and scales training starts; its plan replaces `plan`;
    - `trainable`: "full" trains all weights, "lora" low-rank updates of `rank`, "scales" only the scales and zero
      points of fixed codes. Norms and biases are trained in each case;
    - `exact`: compute each product as the engine does, bit for bit, which is slower than products of floats.

    Raises `UsageError` for unsuitable arguments, and the errors of `open_checkpoint` and `uniform_plan`.
    """
    if trainable not in TRAINABLE:
        raise UsageError(f"trainable is one of {', '.join(TRAINABLE)}, not {trainable!r}")
    if rank < 1:
        raise UsageError(f"a low-rank update has a rank of at least 1, not {rank}")
    checkpoint = _checkpoint_of(model)
    weights: Iterable[tuple[str, Weight]]
    if start is not None:
        opened = artifact.open(start)
        refuse_other_model(checkpoint, opened)
        plan, weights = opened.plan, opened.stream()
    else:
        plan = uniform_plan(checkpoint, plan) if isinstance(plan, str) else plan
        weights = stream(checkpoint, plan)
    if not plan.quantized:
        raise UsageError("the plan quantizes no weight, so there is nothing to train through")
    module = model if isinstance(model, PreTrainedModel) else empty_model(copy.deepcopy(checkpoint.config))
    module.config._experts_implementation = "eager"  # one product for each expert
    builder = _Builder(module, checkpoint, plan, trainable, rank, exact, seed)
    for name, weight in weights:
        builder.add(name, weight)
    module.zeropoint_prepared = builder.finish()
    return module.train()


def convert_qat(
    model: PreTrainedModel,
    out: str | Path,
    *,
    training: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the artifact of a model in training into the folder `out` and return its path.

    `training` is the card's section about the training (plain JSON values). Raises `UsageError` if the model does not
    come from `prepare_qat` or `out` exists, `ArtifactError` if it cannot be written.
    """
    prepared = prepared_of(model)
    checkpoint, plan = prepared.checkpoint, prepared.plan
    path = Path(out).expanduser()
    errors: list[LayerError] = []
    with ExitStack() as stack:
        artifact.write(
            path,
            _measured(weights_of(model), checkpoint, plan, errors),
            plan=plan,
            layout=prepared.layout,
            config=source_config(checkpoint),
            finish=lambda: card_of(
                checkpoint,
                plan,
                errors=errors,
                warnings=checkpoint.notes,
                digest=checkpoint.source_digest(),
                training=training or {"trained": "in a loop of the user's own"},
            ),
            files=tokenizer_files(checkpoint, stack),
            overwrite=overwrite,
        )
    return path


def weights_of(model: PreTrainedModel) -> Iterator[tuple[str, Weight]]:
    """Yield each weight of the plan as its artifact stores it, in plan order."""
    prepared = prepared_of(model)
    for name in prepared.plan.choices:
        if name in prepared.quantizers:
            yield name, prepared.quantizers[name].tensor()
            continue
        value = _value(model, name).detach().cpu()
        dtype = prepared.dtypes[name]
        yield name, to_numpy(value).astype(dtype) if value.is_floating_point() else to_numpy(value)


def prepared_of(model: nn.Module) -> Prepared:
    """Return what `prepare_qat` attached to a model. Raises `UsageError` if there is nothing."""
    prepared = getattr(model, "zeropoint_prepared", None)
    if not isinstance(prepared, Prepared):
        raise UsageError(
            "this model does not come from zeropoint.prepare_qat: prepare it before you train it"
        )
    return prepared


def refuse_other_model(checkpoint: Checkpoint, opened: artifact.Artifact) -> None:
    """Raise `UsageError` if an artifact was not made from this checkpoint."""
    if opened.card["source"]["sha256"] != checkpoint.source_digest():
        raise UsageError(
            f"{opened.path} was made from another model than {checkpoint.name}: training needs the float model that "
            "the artifact was made from"
        )


def _checkpoint_of(model: str | Path | PreTrainedModel) -> Checkpoint:
    """Return the checkpoint of a model; weights of a loaded model replace those of the files."""
    if not isinstance(model, PreTrainedModel):
        return open_checkpoint(str(model))
    if hasattr(model, "zeropoint_prepared"):
        raise UsageError("this model is prepared for training already")
    checkpoint = open_checkpoint(model.name_or_path)
    values = {name: value.detach().float().cpu() for name, value in model.state_dict().items()}
    names = [info.name for info in checkpoint.parameters() if info.name in values]
    return checkpoint.changed({name: partial(_replace, values[name]) for name in names})


def _replace(value: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """Return `value` instead of the `stored` one."""
    return value


class _Builder:
    """Puts the weights of a stream into a model, as trainable ones."""

    def __init__(
        self,
        model: PreTrainedModel,
        checkpoint: Checkpoint,
        plan: Plan,
        trainable: Trainable,
        rank: int,
        exact: bool,
        seed: int,
    ) -> None:
        self._model, self._checkpoint, self._plan = model, checkpoint, plan
        self._layout = layout_of(checkpoint)
        self._trainable, self._rank, self._exact, self._seed = trainable, rank, exact, seed
        self._views = {view.name: view for view in checkpoint.views()[0]}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._quantizers: dict[str, FakeQuantizer] = {}

    def add(self, name: str, weight: Weight) -> None:
        """Add one weight of the stream."""
        if not isinstance(weight, QuantizedTensor):
            self._dtypes[name] = weight.dtype
            self._keep(name, to_torch(weight))
            return
        known = self._trainable != "scales" and parts(self._plan.choices[name].algorithm).keys().isdisjoint(
            _CHANGING
        )
        self._quantizers[name] = FakeQuantizer(
            weight,
            self._views[name].read().numpy() if known else None,
            trainable=self._trainable,
            rank=self._rank,
            exact=self._exact,
            seed=self._seed + len(self._quantizers),
        )

    def finish(self) -> Prepared:
        """Place the quantizers into the model, and return its origin."""
        stacks: dict[str, list[FakeQuantizer]] = defaultdict(list)
        for name, quantizer in self._quantizers.items():
            view = self._views[name]
            if view.expert is None:
                place(self._model, name, quantizer, self._layout.aliases(name))
            else:
                stacks[view.parameter].append(quantizer)
        for parameter, quantizers in stacks.items():
            count = self._checkpoint.model.get_parameter(parameter).shape[0]
            if len(quantizers) != count:
                raise UsageError(
                    f"the plan quantizes {len(quantizers)} of the {count} experts of {parameter}: training needs all "
                    "of a stack in codes, or none"
                )
            place_experts(self._model, parameter, quantizers)
        return Prepared(self._checkpoint, self._plan, self._layout, self._dtypes, self._quantizers)

    def _keep(self, name: str, value: torch.Tensor) -> None:
        """Put an unquantized weight into the model. Vectors are trained; matrices only with trainable "full"."""
        path, _, leaf = name.rpartition(".")
        owner = self._model.get_submodule(path)
        if leaf in owner._buffers:
            owner._buffers[leaf] = value.to(_value(self._model, name).device)
            return
        trains = value.is_floating_point() and (value.ndim == 1 or self._trainable == "full")
        parameter = nn.Parameter(value.float(), requires_grad=trains)
        for each in [name, *self._layout.aliases(name)]:
            alias_path, _, alias_leaf = each.rpartition(".")
            self._model.get_submodule(alias_path)._parameters[alias_leaf] = parameter


def _value(model: nn.Module, name: str) -> torch.Tensor:
    """Return a parameter or buffer by name."""
    path, _, leaf = name.rpartition(".")
    value: torch.Tensor = getattr(model.get_submodule(path), leaf)
    return value


def _measured(
    weights: Iterable[tuple[str, Weight]], checkpoint: Checkpoint, plan: Plan, errors: list[LayerError]
) -> Iterator[tuple[str, Weight]]:
    """Yield the weights unchanged, and add the distance of each quantized one from the checkpoint's to `errors`."""
    views = {view.name: view for view in checkpoint.views()[0]}
    for name, weight in weights:
        changed = not parts(plan.choices[name].algorithm).keys().isdisjoint(_CHANGING)
        if isinstance(weight, QuantizedTensor) and not changed:
            errors.append(measure(name, views[name].read().numpy(), weight, str(weight.scheme)))
        yield name, weight
