"""Import of compressed-tensors folders in llm-compressor's formats `int-quantized` and `pack-quantized`.

An artifact is a compressed-tensors folder with a card, so `artifact.layout.decode` reads the weights. This module reads
the `quantization_config`. Groups of scattered inputs (`weight_g_idx`) are refused.
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

#: The suffix of the tensor that every quantized module has.
SCALE = ".weight_scale"

#: Suffixes of the tensors that quantize the key-value cache.
CACHE_ENDINGS = (".k_scale", ".v_scale", ".k_zero_point", ".v_zero_point")


def recognizes(path: Path) -> bool:
    """Return whether `path` is a compressed-tensors folder."""
    return configured(path, METHOD) is not None


def open(path: Path) -> Source:
    """Open a compressed-tensors folder.

    Raises `UnsupportedError` for a format that no `Scheme` describes, `CheckpointError` for damaged files.
    """
    section = configured(path, METHOD)
    assert section is not None
    refuse_config(path, section)
    config, files = plain_config(path), folder.weight_files(path)
    where = folder.open_files(files)
    if reordered := [name for name in where if name.endswith(".weight_g_idx")]:
        raise UnsupportedError(
            f"{path}: {reordered[0]} gives groups of scattered inputs (activation order), which are not imported"
        )
    schemes: dict[str, Scheme] = {}
    for key in [key for key in where if key.endswith(SCALE)]:
        module = key.removesuffix(SCALE)
        if f"{module}.weight" not in where and f"{module}.weight_packed" not in where:
            continue  # a copy of a tied weight's scales
        schemes[f"{module}.weight"] = _scheme(
            _group(section, module, path), scale_type(where[key].info(key)[0]), path
        )
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    own = {key for name, scheme in schemes.items() for key in _keys(where, name, scheme)}
    if missing := own - set(where):
        raise CheckpointError(f"{path} lacks the tensor {min(missing)}: download or copy it again")
    for name, scheme in schemes.items():
        tensors[name] = ("F32", _shape(where, name, scheme))
    note = quantized.kv_cache_note(section)
    endings = (SCALE, ".weight_zero_point", *(CACHE_ENDINGS if note else ()))
    left_out = {key for key in where if key.endswith(endings)}
    tensors |= float_headers(where, own | left_out)
    read = partial(_read, where, schemes)
    notes = () if note is None else (note,)
    return Source(METHOD, config, tuple(files), tensors, read, lambda _: model_files(path), notes)


def _read(where: Mapping[str, TensorFile], schemes: Mapping[str, Scheme], name: str) -> Weight:
    """Return a parameter: a weight in `schemes` as a `QuantizedTensor`, any other as floats."""
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
    """Decode a symmetric 8-bit weight.

    Other tools use code -128, which Zeropoint permits only in asymmetric schemes. A weight with this code gets an
    asymmetric scheme with zero_point 0.
    """
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
    """Return whether the codes are packed in 32-bit words, as llm-compressor does for 8 bits with float inputs too."""
    return f"{layouts.module_of(name)}.weight_packed" in where


def _keys(where: Mapping[str, TensorFile], name: str, scheme: Scheme) -> list[str]:
    """Return the names of the tensors that store a quantized weight."""
    return layouts.tensor_names(name, scheme, Layout(), packed=_is_packed(where, name))


def _shape(where: Mapping[str, TensorFile], name: str, scheme: Scheme) -> tuple[int, int]:
    """Return `(out, in)`, from the codes' header, or from the tensor `weight_shape` if the codes are packed."""
    if not (scheme.is_packed or _is_packed(where, name)):
        shape = where[name].info(name)[1]
    else:
        key = f"{layouts.module_of(name)}.weight_shape"
        shape = tuple(int(each) for each in where[key].read(key).reshape(-1)[:3])
    if len(shape) != 2 or min(shape) < 1:
        raise CheckpointError(f"{name} has the shape {shape}, which is no matrix")
    return shape[0], shape[1]


def _group(section: Mapping[str, Any], module: str, path: Path) -> Mapping[str, Any]:
    """Return the config group of a quantized module: the group that targets its name, else its class.

    Raises `CheckpointError` for invalid groups, `UnsupportedError` unless exactly one group matches.
    """
    groups = section.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise CheckpointError(f"{path}: quantization_config has no config_groups")
    try:
        matches = [group for group in groups.values() if _names(group.get("targets"), module)]
    except re.error as cause:
        raise CheckpointError(f"{path}: a target of its config_groups is no pattern: {cause}") from cause
    matches = matches or [group for group in groups.values() if _names_class(group.get("targets"))]
    if len(matches) != 1:
        raise UnsupportedError(f"{path}: {len(matches)} config groups are for {module}, not one")
    chosen: Mapping[str, Any] = matches[0]
    return chosen


def _names(targets: Any, module: str) -> bool:
    """Return whether a group's targets include the module, by name or by a pattern (`re:...`)."""
    return isinstance(targets, Sequence) and any(
        re.match(target[3:], module) is not None if target.startswith("re:") else target == module
        for target in targets
        if isinstance(target, str)
    )


def _names_class(targets: Any) -> bool:
    """Return whether a group's targets include the class of linear layers or embeddings."""
    return isinstance(targets, Sequence) and any(target in ("Linear", "Embedding") for target in targets)


def _scheme(group: Mapping[str, Any], scale_dtype: Any, path: Path) -> Scheme:
    """Return the scheme of a config group. Raises `UnsupportedError` if there is none."""
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
        raise UnsupportedError(f"{path}: its weights' format is not supported: {cause}") from cause


def _activation(inputs: Any, path: Path) -> Activation | None:
    """Return the activation format of a config group, None for float inputs. Raises `UnsupportedError`."""
    if inputs is None:
        return None
    strategy = inputs.get("strategy") if isinstance(inputs, dict) else None
    if strategy not in ("token", "group") or not inputs.get("dynamic") or not inputs.get("symmetric"):
        raise UnsupportedError(f"{path}: inputs quantized statically or asymmetrically are not imported")
    return Activation(_whole(inputs, "num_bits"), _whole(inputs, "group_size") if strategy == "group" else 0)


def _whole(section: Mapping[str, Any], key: str) -> int:
    """Return an integer field. Raises `SchemeError` for any other value."""
    value = section.get(key)
    if type(value) is not int:
        raise SchemeError(f"{key} is {str(value)[:40]!r}, not a whole number")
    return value
