"""The mapping from checkpoint tensors to the parameters of a transformers model.

transformers renames and reshapes tensors while it loads a checkpoint: it adds or drops the base model's prefix, and
merges `experts.0.w1.weight` ... into one stacked parameter. This module applies transformers' own mapping to one
parameter at a time, so Zeropoint quantizes the same values that transformers would load.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

ReadTensor = Callable[[str], torch.Tensor]


@dataclass(slots=True)
class Recipe:
    """The checkpoint tensors of one parameter, and transformers' converter if there is one.

    - `lead`: the parameter under which the converter was collected. Parameters that one converter splits from the same
      tensor share one recipe;
    - `sources`: (checkpoint name, pattern that matched the name) of each tensor.
    """

    lead: str
    converter: Any | None = None
    sources: list[tuple[str, str]] = field(default_factory=list)

    @property
    def most(self) -> int | None:
        """Return how many of `sources` to read: all (None) with a converter, else 1, as the others are copies."""
        return 1 if self.converter is None else None

    def read(self, model: torch.nn.Module, read: ReadTensor) -> dict[str, torch.Tensor]:
        """Return the recipe's parameters by name. Raises what transformers' conversion raises."""
        if self.converter is None:
            return {self.lead: read(self.sources[0][0])}
        converter = copy.deepcopy(self.converter)
        for source, pattern in self.sources:
            converter.add_tensor(self.lead, source, pattern, _later(read, source))
        converted = converter.convert(self.lead, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}


def _later(read: ReadTensor, name: str) -> Callable[[], torch.Tensor]:
    """Return a function that reads the tensor `name`."""
    return lambda: read(name)


def resolve(model: torch.nn.Module, names: Iterable[str]) -> tuple[dict[str, Recipe], list[str]]:
    """Return `(parameter name -> Recipe, checkpoint names that no parameter uses)`.

    `model` may be on the meta device; `names` are the checkpoint's tensor names. The steps follow
    `transformers.core_model_loading.convert_and_load_state_dict_in_model`.
    """
    expected: Mapping[str, torch.Tensor] = model.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = getattr(model, "base_model_prefix", None)

    recipes: dict[str, Recipe] = {}
    unused: list[str] = []
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, expected)
        if target not in expected and name in expected:
            target, pattern = rename_source_key(name, [], [], prefix, expected)
        if target not in expected:
            unused.append(name)
            continue
        converter = None if pattern is None else by_pattern[pattern]
        recipe = recipes.setdefault(target, Recipe(target, converter))
        recipe.sources.append((name, pattern or name))
    for recipe in list(recipes.values()):
        _add_siblings(recipe, recipes, expected)
    return recipes, unused


def _add_siblings(recipe: Recipe, recipes: dict[str, Recipe], expected: Mapping[str, torch.Tensor]) -> None:
    """Add the recipe to every other output of its converter (fused qkv -> q, k, v)."""
    if recipe.converter is None:
        return
    first, *others = recipe.converter.target_patterns
    for other in others:
        sibling = recipe.lead.replace(first, other)
        if sibling in expected:
            recipes.setdefault(sibling, recipe)


def missing_parameters(model: torch.nn.Module, names: Iterable[str]) -> list[str]:
    """Return the parameters for which `names` (a checkpoint's tensors) has no tensor, or not one for each expert."""
    recipes, _ = resolve(model, names)
    found = set(recipes)
    for pair in tied_names(model).items():
        if found & set(pair):
            found |= set(pair)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return [
        name for name, shape in shapes.items() if name not in found or _lacks_expert(recipes.get(name), shape)
    ]


def _lacks_expert(recipe: Recipe | None, shape: tuple[int, ...]) -> bool:
    """Return whether a stack of experts of the shape `[experts, ...]` lacks the tensor of one of them."""
    counts = Counter(pattern for _, pattern in recipe.sources if "*" in pattern) if recipe else Counter()
    return any(count != shape[0] for count in counts.values())


def tied_names(model: torch.nn.Module) -> dict[str, str]:
    """Map each alias to its stored name, for the tied parameters of a model."""
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    # `source.assemble` removes a tie if the checkpoint holds two different tensors
    return {alias: name for alias, name in tied.items() if alias != name}
