"""compressed-tensors folders, as llm-compressor writes them: `int-quantized` and `pack-quantized`.

It is the artifact's own format without its card, so `artifact.layout.decode` reads the weights; what is read here is
the `quantization_config`. Codes in an order of their own (`weight_g_idx`) are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.artifact import layout as layouts
from zeropoint.artifact.layout import Layout
from zeropoint.artifact.packing import pack
from zeropoint.errors import CheckpointError, SchemeError, UnsupportedError, ZeropointError
from zeropoint.files.model_files import model_files
from zeropoint.files.safetensors_file import TensorFile
from zeropoint.importers import Source
from zeropoint.importers._folders import configured, float_headers, plain_config, refuse_config, scale_type
from zeropoint.sources import folder, quantized
from zeropoint.values.qtensor import QuantizedTensor, Weight
from zeropoint.values.scheme import Activation, Scheme

METHOD = quantized.COMPRESSED

#: What marks a quantized module's tensors.
SCALE = ".weight_scale"


def recognizes(path: Path) -> bool:
    return configured(path, METHOD) is not None


def open(path: Path) -> Source:
    section = configured(path, METHOD)
    assert section is not None
    refuse_config(path, section)
    config, files = plain_config(path), folder.weight_files(path)
    where = folder.open_files(files)
    if reordered := [name for name in where if name.endswith(".weight_g_idx")]:
        raise UnsupportedError(
            f"{path}: {reordered[0]} gives groups an order of their own, which is not kept"
        )
    schemes: dict[str, Scheme] = {}
    for key in [key for key in where if key.endswith(SCALE)]:
        module = key.removesuffix(SCALE)
        if f"{module}.weight" not in where and f"{module}.weight_packed" not in where:
            continue  # the copy of a tied weight's scales
        schemes[f"{module}.weight"] = _scheme(
            _group(section, module, path), scale_type(where[key].info(key)[0]), path
        )
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    own = {key for name, scheme in schemes.items() for key in _keys(where, name, scheme)}
    if missing := own - set(where):
        raise CheckpointError(f"{path} lacks the tensor {min(missing)}: download or copy it again")
    for name, scheme in schemes.items():
        tensors[name] = ("F32", _shape(where, name, scheme))
    copies = {key for key in where if key.endswith((SCALE, ".weight_zero_point"))}
    tensors |= float_headers(where, own | copies)
    read = partial(_read, where, schemes)
    return Source(METHOD, config, tuple(files), tensors, read, lambda _: model_files(path))


def _read(where: Mapping[str, TensorFile], schemes: Mapping[str, Scheme], name: str) -> Weight:
    scheme = schemes.get(name)
    if scheme is None:
        return where[name].read(name)
    packed = _is_packed(where, name)
    try:
        part = {key: where[key].read(key) for key in _keys(where, name, scheme)}
        if scheme.bits != 8 or not scheme.symmetric:
            return layouts.decode(name, scheme, part, packed=packed)
        return _decode_8_bits(name, scheme, part, packed=packed)
    except ZeropointError as cause:
        raise CheckpointError(f"{name}: {cause}") from cause


def _decode_8_bits(
    name: str, scheme: Scheme, part: Mapping[str, NDArray[Any]], *, packed: bool
) -> QuantizedTensor:
    """A symmetric weight of another tool, whose codes may reach -128; ours may only beside a zero point (here 0)."""
    module = layouts.module_of(name)
    scale = part[f"{module}.weight_scale"]
    zero = np.zeros(scale.shape, np.int8)
    if packed and scale.ndim == 2:
        zero = pack(zero, 8, axis=0)  # type: ignore[assignment]
    wide = replace(scheme, symmetric=False)
    weight = layouts.decode(name, wide, {**part, f"{module}.weight_zero_point": zero}, packed=packed)
    if int(weight.codes.min(initial=0)) < scheme.qmin:
        return weight
    return QuantizedTensor(scheme, weight.codes, weight.scale)


def _is_packed(where: Mapping[str, TensorFile], name: str) -> bool:
    """Whether the codes lie in 32-bit words; llm-compressor packs 8 bits too where inputs are floats."""
    return f"{layouts.module_of(name)}.weight_packed" in where


def _keys(where: Mapping[str, TensorFile], name: str, scheme: Scheme) -> list[str]:
    return layouts.tensor_names(name, scheme, Layout(), packed=_is_packed(where, name))


def _shape(where: Mapping[str, TensorFile], name: str, scheme: Scheme) -> tuple[int, int]:
    """`[out, in]`, from a header or the small tensor that states it."""
    if not (scheme.is_packed or _is_packed(where, name)):
        shape = where[name].info(name)[1]
    else:
        key = f"{layouts.module_of(name)}.weight_shape"
        shape = tuple(int(each) for each in where[key].read(key).reshape(-1)[:3])
    if len(shape) != 2 or min(shape) < 1:
        raise CheckpointError(f"{name} has the shape {shape}, which is no matrix")
    return shape[0], shape[1]


def _group(section: Mapping[str, Any], module: str, path: Path) -> Mapping[str, Any]:
    """The config group of a quantized module: by its name, by a pattern, or the one group that names a class."""
    groups = section.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise CheckpointError(f"{path}: quantization_config has no config_groups")
    try:
        found = [group for group in groups.values() if _names(group.get("targets"), module)]
    except re.error as cause:
        raise CheckpointError(f"{path}: a target of its config_groups is no pattern: {cause}") from cause
    found = found or [group for group in groups.values() if _names_class(group.get("targets"))]
    if len(found) != 1:
        raise UnsupportedError(f"{path}: {len(found)} config groups are for {module}, not one")
    chosen: Mapping[str, Any] = found[0]
    return chosen


def _names(targets: Any, module: str) -> bool:
    return isinstance(targets, Sequence) and any(
        re.match(target[3:], module) is not None if target.startswith("re:") else target == module
        for target in targets
        if isinstance(target, str)
    )


def _names_class(targets: Any) -> bool:
    return isinstance(targets, Sequence) and any(target in ("Linear", "Embedding") for target in targets)


def _scheme(group: Mapping[str, Any], scale_dtype: Any, path: Path) -> Scheme:
    weights = group.get("weights")
    if not isinstance(weights, dict) or weights.get("type") != "int":
        kind = weights.get("type") if isinstance(weights, dict) else weights
        raise UnsupportedError(f"{path}: weights of the type {str(kind)[:40]!r} are not imported")
    symmetric = weights.get("symmetric")
    if not isinstance(symmetric, bool):
        raise CheckpointError(
            f"{path}: whether weights are symmetric is {str(symmetric)[:40]!r}, not true or false"
        )
    try:
        return Scheme(
            bits=_whole(weights, "num_bits"),
            granularity=weights.get("strategy", ""),
            group_size=_whole(weights, "group_size") if weights.get("strategy") == "group" else 0,
            symmetric=symmetric,
            scale_dtype=scale_dtype,
            activation=_activation(group.get("input_activations"), path),
        )
    except (SchemeError, TypeError) as cause:
        raise UnsupportedError(f"{path}: its weights' format is not one of ours: {cause}") from cause


def _activation(inputs: Any, path: Path) -> Activation | None:
    if inputs is None:
        return None
    strategy = inputs.get("strategy") if isinstance(inputs, dict) else None
    if strategy not in ("token", "group") or not inputs.get("dynamic") or not inputs.get("symmetric"):
        raise UnsupportedError(f"{path}: inputs quantized statically or asymmetrically are not imported")
    return Activation(_whole(inputs, "num_bits"), _whole(inputs, "group_size") if strategy == "group" else 0)


def _whole(section: Mapping[str, Any], key: str) -> int:
    value = section.get(key)
    if type(value) is not int:
        raise SchemeError(f"{key} is {str(value)[:40]!r}, not a whole number")
    return value
