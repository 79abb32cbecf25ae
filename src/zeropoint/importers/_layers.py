"""The settings of one layer in a `quantization_config`: bits and group size may differ between layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from zeropoint.errors import CheckpointError, UnsupportedError

#: AutoRound's fields that map layer names or patterns to settings.
_BY_NAME = ("extra_config", "layer_config")


def settings(section: Mapping[str, Any], module: str) -> tuple[Mapping[str, Any], str]:
    """Return the settings of a layer, and the beginning of a sentence that names the field they come from.

    GPTQModel's `dynamic` maps patterns to settings. The first match counts; a pattern with `-:` in front excludes its
    layers from quantization. Raises `UnsupportedError` for an invalid pattern.
    """
    for field, key, own in _overrides(section, module):
        if isinstance(own, Mapping):
            return {**section, **own}, f"its {field} says of {key[:60]!r}"
    return section, "its quantization_config says"


def _overrides(section: Mapping[str, Any], module: str) -> Iterator[tuple[str, str, Any]]:
    """Yield (field, key, settings) for each entry that matches the layer, in order of precedence."""
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
    """Return whether a pattern of `field` matches the layer, by `re.match` or `re.fullmatch`."""
    try:
        return match(pattern, module) is not None
    except re.error as cause:
        raise UnsupportedError(f"a key of {field} is no pattern: {pattern[:60]!r} ({cause})") from cause


def check_bits(section: Mapping[str, Any], module: str, stored: int) -> None:
    """Raise `CheckpointError` if a layer's tensors do not have the number of bits that the config states."""
    layer, where = settings(section, module)
    bits = layer.get("bits", layer.get("w_bit"))
    if bits != stored:
        config = "none, so that it is kept in float" if bits is None else f"{str(bits)[:20]} bits"
        raise CheckpointError(f"{module} is stored in {stored} bits, and {where}: {config}")


def group_size(section: Mapping[str, Any], module: str, columns: int) -> int:
    """Return a layer's group size; `columns` if it has no groups. Raises `CheckpointError` for an invalid size."""
    layer, where = settings(section, module)
    size = layer.get("group_size", layer.get("q_group_size", -1))
    if type(size) is not int or size == 0 or size < -1:
        raise CheckpointError(f"the group_size of {module} is {str(size)[:20]!r} ({where}), no whole number")
    return columns if size == -1 else min(size, columns)
