"""`Checkpoint`: a source model with transformers' parameter names and shapes, read one tensor at a time."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from zeropoint.checkpoint.architecture import build_meta_model, config_from, load_config
from zeropoint.checkpoint.resolve import Recipe, resolve, tied_names
from zeropoint.dtypes import BY_STORED
from zeropoint.errors import CheckpointError, reason
from zeropoint.sources import Source, Wanted, open_source
from zeropoint.tensors import to_torch, torch_dtype
from zeropoint.views import Kept, LayerView, layer_views


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """One parameter or persistent buffer of the transformers model.

    - `dtype`: the type in the checkpoint;
    - `tied_to`: the parameter that shares its tensor with this one. The tensor is stored once, under that name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    tied_to: str | None = None
    is_buffer: bool = False

    @property
    def numel(self) -> int:
        """Return the number of values."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the size in bytes in the checkpoint's dtype."""
        return self.numel * self.dtype.itemsize


class Checkpoint:
    """A source model.

    - `source`: the files, without an architecture;
    - `path`, `name`: the local folder or GGUF file, and the user's name for the model;
    - `config`, `model`: transformers' config, and the transformers model on the meta device (shapes, no data);
    - `notes`: messages for the user: tensors that the model has no place for, an adapter that is left out;
    - `untied`: the config ties the output head to the embedding, but the files hold two different tensors.

    Raises `CheckpointError` if the source's tensors do not match the model.
    """

    def __init__(self, source: Source, config: Any, model: torch.nn.Module, *, untied: bool = False) -> None:
        self.source = source
        self.path = source.path
        self.name = source.name
        self.config = config
        self.model = model
        self.untied = untied
        self.model_type: str = config.model_type
        self._recipes, unused = resolve(model, source.tensors)
        self._tied = tied_names(model)
        self.notes = source.check(self._wanted(), _worth_naming(model, unused))
        self._check_assembled()
        self._infos = self._inspect()
        self._views: tuple[list[LayerView], list[Kept]] | None = None
        self._shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        self._last: tuple[Recipe, dict[str, torch.Tensor]] | None = None
        self._changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {}
        self._changed: tuple[str, torch.Tensor] | None = None

    def changed(self, changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]) -> Checkpoint:
        """Return a copy of this checkpoint that applies `changes` when it reads.

        `changes` maps parameter names to functions from the float32 tensor to the new float32 tensor. Changed matrices
        are read as float32, changed vectors in their own dtype.
        """
        other = copy.copy(self)
        other._changes, other._views, other._last, other._changed = changes, None, None, None
        return other

    def parameters(self) -> list[ParameterInfo]:
        """Return every parameter and persistent buffer in the model's order, tied ones included."""
        return list(self._infos)

    def numel(self) -> int:
        """Return the number of values in all parameters, tied ones counted once."""
        return sum(info.numel for info in self._infos if info.tied_to is None)

    def read(self, name: str) -> torch.Tensor:
        """Return one parameter in the checkpoint's dtype. A tied name returns the tensor it is tied to.

        Raises `CheckpointError` for an unknown name, a truncated file or a wrong shape.
        """
        name = self._tied.get(name, name)
        recipe = self._recipe(name)
        if recipe is None:
            raise CheckpointError(f"{self.name} has no parameter {name}")
        if recipe.converter is None:
            value = self.read_stored(recipe.sources[0][0])
        else:
            # Cache the last conversion: the experts of a stack are read one after another
            if self._last is None or self._last[0] is not recipe:
                self._last = None
                self._last = (recipe, self._convert(recipe, name, self.read_stored))
            value = self._last[1][name]
        expected = self._shapes[name]
        if tuple(value.shape) != expected:
            raise CheckpointError(_shape_message(name, tuple(value.shape), expected))
        return self._after_change(name, value)

    def _after_change(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Apply the parameter's change, if there is one."""
        if name not in self._changes:
            return value
        # Cache the last change: the experts of a stack are read one after another
        if self._changed is None or self._changed[0] != name:
            self._changed = name, self._changes[name](value.float())
        result = self._changed[1]
        return result if result.ndim > 1 else result.to(value.dtype)

    def stored_name(self, name: str) -> str | None:
        """Return the name of the checkpoint tensor that holds a parameter unchanged; None if a converter builds it."""
        recipe = self._recipe(name)
        return None if recipe is None or recipe.converter is not None else recipe.sources[0][0]

    def views(self) -> tuple[list[LayerView], list[Kept]]:
        """Return the views of all quantizable weights, and all other parameters, in model order, without tied names."""
        if self._views is None:
            views, kept = layer_views(self.model, self.read)
            present = {info.name for info in self._infos if info.tied_to is None}
            self._views = [v for v in views if v.parameter in present], [k for k in kept if k.name in present]
        return list(self._views[0]), list(self._views[1])

    def source_digest(self) -> str:
        """Return the sha256 of the weight files (name and bytes of each, in name order), as hex."""
        return self.source.digest()

    def source_nbytes(self) -> int:
        """Return the size in bytes of all tensors as stored in the checkpoint."""
        return self.source.nbytes()

    def blocks(self) -> list[str]:
        """Return the module paths of the transformer blocks, in order (`model.layers.0`, ...).

        The blocks are the `ModuleList` whose length is the config's number of layers; if there are several, the one
        with the most parameters. Raises `CheckpointError` if there is none.
        """
        count = getattr(self.config.get_text_config(), "num_hidden_layers", None)
        lists = [
            (sum(p.numel() for p in module.parameters()), name)
            for name, module in self.model.named_modules()
            if isinstance(module, torch.nn.ModuleList) and len(module) == count
        ]
        if not lists:
            raise CheckpointError(
                f"{self.name}: no list of {count} blocks was found in {type(self.model).__name__}"
            )
        _, path = max(lists, key=lambda item: item[0])
        return [f"{path}.{index}" for index in range(len(self.model.get_submodule(path)))]  # type: ignore[arg-type]

    def used(self) -> list[str]:
        """Return the names of the stored tensors that reading all parameters needs, each once."""
        recipes = (self._recipe(info.name) for info in self._infos)
        return list(
            dict.fromkeys(name for recipe in recipes if recipe for name, _ in recipe.sources[: recipe.most])
        )

    def read_stored(self, stored: str) -> torch.Tensor:
        """Return a stored tensor unchanged. Raises `CheckpointError` if it is damaged or not finite."""
        return to_torch(self.source.read(stored))

    def own_dtype(self) -> torch.dtype:
        """Return the config's dtype, else that of the first float parameter."""
        dtype = getattr(self.config, "dtype", None)
        if isinstance(dtype, torch.dtype):
            return dtype
        return next((info.dtype for info in self._infos if info.dtype.is_floating_point), torch.float32)

    def _stand_in(self, name: str) -> str:
        """Return the alias under which the checkpoint stores the tied tensor `name`, else `name`."""
        return next(
            (alias for alias, target in self._tied.items() if target == name and alias in self._recipes), name
        )

    def _convert(
        self, recipe: Recipe, name: str, read: Callable[[str], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return a recipe's parameters. Raises `CheckpointError` if the conversion fails."""
        try:
            return recipe.read(self.model, read)
        except CheckpointError:
            raise
        except Exception as cause:  # transformers' conversion raises many types
            raise CheckpointError(
                f"{name} cannot be assembled from {len(recipe.sources)} checkpoint tensors ({reason(cause)}): "
                "the checkpoint does not fit its config.json"
            ) from cause

    def _recipe(self, name: str) -> Recipe | None:
        """Return the recipe of a parameter. For a tied pair the tensor may be stored under either name."""
        target = self._tied.get(name, name)
        return (
            self._recipes.get(target) or self._recipes.get(name) or self._recipes.get(self._stand_in(target))
        )

    def _wanted(self) -> Iterator[Wanted]:
        """Yield every parameter, and every buffer in the checkpoint: the model computes the other buffers itself."""
        buffers = {name for name, _ in self.model.named_buffers()}
        for name, meta in self.model.state_dict().items():
            recipe = self._recipe(name)
            if recipe is None:
                if name not in buffers:
                    yield Wanted(name, None, ())
                continue
            shape = tuple(meta.shape) if recipe.converter is None else None
            yield Wanted(name, shape, [stored for stored, _ in recipe.sources], meta.is_floating_point())

    def _check_assembled(self) -> None:
        """Check the shape of every parameter that has a converter, by converting on the meta device.

        Raises `CheckpointError` if the shape is not the model's, for example because an expert is missing.
        """

        def shape_of(stored: str) -> torch.Tensor:
            """Return a stored tensor's shape and type as a tensor on the meta device."""
            tensor = self.source.tensors[stored]
            return torch.empty(tensor.shape, dtype=torch_dtype(BY_STORED[tensor.dtype]), device="meta")

        shapes = {name: tuple(meta.shape) for name, meta in self.model.state_dict().items()}
        for lead, recipe in self._recipes.items():
            if recipe.converter is None or recipe.lead != lead:
                continue
            for name, value in self._convert(recipe, lead, shape_of).items():
                if name in shapes and tuple(value.shape) != shapes[name]:
                    raise CheckpointError(
                        f"{self.name}: {name}, put together from {len(recipe.sources)} tensors, has the shape "
                        f"{tuple(value.shape)} but its config.json implies {shapes[name]}: the download is "
                        "incomplete, or the config belongs to another model"
                    )

    def _inspect(self) -> list[ParameterInfo]:
        """Return the description of every parameter from file headers, without reading data."""
        buffers = {name for name, _ in self.model.named_buffers()}
        infos: list[ParameterInfo] = []
        for name, meta in self.model.state_dict().items():
            if (recipe := self._recipe(name)) is not None:
                dtype = torch_dtype(BY_STORED[self.source.tensors[recipe.sources[0][0]].dtype])
                infos.append(
                    ParameterInfo(name, tuple(meta.shape), dtype, self._tied.get(name), name in buffers)
                )
        return infos


def _worth_naming(model: torch.nn.Module, unused: Iterable[str]) -> list[str]:
    """Return the unused tensors, except those that the model class declares as ignored (layers for training only)."""
    ignored = [re.compile(each) for each in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    return [name for name in unused if not any(each.search(name) for each in ignored)]


def _shape_message(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """Return the message for a tensor of the wrong shape."""
    return f"{name} has the shape {shape} but its config.json implies {expected}: the two belong to different models"


def open_checkpoint(
    source: str | Path, *, revision: str | None = None, allow_remote_code: bool = False
) -> Checkpoint:
    """Open a local folder, a GGUF file (or any of its parts) or a hub name. Reads headers only.

    Raises `CheckpointError`, saying what is wrong and what to do, for anything but an intact causal LM.
    """
    opened = open_source(source, revision=revision)
    if opened.path.is_dir():
        config = load_config(opened.path, allow_remote_code=allow_remote_code)
    else:
        config = config_from(opened.path, opened.config)
    return assemble(opened, config, allow_remote_code=allow_remote_code)


def assemble(source: Source, config: Any, *, allow_remote_code: bool = False) -> Checkpoint:
    """Return the checkpoint of a source that `config` describes.

    If the config ties the output head to the embedding but the source holds two different tensors, the checkpoint has
    both. Raises `CheckpointError` if the source's tensors do not match the config.
    """
    model = build_meta_model(config, allow_remote_code=allow_remote_code)
    untied = _tie_is_contradicted(model, source)
    if untied:
        config.tie_word_embeddings = False
        model = build_meta_model(config, allow_remote_code=allow_remote_code)
    return Checkpoint(source, config, model, untied=untied)


def _tie_is_contradicted(model: torch.nn.Module, source: Source) -> bool:
    """Return whether the checkpoint holds two different tensors for a pair that the config ties.

    In that case transformers uses the tensors and ignores the tie, and so does Zeropoint.
    """
    recipes, _ = resolve(model, source.tensors)
    for alias, name in tied_names(model).items():
        pair = [recipes[each].sources[0][0] for each in (alias, name) if each in recipes]
        if len(pair) == 2 and pair[0] != pair[1] and not source.same(*pair):
            return True
    return False
