"""Open a source model without loading it: names, shapes and one tensor at a time."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from zeropoint.checkpoint import folder, gguf
from zeropoint.checkpoint.architecture import build_meta_model, config_from, load_config
from zeropoint.checkpoint.resolve import Recipe, resolve
from zeropoint.errors import CheckpointError
from zeropoint.gguf.model import GgufModel
from zeropoint.tensorfile import TensorFile, digest
from zeropoint.views import Kept, LayerView, layer_views

logger = logging.getLogger(__name__)

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

    `path` is the local folder or GGUF file, `name` what the user called it, `stored` the GGUF model of such a file.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        config: Any,
        model: torch.nn.Module,
        files: list[Path],
        read_source: Callable[[str], torch.Tensor],
        sources: dict[str, tuple[torch.dtype, tuple[int, ...]]],
    ) -> None:
        self.path = path
        self.name = name
        self.config = config
        self.model = model
        self.model_type: str = config.model_type
        self._files = files
        self._read_source = read_source
        self._sources = sources
        self._recipes, unused = resolve(model, sources)
        if unused:
            logger.info("%d checkpoint tensors belong to no parameter, %s for one", len(unused), unused[0])
        self._tied = _tied_names(model, self._recipes)
        self._infos = self._inspect()
        self._views: tuple[list[LayerView], list[Kept]] | None = None
        self._shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        self._last: tuple[Recipe, dict[str, torch.Tensor]] | None = None
        self._changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {}
        self._changed: tuple[str, torch.Tensor] | None = None
        self.stored: GgufModel | None = None

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
        recipe = self._recipes.get(name) or self._recipes.get(self._stand_in(name))
        if recipe is None:
            raise CheckpointError(f"{self.name} has no parameter {name}")
        if recipe.converter is None:
            value = self._read_source(recipe.sources[0][0])
        else:
            # One converted parameter is remembered: the experts of a stack are read one after the other.
            if self._last is None or self._last[0] is not recipe:
                self._last = None
                self._last = (recipe, self._convert(recipe, name))
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
        name = self._tied.get(name, name)
        recipe = self._recipes.get(name) or self._recipes.get(self._stand_in(name))
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
        return digest(self._files)

    def source_nbytes(self) -> int:
        """Bytes of the tensors in the checkpoint, as stored there."""
        if self.stored is not None:
            return self.stored.nbytes
        return sum(prod(shape) * dtype.itemsize for dtype, shape in self._sources.values())

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

    def _stand_in(self, name: str) -> str:
        """The name under which a tied tensor is stored when the checkpoint has only the other name."""
        return next(
            (alias for alias, target in self._tied.items() if target == name and alias in self._recipes), name
        )

    def _convert(self, recipe: Recipe, name: str) -> dict[str, torch.Tensor]:
        try:
            return recipe.read(self.model, self._read_source)
        except CheckpointError:
            raise
        except Exception as cause:  # conversion of tensors that do not fit each other fails in many ways
            raise CheckpointError(
                f"{name} cannot be assembled from {len(recipe.sources)} checkpoint tensors ({cause}): "
                "the checkpoint does not fit its config.json"
            ) from cause

    def _inspect(self) -> list[ParameterInfo]:
        """Check every parameter against the headers, without reading data."""
        buffers = {name for name, _ in self.model.named_buffers()}
        infos: list[ParameterInfo] = []
        missing: list[str] = []
        for name, meta in self.model.state_dict().items():
            recipe = self._recipes.get(self._tied.get(name, name)) or self._recipes.get(name)
            if recipe is None:
                recipe = self._recipes.get(self._stand_in(name))
            if recipe is None:
                if name not in buffers:  # a buffer that is absent is one the model computes itself
                    missing.append(name)
                continue
            dtype, shape = self._sources[recipe.sources[0][0]]
            if recipe.converter is None and shape != tuple(meta.shape):
                raise CheckpointError(_shape_message(name, shape, tuple(meta.shape)))
            _check_floats(name, dtype, meta.dtype)
            infos.append(ParameterInfo(name, tuple(meta.shape), dtype, self._tied.get(name), name in buffers))
        if missing:
            raise CheckpointError(
                f"{self.name} lacks {len(missing)} tensors that its config.json asks for, {missing[0]} for one: "
                "the download is incomplete, or the config belongs to another model"
            )
        return infos


def _tied_names(model: torch.nn.Module, recipes: dict[str, Recipe]) -> dict[str, str]:
    """Alias -> the name that is stored, for the tied parameters of a model."""
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    # A tie that the checkpoint contradicts by holding both tensors is settled in `open_checkpoint`.
    return {alias: name for alias, name in tied.items() if alias != name}


def _check_floats(name: str, stored: torch.dtype, wanted: torch.dtype) -> None:
    """Raise `CheckpointError` where a file holds integers for what the model computes with as floats."""
    if wanted.is_floating_point and not stored.is_floating_point:
        raise CheckpointError(
            f"{name} is stored as {str(stored).removeprefix('torch.')}, and the model has floats there: codes of a "
            "quantized model without their scales mean nothing; use the original"
        )


def _shape_message(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return f"{name} has the shape {found} but its config.json implies {expected}: the two belong to different models"


def open_checkpoint(
    source: str | Path, *, revision: str | None = None, allow_remote_code: bool = False
) -> Checkpoint:
    """Open a local folder, a GGUF file (or any of its parts) or a hub name. Reads headers only.

    Raises `CheckpointError` (one sentence: what is wrong and what to do) for anything that is not a sound causal LM.
    """
    path = folder.locate(source, revision=revision)
    name = str(source)
    gguf_file = gguf.find(path)
    if gguf_file is not None:
        file = gguf.load(gguf_file)
        made = assemble(
            gguf_file,
            name,
            config_from(gguf_file, file.config),
            list(file.files),
            lambda key: as_torch(file.floats(key)),
            {key: (TORCH_DTYPES[dtype], shape) for key, (dtype, shape) in file.tensors.items()},
        )
        made.stored = file
        return made
    files = folder.weight_files(path)
    config = load_config(path, allow_remote_code=allow_remote_code)
    tensors = folder.open_files(files)
    return assemble(
        path,
        name,
        config,
        files,
        lambda key: as_torch(tensors[key].read(key)),
        _headers(tensors),
        allow_remote_code=allow_remote_code,
    )


def assemble(
    path: Path,
    name: str,
    config: Any,
    files: list[Path],
    read: Callable[[str], torch.Tensor],
    sources: dict[str, tuple[torch.dtype, tuple[int, ...]]],
    *,
    allow_remote_code: bool = False,
) -> Checkpoint:
    """A checkpoint of the tensors `sources`, untied where they contradict the config. Raises `CheckpointError`."""
    model = build_meta_model(config, allow_remote_code=allow_remote_code)
    if _tie_is_contradicted(model, list(sources), read):
        config.tie_word_embeddings = False
        model = build_meta_model(config, allow_remote_code=allow_remote_code)
    return Checkpoint(path, name, config, model, files, read, sources)


def _headers(tensors: dict[str, TensorFile]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    headers: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, file in tensors.items():
        dtype, shape = file.info(name)
        if dtype not in TORCH_DTYPES:
            raise CheckpointError(
                f"{name} is stored as {dtype}: only float and integer checkpoints can be quantized; use the original"
            )
        headers[name] = (TORCH_DTYPES[dtype], shape)
    return headers


def as_torch(array: NDArray[Any]) -> torch.Tensor:
    """The array as a tensor of the same type, bfloat16 included."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def _tie_is_contradicted(
    model: torch.nn.Module, names: list[str], read: Callable[[str], torch.Tensor]
) -> bool:
    """Whether the checkpoint holds two different tensors for a pair that the config ties.

    transformers trusts the tensors then, and so does Zeropoint.
    """
    recipes, _ = resolve(model, names)
    for alias, name in _tied_names(model, recipes).items():
        pair = recipes.get(alias), recipes.get(name)
        if pair[0] is None or pair[1] is None:
            continue
        first, second = (recipe.sources[0][0] for recipe in pair if recipe is not None)
        if first != second and not torch.equal(read(first), read(second)):
            return True
    return False
