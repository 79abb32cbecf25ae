"""Which checkpoint tensors make up each parameter of the Hugging Face model.

transformers renames and reshapes checkpoint tensors while it loads (a base-model prefix added or dropped,
`experts.0.w1.weight` ... merged into one stacked parameter). Its own mapping is used here, evaluated lazily and
for one parameter at a time, so that what Zeropoint quantizes is what transformers would have loaded.
"""

from __future__ import annotations

import copy
import warnings
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
    """How one parameter is made: the checkpoint tensors, and transformers' converter when there is one.

    `lead` is the parameter under which the converter was collected; a converter that splits one tensor into
    several parameters is shared by their recipes.
    """

    lead: str
    converter: Any | None = None
    sources: list[tuple[str, str]] = field(default_factory=list)  # (checkpoint name, matched pattern)

    @property
    def most(self) -> int | None:
        """How many of the sources are read: of tensors that mean one parameter the first, of parts all."""
        return 1 if self.converter is None else None

    def read(self, model: torch.nn.Module, read: ReadTensor) -> dict[str, torch.Tensor]:
        """Every parameter this recipe makes. Raises what transformers' conversion raises."""
        if self.converter is None:
            return {self.lead: read(self.sources[0][0])}
        converter = copy.deepcopy(self.converter)
        for source, pattern in self.sources:
            converter.add_tensor(self.lead, source, pattern, _later(read, source))
        made = converter.convert(self.lead, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def _later(read: ReadTensor, name: str) -> Callable[[], torch.Tensor]:
    return lambda: read(name)


def resolve(model: torch.nn.Module, names: Iterable[str]) -> tuple[dict[str, Recipe], list[str]]:
    """`(parameter name -> Recipe, checkpoint names that no parameter uses)` for a meta model.

    The steps are those of `transformers.core_model_loading.convert_and_load_state_dict_in_model`.
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
    """Point the other outputs of a splitting converter (fused qkv -> q, k, v) at the same recipe."""
    if recipe.converter is None:
        return
    first, *others = recipe.converter.target_patterns
    for other in others:
        sibling = recipe.lead.replace(first, other)
        if sibling in expected:
            recipes.setdefault(sibling, recipe)
