"""`Description`: a model in GGUF's form, or the reasons why GGUF cannot hold the model.

`models.families.derive` turns config.json into a model spec. `describe` checks the spec with `differences.py`, gives
every weight its place (`tensors.py`) and the header its fields (`to_header.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

from zeropoint.errors import UnsupportedError
from zeropoint.gguf.architecture.differences import lost_in_header, notes, problems
from zeropoint.gguf.architecture.families import FAMILIES, Family
from zeropoint.gguf.architecture.tensors import Placement, placements
from zeropoint.gguf.architecture.to_header import ROPE_FACTORS, hyperparameters, rope_factors, write
from zeropoint.models.families import derive
from zeropoint.models.spec import ModelSpec


@dataclass(frozen=True, slots=True, eq=False)
class Description:
    """A model in GGUF's form.

    - `placements`: the file's tensors;
    - `values`: header field -> value;
    - `extras`: tensors of the file that the checkpoint does not have;
    - `notes`: known differences between llama.cpp's results and the model's.
    """

    family: Family
    record: ModelSpec
    placements: tuple[Placement, ...]
    values: Mapping[str, Any]
    extras: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        """Return llama.cpp's name of the architecture."""
        return self.family.name

    def by_source(self) -> dict[str, list[Placement]]:
        """Map each weight's checkpoint name to its tensors in the file. A tied embedding may be stored twice."""
        places: dict[str, list[Placement]] = {}
        for placement in self.placements:
            places.setdefault(placement.source, []).append(placement)
        return places

    def write_metadata(self, writer: GGUFWriter) -> None:
        """Write the hyperparameters to the header."""
        write(writer, self.values)


def describe(config: Mapping[str, Any]) -> tuple[Description | None, list[str]]:
    """Return `(description, [])` for a model's config.json, or `(None, reasons)` if GGUF cannot hold the model."""
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        supported = ", ".join(FAMILIES)
        return None, [
            f"no GGUF architecture is known for {config.get('model_type')!r}: Zeropoint writes {supported}"
        ]
    try:
        record = derive(config)
    except UnsupportedError as cause:
        return None, [str(cause)]
    if reasons := problems(family, record):
        return None, reasons
    placed, values = tuple(placements(family, record)), hyperparameters(family, record)
    factors = rope_factors(family, record)
    extras = {} if factors is None else {ROPE_FACTORS: factors}
    if reasons := list(lost_in_header(family, record, placed, values, extras)):
        return None, reasons
    return Description(family, record, placed, values, extras, tuple(notes(family, record))), []


def restored(config: Mapping[str, Any]) -> Description:
    """Return the description of a model from a GGUF file, by the config.json that `config_of` returned.

    Raises `UnsupportedError` if `derive` does not support the config.
    """
    family = FAMILIES[config["model_type"]]
    record = derive(config)
    return Description(family, record, tuple(placements(family, record)), {})
