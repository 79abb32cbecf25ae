"""A source model as transformers' parameters: names, shapes and one tensor at a time, without loading it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from zeropoint.checkpoint.architecture import build_meta_model, config_from, load_config
from zeropoint.checkpoint.resolve import Recipe, resolve
from zeropoint.errors import CheckpointError
from zeropoint.sources import Source, Wanted, open_source
from zeropoint.views import Kept, LayerView, layer_views

TORCH_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """One parameter or persistent buffer of the Hugging Face model.

    `dtype` is the checkpoint's; `tied_to` names the parameter this one shares its tensor with (read and
    stored once, under that name).
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    tied_to: str | None = None
    is_buffer: bool = False

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the checkpoint's own dtype."""
        return self.numel * self.dtype.itemsize


class Checkpoint:
    """A source model. `model` is the Hugging Face model on the meta device: shapes, no data.

    `source` is what is on the disk, `path` its local folder or GGUF file, `name` what the user called it. `notes` say
    what a user should hear of it: tensors that the model has no place for, an adapter that is left out. `untied`: the
    config ties the head to the embedding, and the files hold two different ones.
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
        self._tied = _tied_names(model)
        self.notes = source.check(self._wanted(), _worth_naming(model, unused))
        self._check_assembled()
        self._infos = self._inspect()
        self._views: tuple[list[LayerView], list[Kept]] | None = None
        self._shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        self._last: tuple[Recipe, dict[str, torch.Tensor]] | None = None
        self._changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {}
        self._changed: tuple[str, torch.Tensor] | None = None

    def changed(self, changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]) -> Checkpoint:
        """The same model with other numbers: parameter name -> what becomes of it, in float32 both.

        Matrices are then read in float32, vectors in their own dtype.
        """
        made = copy.copy(self)
        made._changes, made._views, made._last, made._changed = changes, None, None, None
        return made

    def parameters(self) -> list[ParameterInfo]:
        """Every parameter and persistent buffer, in the model's order; tied ones say so."""
        return list(self._infos)

    def read(self, name: str) -> torch.Tensor:
        """One parameter in the checkpoint's own dtype. A tied name reads the tensor it is tied to.

        Raises `CheckpointError` for an unknown name, a truncated file or a wrong shape.
        """
        name = self._tied.get(name, name)
        recipe = self._recipe(name)
        if recipe is None:
            raise CheckpointError(f"{self.name} has no parameter {name}")
        if recipe.converter is None:
            value = self.read_stored(recipe.sources[0][0])
        else:
            # One converted parameter is remembered: the experts of a stack are read one after the other.
            if self._last is None or self._last[0] is not recipe:
                self._last = None
                self._last = (recipe, self._convert(recipe, name, self.read_stored))
            value = self._last[1][name]
        expected = self._shapes[name]
        if tuple(value.shape) != expected:
            raise CheckpointError(_shape_message(name, tuple(value.shape), expected))
        return self._after_change(name, value)

    def _after_change(self, name: str, value: torch.Tensor) -> torch.Tensor:
        if name not in self._changes:
            return value
        if (
            self._changed is None or self._changed[0] != name
        ):  # the experts of a stack are read one after the other
            self._changed = name, self._changes[name](value.float())
        made = self._changed[1]
        return made if made.ndim > 1 else made.to(value.dtype)

    def stored_name(self, name: str) -> str | None:
        """The checkpoint tensor that a parameter is, as it stands; None when it is made of several."""
        recipe = self._recipe(name)
        return None if recipe is None or recipe.converter is not None else recipe.sources[0][0]

    def views(self) -> tuple[list[LayerView], list[Kept]]:
        """Every quantizable weight and every other parameter, tied names left out, in model order."""
        if self._views is None:
            views, kept = layer_views(self.model, self.read)
            present = {info.name for info in self._infos if info.tied_to is None}
            self._views = [v for v in views if v.parameter in present], [k for k in kept if k.name in present]
        return list(self._views[0]), list(self._views[1])

    def source_digest(self) -> str:
        """sha256 of the weight files (name and bytes of each, in name order), as hex."""
        return self.source.digest()

    def source_nbytes(self) -> int:
        """Bytes of the tensors in the checkpoint, as stored there."""
        return self.source.nbytes()

    def blocks(self) -> list[str]:
        """Module paths of the decoder blocks, in order (`model.layers.0`, ...).

        They are the `ModuleList` as long as the layer count, the one with the most parameters if there are several.
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
        """Return the names of the stored tensors that parameters are made of, each once."""
        recipes = (self._recipe(info.name) for info in self._infos)
        return list(
            dict.fromkeys(name for recipe in recipes if recipe for name, _ in recipe.sources[: recipe.most])
        )

    def read_stored(self, stored: str) -> torch.Tensor:
        """Return a stored tensor, as it stands. Raise `CheckpointError` where it is damaged or not finite."""
        return as_torch(self.source.read(stored))

    def own_dtype(self) -> torch.dtype:
        """Return the type that the config says the model is computed in, or else that of its first stored floats."""
        said = getattr(self.config, "dtype", None)
        if isinstance(said, torch.dtype):
            return said
        return next((info.dtype for info in self._infos if info.dtype.is_floating_point), torch.float32)

    def _stand_in(self, name: str) -> str:
        """The name under which a tied tensor is stored when the checkpoint has only the other name."""
        return next(
            (alias for alias, target in self._tied.items() if target == name and alias in self._recipes), name
        )

    def _convert(
        self, recipe: Recipe, name: str, read: Callable[[str], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        try:
            return recipe.read(self.model, read)
        except CheckpointError:
            raise
        except Exception as cause:  # conversion of tensors that do not fit each other fails in many ways
            raise CheckpointError(
                f"{name} cannot be assembled from {len(recipe.sources)} checkpoint tensors ({cause}): "
                "the checkpoint does not fit its config.json"
            ) from cause

    def _recipe(self, name: str) -> Recipe | None:
        """How a parameter is made; of a tied pair, by whichever name is stored."""
        target = self._tied.get(name, name)
        return (
            self._recipes.get(target) or self._recipes.get(name) or self._recipes.get(self._stand_in(target))
        )

    def _wanted(self) -> Iterator[Wanted]:
        """Every parameter, and every buffer that is stored: one that is not is computed by the model itself."""
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
        """Assemble every parameter of several tensors on the meta device, by their shapes alone.

        Raise `CheckpointError` for one that does not come out in the model's shape: an expert is missing, say.
        """

        def shape_of(stored: str) -> torch.Tensor:
            found = self.source.tensors[stored]
            return torch.empty(found.shape, dtype=TORCH_DTYPES[found.dtype], device="meta")

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
        """Describe every parameter by the headers, without reading data."""
        buffers = {name for name, _ in self.model.named_buffers()}
        infos: list[ParameterInfo] = []
        for name, meta in self.model.state_dict().items():
            if (recipe := self._recipe(name)) is not None:
                dtype = TORCH_DTYPES[self.source.tensors[recipe.sources[0][0]].dtype]
                infos.append(
                    ParameterInfo(name, tuple(meta.shape), dtype, self._tied.get(name), name in buffers)
                )
        return infos


def _worth_naming(model: torch.nn.Module, unused: Iterable[str]) -> list[str]:
    """The unused tensors without those that the model's own class knows and leaves out (layers for training, say)."""
    known = [re.compile(each) for each in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    return [name for name in unused if not any(each.search(name) for each in known)]


def _tied_names(model: torch.nn.Module) -> dict[str, str]:
    """Alias -> the name that is stored, for the tied parameters of a model."""
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    # A tie that the checkpoint contradicts by holding both tensors is settled in `assemble`.
    return {alias: name for alias, name in tied.items() if alias != name}


def _shape_message(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return f"{name} has the shape {found} but its config.json implies {expected}: the two belong to different models"


def open_checkpoint(
    source: str | Path, *, revision: str | None = None, allow_remote_code: bool = False
) -> Checkpoint:
    """Open a local folder, a GGUF file (or any of its parts) or a hub name. Reads headers only.

    Raises `CheckpointError` (one sentence: what is wrong and what to do) for anything that is not a sound causal LM.
    """
    opened = open_source(source, revision=revision)
    if opened.path.is_dir():
        config = load_config(opened.path, allow_remote_code=allow_remote_code)
    else:
        config = config_from(opened.path, opened.config)
    return assemble(opened, config, allow_remote_code=allow_remote_code)


def assemble(source: Source, config: Any, *, allow_remote_code: bool = False) -> Checkpoint:
    """Return the checkpoint of a source that `config` describes, untied where its tensors contradict the config.

    Raise `CheckpointError` where the two do not fit each other.
    """
    model = build_meta_model(config, allow_remote_code=allow_remote_code)
    untied = _tie_is_contradicted(model, source)
    if untied:
        config.tie_word_embeddings = False
        model = build_meta_model(config, allow_remote_code=allow_remote_code)
    return Checkpoint(source, config, model, untied=untied)


def as_torch(array: NDArray[Any]) -> torch.Tensor:
    """The array as a tensor of the same type, bfloat16 included."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def _tie_is_contradicted(model: torch.nn.Module, source: Source) -> bool:
    """Whether the checkpoint holds two different tensors for a pair that the config ties.

    transformers trusts the tensors then, and so does Zeropoint.
    """
    recipes, _ = resolve(model, source.tensors)
    for alias, name in _tied_names(model).items():
        pair = [recipes[each].sources[0][0] for each in (alias, name) if each in recipes]
        if len(pair) == 2 and pair[0] != pair[1] and not source.same(*pair):
            return True
    return False
