"""Import of GPTQ folders written by GPTQModel or AutoGPTQ: 2 to 8 bits, scales per group or per channel.

A weight is `(code - zero) * scale`. Tensors of a module:

- `qweight`: int32 `[in * bits / 32, out]`, codes packed along each column, the lowest bits first;
- `scales`: `[groups, out]`;
- `qzeros`: int32 `[groups, out * bits / 32]`, packed along each row. Format "gptq" stores `zero - 1`, format "gptq_v2"
  stores `zero`;
- `g_idx`: `[in]`, the group of each input.

Groups of scattered inputs (activation order without static groups) are refused, because no `Scheme` describes them.
Bits may differ between layers; the bits implied by a layer's shapes must equal those of `quantization_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import CheckpointError, SchemeError, UnsupportedError
from zeropoint.files.model_files import model_files
from zeropoint.files.safetensors_file import TensorFile
from zeropoint.importers import Source, _layers
from zeropoint.importers._folders import (
    configured,
    float_headers,
    plain_config,
    refuse_config,
    unpack_words,
    unsigned_grid,
)
from zeropoint.sources import folder, quantized
from zeropoint.values.qtensor import QuantizedTensor, Weight

METHOD = quantized.GPTQ
LEAVES = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True, slots=True)
class Layer:
    """The format of one quantized weight `[rows, columns]`.

    - `less_one`: the folder stores `zero - 1`;
    - `symmetric`: the config states that every zero is the middle code.
    """

    rows: int
    columns: int
    bits: int
    group_size: int
    less_one: bool
    symmetric: bool


def recognizes(path: Path) -> bool:
    """Return whether `path` is a GPTQ folder."""
    return configured(path, METHOD) is not None


def open(path: Path) -> Source:
    """Open a GPTQ folder.

    Raises `UnsupportedError` for a form that is not read, `CheckpointError` for damaged files.
    """
    section = configured(path, METHOD)
    assert section is not None
    refuse_config(path, section)
    version = section.get("checkpoint_format") or section.get("format") or "gptq"
    return open_packed(path, section, METHOD, less_one=version == "gptq")


def open_packed(path: Path, section: Mapping[str, Any], method: str, *, less_one: bool) -> Source:
    """Open a folder with tensors in GPTQ's layout, written by a GPTQ tool or AutoRound (`method`)."""
    config, files = plain_config(path), folder.weight_files(path)
    where = folder.open_files(files)
    modules = sorted(name.removesuffix(".qweight") for name in where if name.endswith(".qweight"))
    own = {f"{module}.{leaf}" for module in modules for leaf in LEAVES}
    if missing := {key for key in own if not key.endswith("g_idx")} - set(where):
        raise CheckpointError(f"{path} lacks the tensor {min(missing)}: download or copy it again")
    tensors = float_headers(where, own)
    layers: dict[str, Layer] = {}
    for module in modules:
        layer = _layer(where, section, module, less_one=less_one)
        layers[f"{module}.weight"] = layer
        tensors[f"{module}.weight"] = ("F32", (layer.rows, layer.columns))
    read = partial(_read, where, layers)
    return Source(method, config, tuple(files), tensors, read, lambda _: model_files(path))


def _layer(
    where: Mapping[str, TensorFile], section: Mapping[str, Any], module: str, *, less_one: bool
) -> Layer:
    """Return a layer's format from its tensors' shapes. Raises `CheckpointError` if the config contradicts them."""
    shapes = {
        leaf: where[f"{module}.{leaf}"].info(f"{module}.{leaf}")[1]
        for leaf in ("qweight", "qzeros", "scales")
    }
    for leaf, shape in shapes.items():
        if len(shape) != 2 or min(shape) < 1:
            raise CheckpointError(f"{module}.{leaf} has the shape {shape}, which is no matrix")
    rows = shapes["qweight"][1]
    bits, rest = divmod(shapes["qzeros"][1] * 32, rows)
    if rest or bits not in quantized.GPTQ_BITS or shapes["qweight"][0] * 32 % bits:
        raise CheckpointError(
            f"{module}: qweight {shapes['qweight']} and qzeros {shapes['qzeros']} are not of codes of whole bits"
        )
    _layers.check_bits(section, module, bits)
    columns = shapes["qweight"][0] * 32 // bits
    settings, _ = _layers.settings(section, module)
    size = _layers.group_size(section, module, columns)
    return Layer(rows, columns, bits, size, less_one, settings.get("sym") is True)


def _read(where: Mapping[str, TensorFile], layers: Mapping[str, Layer], name: str) -> Weight:
    """Return a parameter: a weight in `layers` as a `QuantizedTensor`, any other as floats."""
    layer = layers.get(name)
    if layer is None:
        return where[name].read(name)
    module = name.removesuffix(".weight")
    part = {leaf: where[key].read(key) for leaf in LEAVES if (key := f"{module}.{leaf}") in where}
    try:
        return _weight(part, where[f"{module}.scales"].info(f"{module}.scales")[0], layer)
    except UnsupportedError as cause:
        raise UnsupportedError(f"{name}: {cause}") from cause
    except (SchemeError, ValueError, IndexError) as cause:
        raise CheckpointError(f"{name}: {cause}") from cause


def _weight(part: Mapping[str, NDArray[Any]], scale_dtype: str, layer: Layer) -> QuantizedTensor:
    """Return a weight from its tensors, by the names in `LEAVES`."""
    codes = unpack_words(part["qweight"].T, layer.bits)
    zeros = _zeros(unpack_words(part["qzeros"], layer.bits), layer)
    scales = part["scales"]
    index = part.get("g_idx")
    if index is not None and index.size:
        groups = _order(index.reshape(-1), layer)
        zeros, scales = zeros[groups], scales[groups]
    return unsigned_grid(codes, zeros.T, scales.T, layer.bits, scale_dtype, layer.group_size)


def _zeros(stored: NDArray[np.int16], layer: Layer) -> NDArray[np.int16]:
    """Return the zeros from the stored values.

    Raises `SchemeError` if the config says symmetric and only the other version of the format makes the weight
    symmetric: then the folder states the wrong version.
    """
    half = 1 << (layer.bits - 1)
    zeros = stored + np.int16(layer.less_one)
    if layer.symmetric and (stored + np.int16(not layer.less_one) == half).all():
        version = "gptq_v2" if layer.less_one else "gptq"
        raise SchemeError(
            f"sym is true, but every zero point is {int(zeros.flat[0])}: the checkpoint_format must be {version}"
        )
    return zeros


def _order(index: NDArray[Any], layer: Layer) -> NDArray[Any]:
    """Return the stored group of each run of `group_size` inputs. Raises `UnsupportedError` if a run mixes groups."""
    groups = index[:: layer.group_size]
    if len(index) != layer.columns or not np.array_equal(
        np.repeat(groups, layer.group_size)[: len(index)], index
    ):
        raise UnsupportedError(
            "g_idx gives groups of scattered inputs (desc_act, activation order), which is not kept: quantize with "
            "desc_act false or static_groups true"
        )
    return groups
