"""Rotation of a checkpoint before quantization: other weights, the same function, without a table of architectures.

Let `width` be the hidden size. The matrices of a block are found by running the block. A reader is a matrix with
`width` inputs in a module that takes the output of a norm; it is rotated on its input side. A writer is any other
matrix with `width` outputs; it is rotated on its output side. The value projection and the output projection of
attention are found by trying pairs of layers. Each block is run before and after on random tokens; if the outputs
differ, the model is refused by its type. This happens for norms that subtract the mean (LayerNorm) and for norms that
stand behind a layer instead of before it.

Matrices are rotated in float32 and quantized from there. Biases, and matrices that the plan keeps, are rounded to
their stored type after the rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call

from zeropoint.algorithms import load, part_options, parts
from zeropoint.checkpoint import Checkpoint
from zeropoint.errors import UnsupportedError, UsageError
from zeropoint.quantization.block_runner import Block, BlockRunner
from zeropoint.quantization.filled_model import FilledModel
from zeropoint.quantization.hooks import norm_outputs
from zeropoint.quantization.product_precision import TOLERANCE, full_precision
from zeropoint.values.plan import Plan
from zeropoint.views import LayerView

#: Number of random tokens on which blocks are run before and after the rotation.
TOKENS = 24

Change = Callable[[torch.Tensor], torch.Tensor]
"""Maps the float32 value of a parameter, in the model's own layout, to its new value."""


def rotated(checkpoint: Checkpoint, plan: Plan) -> Checkpoint:
    """Return the checkpoint rotated as the plan says, or `checkpoint` itself if the plan names no rotation.

    Raises `UsageError` if the plan's choices name different rotations or a rotation's options turn all of it off, and
    `UnsupportedError` if the model cannot be rotated.
    """
    rotations: list[tuple[str, Any]] = []
    for choice in plan.choices.values():
        name = parts(choice.algorithm).get("rotate") if choice.scheme is not None else None
        if name is not None:
            rotation = name, part_options(choice.algorithm, choice.options)[name]
            if rotation not in rotations:
                rotations.append(rotation)
    if len(rotations) > 1:
        raise UsageError("the whole model is rotated at once: give all weights the same rotation in the plan")
    if not rotations:
        return checkpoint
    name, options = rotations[0]
    if not (options.residual or options.heads):
        raise UsageError(f"the options of {name} leave nothing to rotate: set residual or heads to true")
    with full_precision():
        changes = _Rotation(checkpoint, load(name).rotate, plan.seed).find(options.residual, options.heads)
    return checkpoint.changed(changes)


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A weight matrix of a block, `[out, in]` (`[in, out]` if `transposed`), or a stack of such matrices.

    - `norm`: the path of the norm whose output the matrix's module, or a module around it, takes; None if none;
    - `is_direct`: whether the matrix's own module takes that output, not only a module around it.
    """

    name: str
    out: int
    columns: int
    transposed: bool
    norm: str | None
    is_direct: bool

    def on_the_way_in(self, matrix: torch.Tensor) -> Change:
        """Return the change to `W Q`, for an input `x Q` in place of `x`."""
        return lambda value: matrix.T @ value if self.transposed else value @ matrix

    def on_the_way_out(self, matrix: torch.Tensor) -> Change:
        """Return the change to `Q' W`, which gives the output `y Q` in place of `y`."""
        return lambda value: value @ matrix if self.transposed else matrix.T @ value

    def times(self, gain: torch.Tensor) -> Change:
        """Return the change to `W diag(gain)`, for an input `x` in place of `gain * x`."""
        return lambda value: value * (gain[:, None] if self.transposed else gain)


class _Rotation:
    """The search for the changes of a model's parameters; `matrix(width, seed)` returns the rotations."""

    def __init__(self, checkpoint: Checkpoint, matrix: Callable[[int, int], Any], seed: int) -> None:
        config = checkpoint.config.get_text_config()
        self._checkpoint = checkpoint
        self._model = FilledModel(checkpoint)
        self._views = {view.parameter: view for view in checkpoint.views()[0]}
        self._width: int = config.hidden_size
        self._head: int = getattr(config, "head_dim", None) or self._width // config.num_attention_heads
        self._turn = torch.from_numpy(matrix(self._width, seed))
        self._turn_head = torch.from_numpy(matrix(self._head, seed + 1))
        ids = torch.randint(0, config.vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(seed))
        self._runner = BlockRunner(self._model, ids)
        self._offset = 0.0

    def find(self, residual: bool, heads: bool) -> dict[str, Change]:
        """Return parameter name -> change, for the hidden states (`residual`) and attention's values (`heads`).

        Raises `UnsupportedError` if the model's function would change.
        """
        tied = [info.name for info in self._checkpoint.parameters() if info.tied_to is not None]
        if residual and tied:
            raise self._refusal(
                f"its embedding is tied to {tied[0]}, and only the latter can take the last norm's gain",
                "rotate attention's values alone with the option residual=false of rotation",
            )
        outside = self._model.outside()
        self._model.fill(outside)
        hidden = self._runner.start()[0]
        changes: dict[str, Change] = {}
        for number in range(len(self._model.blocks)):
            with self._runner.block(number) as filled:
                block = _Block(filled, hidden)
                if residual:
                    changes |= self._turn_residual(block)
                if heads:
                    changes |= self._turn_heads(block)
                hidden = block.out
        if residual:
            changes |= self._turn_ends(outside, hidden)
        self._model.drop(outside)
        return changes

    def _turn_residual(self, block: _Block) -> dict[str, Change]:
        """Return the changes of one block that rotate the hidden states before and after the block.

        Tries norms that multiply by their weight and norms that multiply by their weight plus 1.
        """
        matrices = block.matrices(self._views)
        readers = [
            m
            for m in matrices
            if m.norm and m.columns == self._width and (m.is_direct or m.out != self._width)
        ]
        writers = [m for m in matrices if m not in readers and m.out == self._width]
        for offset in (self._offset, 1.0 - self._offset):
            changes: dict[str, Change] = {}
            for reader in readers:
                gain = block.value(f"{block.path}.{reader.norm}.weight") + offset
                changes[reader.name] = _both(reader.times(gain), reader.on_the_way_in(self._turn))
                changes[f"{block.path}.{reader.norm}.weight"] = _constant(1.0 - offset)
            for writer in writers:
                changes[writer.name] = writer.on_the_way_out(self._turn)
                if (bias := writer.name.removesuffix("weight") + "bias") in block.names:
                    changes[bias] = _times(self._turn)
            if block.is_same(changes, self._turn):
                self._offset = offset
                block.changes, block.turn = changes, self._turn
                return changes
        if block.has_layer_norm():
            raise self._refusal(
                f"the norms of {block.path} subtract the mean, and a rotation does not preserve the mean"
            )
        raise self._refusal(f"rotated hidden states would change what {block.path} computes")

    def _turn_heads(self, block: _Block) -> dict[str, Change]:
        """Return the changes of one block that rotate the values of each attention head.

        Tries pairs of a layer that may produce the values (`producer`) and a layer that may take them (`consumer`).
        """
        matrices = [
            m for m in block.matrices(self._views) if m.out * m.columns == block.value(m.name).numel()
        ]
        for consumer in (m for m in matrices if not m.is_direct and m.columns % self._head == 0):
            for producer in reversed([m for m in matrices if m.is_direct and m.out % self._head == 0]):
                if consumer.columns % producer.out:
                    continue
                producer_turn, consumer_turn = (self._all_heads(n) for n in (producer.out, consumer.columns))
                changes = {
                    producer.name: _both(
                        block.changes.get(producer.name), producer.on_the_way_out(producer_turn)
                    ),
                    consumer.name: _both(
                        block.changes.get(consumer.name), consumer.on_the_way_in(consumer_turn)
                    ),
                }
                if (bias := producer.name.removesuffix("weight") + "bias") in block.names:
                    changes[bias] = _times(producer_turn)
                if block.is_same(block.changes | changes, block.turn):
                    return changes
        raise self._refusal(
            f"no layer of {block.path} makes the values of attention alone",
            "leave the values as they are with the option heads=false of rotation",
        )

    def _all_heads(self, width: int) -> torch.Tensor:
        """Return the block-diagonal matrix `[width, width]` that rotates each head."""
        return torch.kron(torch.eye(width // self._head), self._turn_head)

    def _turn_ends(self, outside: list[str], hidden: torch.Tensor) -> dict[str, Change]:
        """Return the changes of the embedding, which writes hidden states, and of the last norm and the output head.

        `outside` are the parameters outside the blocks, `hidden` is the last block's output.
        """
        kinds = {view.kind: view.name for view in self._views.values()}
        embedding, head = kinds.get("embedding"), kinds.get("lm_head")
        norms = [name for name in outside if name != embedding]
        if embedding is None or head is None or len(norms) != 1:
            raise self._refusal(f"{', '.join(norms)} are more than one norm between the blocks and the head")
        self._model.fill([head])
        norm = self._model.module.get_submodule(norms[0].removesuffix(".weight"))
        gain = norm.get_parameter("weight") + self._offset
        reader = _Matrix(head, 0, self._width, False, norms[0], is_direct=True)
        changes = {
            embedding: _Matrix(embedding, 0, self._width, False, None, is_direct=False).on_the_way_in(
                self._turn
            ),
            head: _both(reader.times(gain), reader.on_the_way_in(self._turn)),
            norms[0]: _constant(1.0 - self._offset),
        }
        weight = self._model.module.get_parameter(head).detach()
        before = norm(hidden) @ weight.T
        plain = {"weight": changes[norms[0]](norm.get_parameter("weight").detach())}
        after = functional_call(norm, plain, (hidden @ self._turn,)) @ changes[head](weight).T
        self._model.drop([head])
        if (after - before).norm() > TOLERANCE * before.norm():
            raise self._refusal(f"{norms[0]} does not commute with a rotation")
        return changes

    def _refusal(self, why: str, advice: str = "") -> UnsupportedError:
        """Return the error for a model that cannot be rotated."""
        end = f"; {advice}" if advice else ""
        return UnsupportedError(f"rotation does not fit {self._checkpoint.model_type}: {why}{end}")


class _Block:
    """One block with its float weights, run on hidden states `[1, tokens, width]`.

    `out` is the block's output, `changes` and `turn` are the changes and the rotation of the hidden states so far.
    """

    def __init__(self, block: Block, hidden: torch.Tensor) -> None:
        self.path, self._module, self._hidden = block.path, block.module, hidden
        self._run = block.run_with
        self.names = {f"{block.path}.{inner}" for inner, _ in block.module.named_parameters()}
        self.changes: dict[str, Change] = {}
        self.turn = torch.eye(hidden.shape[-1])
        self._norm_of: dict[str, str] = {}
        self._norms: dict[str, torch.nn.Module] = {}
        with torch.no_grad(), norm_outputs(block.module) as emitted, self._recording(emitted):
            self.out = self._run({}, hidden)

    def value(self, name: str) -> torch.Tensor:
        """Return the value of the parameter `name`."""
        return self._module.get_parameter(name.removeprefix(f"{self.path}.")).detach()

    def matrices(self, views: Mapping[str, LayerView]) -> list[_Matrix]:
        """Return the block's matrices in the order of the model's views; other matrices come first."""
        matrices = []
        for name in self.names:
            value = self.value(name)
            if value.ndim < 2:
                continue
            transposed = name in views and views[name].transposed
            columns, out = value.shape[-2:] if transposed else (value.shape[-1], value.shape[-2])
            owner = name.removeprefix(f"{self.path}.").rpartition(".")[0]
            consumers = [inner for inner in self._norm_of if owner == inner or owner.startswith(f"{inner}.")]
            norm = self._norm_of[max(consumers, key=len)] if consumers else None
            matrices.append(_Matrix(name, out, columns, transposed, norm, owner in self._norm_of))
        return sorted(
            matrices, key=lambda matrix: list(views).index(matrix.name) if matrix.name in views else -1
        )

    def is_same(self, changes: Mapping[str, Change], turn: torch.Tensor) -> bool:
        """Return whether the changed block maps `x turn` to `y turn`, if the block maps x to y."""
        with torch.no_grad():
            parameters = {
                name.removeprefix(f"{self.path}."): change(self.value(name))
                for name, change in changes.items()
            }
            difference = self._run(parameters, self._hidden @ turn) - self.out @ turn
        return bool(difference.norm() <= TOLERANCE * (self.out - self._hidden).norm())

    def has_layer_norm(self) -> bool:
        """Return whether a norm's output stays the same if 1 is added to its whole input."""
        with torch.no_grad():
            return any(
                torch.allclose(norm(self._hidden), norm(self._hidden + 1), atol=1e-3)
                for norm in self._norms.values()
            )

    @contextmanager
    def _recording(self, emitted: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Record in `_norm_of`, inside the context, which norm's output (reshaped or not) each module takes."""
        width = self._hidden.shape[-1]

        def hook_for(inner: str) -> Callable[..., None]:
            """Return a hook for the module at path `inner`."""

            def record(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                """Record the norm whose output is among the module's arguments."""
                for value in (*args, *kwargs.values()):
                    for norm, out in emitted.items():
                        if isinstance(value, torch.Tensor) and out.shape[-1] == width and _shares(value, out):
                            self._norm_of[inner] = norm
                            self._norms[norm] = self._module.get_submodule(norm)

            return record

        handles = [
            module.register_forward_pre_hook(hook_for(inner), with_kwargs=True)
            for inner, module in self._module.named_modules()
            if inner
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _shares(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors are the same memory, in any shape."""
    return first.data_ptr() == second.data_ptr() and first.numel() == second.numel()


def _both(first: Change | None, second: Change) -> Change:
    """Return the change that applies `first`, if any, and then `second`."""
    return second if first is None else lambda value: second(first(value))


def _times(matrix: torch.Tensor) -> Change:
    """Return the change that multiplies a value by `matrix` from the right."""
    return lambda value: value @ matrix


def _constant(number: float) -> Change:
    """Return the change that sets all elements to `number`."""
    return lambda value: torch.full_like(value, number)
