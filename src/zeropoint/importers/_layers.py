"""What a `quantization_config` says of one layer: its own bits and group size, where not all layers are alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from zeropoint.errors import CheckpointError, UnsupportedError

#: Fields that map layers to settings: AutoRound's two, whose keys are names of layers or patterns.
_BY_NAME = ("extra_config", "layer_config")


def settings(section: Mapping[str, Any], module: str) -> tuple[Mapping[str, Any], str]:
    """The settings of a layer, and the words that name where they are given.

    GPTQModel's `dynamic` maps patterns to settings, `-:` before one meaning that its layers are left alone; the first
    that matches counts. Raises `UnsupportedError` for what is no pattern.
    """
    for field, key, own in _overrides(section, module):
        if isinstance(own, Mapping):
            return {**section, **own}, f"its {field} says of {key[:60]!r}"
    return section, "its quantization_config says"


def _overrides(section: Mapping[str, Any], module: str) -> Iterator[tuple[str, str, Any]]:
    dynamic = section.get("dynamic")
    for key, own in dynamic.items() if isinstance(dynamic, Mapping) else ():
        if _matches("dynamic", re.match, key.removeprefix("+:").removeprefix("-:"), module):
            yield "dynamic", key, {"bits": None} if key.startswith("-:") else own
    for field in _BY_NAME:
        table = section.get(field)
        if not isinstance(table, Mapping):
            continue
        if module in table:
            yield field, module, table[module]
        for key, own in table.items():
            if re.search(r"[*+?\[(|\\^$]", key) and _matches(field, re.fullmatch, key, module):
                yield field, key, own


def _matches(field: str, match: Any, pattern: str, module: str) -> bool:
    try:
        return match(pattern, module) is not None
    except re.error as cause:
        raise UnsupportedError(f"a key of {field} is no pattern: {pattern[:60]!r} ({cause})") from cause


def check_bits(section: Mapping[str, Any], module: str, stored: int) -> None:
    """Raise `CheckpointError` where a layer's tensors have other bits than the config says."""
    said, where = settings(section, module)
    bits = said.get("bits", said.get("w_bit"))
    if bits != stored:
        meant = "none, so that it is kept in float" if bits is None else f"{str(bits)[:20]} bits"
        raise CheckpointError(f"{module} is stored in {stored} bits, and {where}: {meant}")


def group_size(section: Mapping[str, Any], module: str, columns: int) -> int:
    """Inputs of a layer that share a scale; all where there are no groups. Raises `CheckpointError`."""
    said, where = settings(section, module)
    size = said.get("group_size", said.get("q_group_size", -1))
    if type(size) is not int or size == 0 or size < -1:
        raise CheckpointError(f"the group_size of {module} is {str(size)[:20]!r} ({where}), no whole number")
    return columns if size == -1 else min(size, columns)
