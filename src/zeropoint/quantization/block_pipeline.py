"""Quantization of the transformer blocks, in order; `quantize_block` reads from top to bottom.

    first_inputs -> for each block: fold_block -> find_stages -> run_float_block
                    -> quantize_layers (for each stage: capture_stage -> quantizer -> overwrite)
                    -> tune_block -> run_quantized_block -> the next block's inputs

A stage is a set of layers that do not change each other's inputs (`stages.py`). The result of each step is an argument
of the next step. Four things change in place, because no tensor shall be in memory twice or longer than it is needed:

- the weights of the block in memory. They are folded first, then replaced by dequantized weights, so that the inputs of
  each layer carry the rounding errors of the layers before it;
- the lists of hidden states. `run_float_block` and `run_quantized_block` replace each batch by the block's output;
- the float model's inputs (`float_inputs`), from which `capture_stage` drops each input once it is used;
- the stored tensors (`StoredTensors` in `stages.py`). Once all layers of a submodule such as attention are quantized,
  later runs of the block compute only its last layer, from that layer's stored input. The first of these runs replaces
  the stored input by the layer's output, which is the submodule's output. The others use it, and the last drops it.

If an algorithm needs the `drift` statistic or tunes whole blocks, `run_float_block` runs each block on the float
model's hidden states while the block still has its float weights.

Memory:

- the weights of one block;
- the float32 hidden states of all tokens;
- the stored tensors of all tokens, one for each skipped submodule: the input of its last layer in bfloat16, or, once it
  is computed, the output of that layer;
- if the float model runs too: its hidden states of all tokens, and the bfloat16 input of each stage that needs `drift`,
  for all tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from zeropoint.checkpoint import Checkpoint
from zeropoint.quantization.block_runner import Block, BlockRunner, States
from zeropoint.quantization.block_tuning import Tuner, tune_block, tuner_of
from zeropoint.quantization.captures import FloatInputs, capture_stage, run_float_block
from zeropoint.quantization.folding import Folded, fold_block, folds
from zeropoint.quantization.layers import Quantized, Quantizer, needs
from zeropoint.quantization.module_weights import overwrite
from zeropoint.quantization.product_precision import reduced_precision
from zeropoint.quantization.stages import Stage, StoredTensors, find_stages, skipping
from zeropoint.values.plan import Choice, Plan
from zeropoint.values.qtensor import Coded
from zeropoint.values.stats import LayerStats
from zeropoint.views import LayerView


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """The plan of one block.

    - `views`: the block's weights that are quantized to integers;
    - `choices`: view name -> the view's choice;
    - `needs`: view name -> the names of the statistics that the view needs;
    - `folds`: whether any choice names a fold;
    - `tuner`: the algorithm that tunes all layers together, or None;
    - `dtypes`: the stored dtypes of the model's parameters.
    """

    views: Sequence[LayerView]
    choices: Mapping[str, Choice]
    needs: Mapping[str, frozenset[str]]
    folds: bool
    tuner: Tuner | None
    dtypes: Mapping[str, torch.dtype]

    @property
    def needs_float_model(self) -> bool:
        """Return whether a step of this block needs the float model's hidden states."""
        return self.tuner is not None or any("drift" in names for names in self.needs.values())


@dataclass(frozen=True, slots=True)
class QuantizedBlock:
    """The result of one block.

    - `layers`: the quantized weights, by view name;
    - `kept`: new float32 values of kept vectors (norm weights, biases) that a fold changed, by parameter name;
    - `states`: the next block's input; no hidden states after the last block.
    """

    layers: Mapping[str, Quantized]
    kept: Mapping[str, torch.Tensor]
    states: States


def block_plans(checkpoint: Checkpoint, plan: Plan) -> list[BlockPlan]:
    """Return the plan of each block. Raises `UsageError` if the layers of one block have different tuners."""
    dtypes = {info.name: info.dtype for info in checkpoint.parameters()}
    quantized = [
        view
        for view in checkpoint.views()[0]
        if (choice := plan.choices.get(view.name)) is not None
        and choice.scheme is not None
        and not choice.scheme.is_float
    ]
    plans = []
    for path in checkpoint.blocks():
        views = [view for view in quantized if view.module.startswith(f"{path}.")]
        choices = {view.name: plan.choices[view.name] for view in views}
        in_block = list(choices.values())
        statistics = {name: needs(choice) for name, choice in choices.items()}
        plans.append(BlockPlan(views, choices, statistics, folds(in_block), tuner_of(in_block), dtypes))
    return plans


def first_inputs(runner: BlockRunner, embeddings: Mapping[str, Coded], *, needs_float_model: bool) -> States:
    """Return the first block's inputs from the quantized `embeddings`, and those of the float model if needed."""
    model = runner.model
    table = model.embedding()
    with reduced_precision():
        model.fill_outside(runner.tokens)
        float_hidden = runner.start() if needs_float_model else []
        for name, weight in embeddings.items():
            if name == table:
                model.fill_embedding(name, runner.tokens, weight)
            else:
                model.set(name, torch.from_numpy(weight.dequantize()))
        states = States(0, runner.start(), float_hidden)
        model.drop(model.outside())
        return states


def quantize_blocks(
    runner: BlockRunner, plans: Sequence[BlockPlan], states: States, quantizer: Quantizer
) -> Iterator[QuantizedBlock]:
    """Quantize the blocks from number `states.done` on, and yield each result as soon as it is finished.

    `quantizer` turns views, a choice and statistics into codes. The lists in `states` are changed.
    """
    for number in range(states.done, len(plans)):
        with reduced_precision(), runner.block(number) as block:
            result = quantize_block(block, plans[number], states, quantizer, is_last=number + 1 == len(plans))
        states = result.states
        yield result
        del result  # else its weights would stay in memory while the next block is quantized


def quantize_block(
    block: Block, plan: BlockPlan, states: States, quantizer: Quantizer, *, is_last: bool
) -> QuantizedBlock:
    """Quantize the layers of `block`, which holds its float weights; return the layers and the next block's inputs."""
    hidden = states.hidden
    folded = fold_block(block, plan.views, plan.choices, plan.dtypes, hidden) if plan.folds else Folded()
    views = [folded.view(view) for view in plan.views]
    stages = find_stages(block, views, hidden[0][:1])
    float_hidden, float_inputs = run_float_block(block, _drift_views(plan, stages), states.exact)
    layers, stored = quantize_layers(block, plan, views, stages, hidden, float_inputs, quantizer)
    layers |= {name: layers[name].with_warning(why) for name, why in folded.refusals.items()}
    if plan.tuner is not None:
        layers = tune_block(plan.tuner, block, views, layers, hidden, float_hidden)
        _overwrite(block, views, layers)
        stored = []  # stale: tuning changed the layers whose outputs these tensors are computed from
    if is_last:
        return QuantizedBlock(layers, folded.kept, States(block.number + 1))
    hidden = run_quantized_block(block, hidden, stored)
    return QuantizedBlock(layers, folded.kept, States(block.number + 1, hidden, float_hidden))


def quantize_layers(
    block: Block,
    plan: BlockPlan,
    views: Sequence[LayerView],
    stages: Sequence[Stage],
    hidden: Sequence[torch.Tensor],
    float_inputs: FloatInputs,
    quantizer: Quantizer,
) -> tuple[dict[str, Quantized], list[StoredTensors]]:
    """Quantize `views` stage by stage: capture a stage's inputs, quantize its layers, put them into the block.

    Returns the quantized layers by view name, and the stored tensors with which later runs skip submodules.
    """
    layers: dict[str, Quantized] = {}
    stored: list[StoredTensors] = []
    for stage in stages:
        statistics = frozenset().union(*(plan.needs[name] for name in stage.names))
        captured = capture_stage(block, stage, statistics, hidden, float_inputs, stored)
        for group in _same_choice_groups(stage, plan.choices):
            quantized = _quantize_group(plan, group, captured.stats.get(group[0].name), quantizer)
            _overwrite(block, group, quantized)
            layers |= quantized
        stored += captured.stored
    for view in views:
        if view.name not in layers:  # the block's forward never uses it, but the artifact needs it
            layers |= _quantize_group(plan, [view], None, quantizer)
    return layers, stored


def run_quantized_block(
    block: Block, hidden: list[torch.Tensor], stored: Sequence[StoredTensors]
) -> list[torch.Tensor]:
    """Return the block's outputs, batch by batch. A submodule in `stored` does not run, except for its last layer.

    The list `hidden` becomes the outputs. A batch's tensors in `stored` are dropped after the batch.
    """
    for batch in range(len(hidden)):
        with skipping(stored, batch):
            hidden[batch] = block.run_in_bfloat16(hidden[batch])
        for tensors in stored:
            tensors.drop(batch)
    return hidden


def _drift_views(plan: BlockPlan, stages: Sequence[Stage]) -> list[LayerView]:
    """Return the first view of each stage that needs `drift`, without stages of experts, which share no input."""
    return [
        stage.views[0]
        for stage in stages
        if stage.shared and any("drift" in plan.needs[name] for name in stage.names)
    ]


def _same_choice_groups(stage: Stage, choices: Mapping[str, Choice]) -> list[list[LayerView]]:
    """Return the stage's views in groups that one quantizer call can take: one shared input and equal choices."""
    if not stage.shared:
        return [[view] for view in stage.views]
    groups: list[tuple[Choice, list[LayerView]]] = []
    for view in stage.views:
        choice = replace(choices[view.name], reason="")
        group = next((group for other, group in groups if other == choice), None)
        if group is None:
            groups.append((choice, [view]))
        else:
            group.append(view)
    return [group for _, group in groups]


def _quantize_group(
    plan: BlockPlan, views: Sequence[LayerView], stats: LayerStats | None, quantizer: Quantizer
) -> dict[str, Quantized]:
    """Quantize views of equal choice. `stats` are the statistics of the input that the views share.

    Without statistics (`stats` None), a result whose choice needs statistics carries a warning.
    """
    layers: dict[str, Quantized] = {}
    for view, layer in zip(views, quantizer(views, plan.choices[views[0].name], stats), strict=True):
        is_blind = stats is None and bool(plan.needs[view.name]) and not layer.warning
        warning = f"{view.name} was rounded with equal importance for all its inputs: no calibration token reached it"
        layers[view.name] = layer.with_warning(warning) if is_blind else layer
    return layers


def _overwrite(block: Block, views: Sequence[LayerView], layers: Mapping[str, Quantized]) -> None:
    """Overwrite the block's weights with the dequantized values of `layers`."""
    for view in views:
        overwrite(block.module, block.path, view, layers[view.name].weight)
