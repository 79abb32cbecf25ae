"""The tensors that store a weight in an artifact: names, dtypes, shapes and bytes.

In the format of compressed-tensors, one quantized weight `<module>.weight` becomes:

- 8 bits ("int-quantized"): `weight` int8 `[out, in]`, `weight_scale`, and `weight_zero_point` int8 if asymmetric;
- below 8 bits ("pack-quantized"): `weight_packed` int32, `weight_shape` int64 `[2]`, `weight_scale`, and
  `weight_zero_point` int32, packed down the columns, if asymmetric.

Other tools pack 8-bit codes too; with `packed=True` the functions read and write that layout.

A stacked parameter's expert number 3 (from 0) is stored as `<parameter>.3.weight...`. An embedding tied to the output
head is stored once; if it has one byte per code, a copy of its scales is stored under the head's name. transformers
ties `weight` but not its scales, so without the copy the head's scales would stay uninitialized.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.artifact.packing import pack, unpack
from zeropoint.errors import ArtifactError
from zeropoint.reference.rounding import STORAGE
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import SCALE_BYTES, Scheme, ceil_div

NAME_LISTS = ("embeddings", "transposed", "experts", "buffered")


@dataclass(frozen=True, slots=True)
class Layout:
    """Properties of a model's weights that an artifact stores besides the plan.

    - `tied`: another name of a stored weight -> its stored name (`lm_head.weight` -> `model.embed_tokens.weight`);
    - `embeddings`: weights that are looked up, not multiplied;
    - `transposed`: weights that the model's code stores as `[in, out]` (Conv1D, some experts) and the artifact stores
      as `[out, in]`;
    - `experts`: weights that are slices of stacked 3-D parameters;
    - `buffered`: weights of modules that also have a buffer (Gemma's scaled embedding).
    """

    tied: Mapping[str, str] = field(default_factory=dict)
    embeddings: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()
    buffered: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "tied": dict(self.tied),
            "embeddings": list(self.embeddings),
            "transposed": list(self.transposed),
            "experts": list(self.experts),
            "buffered": list(self.buffered),
        }

    @classmethod
    def from_json(cls, data: Any) -> Layout:
        """Return the layout that `to_json` wrote. Raises `ArtifactError` if it is malformed."""
        if not isinstance(data, dict) or set(data) != {"tied", *NAME_LISTS}:
            raise ArtifactError(f"the card's layout must hold tied, {', '.join(NAME_LISTS)}")
        tied = data["tied"]
        if not isinstance(tied, dict) or not all(isinstance(v, str) for v in tied.values()):
            raise ArtifactError("the card's layout.tied must map names to names")
        lists = [data[key] for key in NAME_LISTS]
        if not all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in lists):
            raise ArtifactError("the card's layout must list names")
        return cls(tied, *(tuple(names) for names in lists))

    def aliases(self, name: str) -> list[str]:
        """Return the other names of a stored weight."""
        return [alias for alias, stored in self.tied.items() if stored == name]


def module_of(name: str) -> str:
    """Return the module path of a weight, the prefix of its tensors' names."""
    return name.removesuffix(".weight")


def copies_scale(scheme: Scheme) -> bool:
    """Return whether a tied weight's scales are stored again under the other name (see the module's docstring)."""
    return not scheme.is_float and not scheme.is_packed


def stored_nbytes(name: str, scheme: Scheme, shape: tuple[int, int], layout: Layout) -> int:
    """Return the exact bytes of all tensors of one quantized weight, copied scales included."""
    rows, groups = scheme.scale_shape(shape)
    copies = len(layout.aliases(name)) if copies_scale(scheme) else 0
    extra = SCALE_BYTES[scheme.scale_dtype] + (0 if scheme.symmetric else 1)
    return scheme.nbytes(shape) + copies * rows * groups * extra


def encode(
    name: str, weight: QuantizedTensor, layout: Layout, *, packed: bool = False
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the names and tensors that store one quantized weight."""
    scheme, module = weight.scheme, module_of(name)
    packed = packed or scheme.is_packed
    scale = weight.scale.astype(STORAGE[scheme.scale_dtype])
    zero = weight.zero_point
    if packed:
        yield f"{module}.weight_packed", pack(weight.codes, scheme.bits)
        yield f"{module}.weight_shape", np.array(weight.shape, dtype=np.int64)
        if zero is not None and scheme.granularity != "tensor":
            zero = pack(zero, scheme.bits, axis=0)  # type: ignore[assignment]
    else:
        yield f"{module}.weight", weight.codes
    for owner in _owners(name, layout, packed=packed):
        yield f"{owner}.weight_scale", stored_scale(scale, scheme)
        if zero is not None:
            yield f"{owner}.weight_zero_point", stored_scale(zero, scheme)


def _owners(name: str, layout: Layout, *, packed: bool) -> list[str]:
    """Return the modules under whose names a weight's scales are stored."""
    return [module_of(name)] + ([] if packed else [module_of(alias) for alias in layout.aliases(name)])


def stored_scale(values: NDArray[Any], scheme: Scheme) -> NDArray[Any]:
    """Return scales or zero points in their stored shape: `[1]` for a per-tensor scale, which is `[1, 1]` in memory."""
    return values.reshape(1) if scheme.granularity == "tensor" else values


def tensor_names(name: str, scheme: Scheme, layout: Layout, *, packed: bool = False) -> list[str]:
    """Return the tensor names that `encode` yields, in the same order."""
    module, packed = module_of(name), packed or scheme.is_packed
    leaves = ["weight_packed", "weight_shape"] if packed else ["weight"]
    scales = ["weight_scale"] + ([] if scheme.symmetric else ["weight_zero_point"])
    owners = _owners(name, layout, packed=packed)
    return [f"{module}.{leaf}" for leaf in leaves] + [
        f"{owner}.{leaf}" for owner in owners for leaf in scales
    ]


def decode(
    name: str, scheme: Scheme, tensors: Mapping[str, NDArray[Any]], *, packed: bool = False
) -> QuantizedTensor:
    """Return the weight that `encode` stored in these tensors.

    Raises `ArtifactError` or `SchemeError` if a dtype, a shape or a value does not match the scheme.
    """
    module, packed = module_of(name), packed or scheme.is_packed
    if packed:
        words, stated = tensors[f"{module}.weight_packed"], tensors[f"{module}.weight_shape"]
        _expect(f"{module}.weight_shape", stated, np.int64, (2,))
        rows, columns = int(stated[0]), int(stated[1])
        if words.ndim != 2 or not (0 < rows <= words.shape[0] and 0 < columns <= 32 * words.shape[1]):
            raise ArtifactError(
                f"{module}.weight_shape says {rows}x{columns}, and {module}.weight_packed has the shape "
                f"{list(words.shape)}: the artifact is damaged or was changed"
            )
        _expect(f"{module}.weight_packed", words, np.int32, (rows, ceil_div(columns * scheme.bits, 32)))
        codes = unpack(words, scheme.bits, columns)
    else:
        codes = tensors[f"{module}.weight"]
        if codes.ndim != 2 or codes.dtype != np.int8:
            raise ArtifactError(f"{module}.weight must be a 2-D int8 tensor, not {codes.dtype} {codes.shape}")
    shape = (int(codes.shape[0]), int(codes.shape[1]))
    grid = scheme.scale_shape(shape)
    scale = tensors[f"{module}.weight_scale"]
    stored_grid = (1,) if scheme.granularity == "tensor" else grid
    _expect(f"{module}.weight_scale", scale, STORAGE[scheme.scale_dtype], stored_grid)
    zero = None
    if not scheme.symmetric:
        key = f"{module}.weight_zero_point"
        zero = tensors[key]
        if packed and scheme.granularity != "tensor":  # packed like codes, but down each column
            _expect(key, zero, np.int32, (ceil_div(grid[0] * scheme.bits, 32), grid[1]))
            zero = unpack(zero, scheme.bits, grid[0], axis=0)
        else:
            _expect(key, zero, np.int8, stored_grid)
            zero = zero.reshape(grid)
    return QuantizedTensor(scheme, codes, scale.astype(np.float32).reshape(grid), zero)


def _expect(name: str, value: NDArray[Any], dtype: Any, shape: tuple[int, ...]) -> None:
    """Raise `ArtifactError` unless a tensor has this dtype and shape."""
    if value.dtype != np.dtype(dtype) or tuple(value.shape) != shape:
        raise ArtifactError(
            f"{name} must be {np.dtype(dtype)} {list(shape)}, not {value.dtype} {list(value.shape)}: "
            "the artifact is damaged or was changed"
        )
