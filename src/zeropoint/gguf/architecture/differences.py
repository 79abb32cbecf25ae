"""Differences between a model and what llama.cpp computes from a GGUF file of it.

A model spec is compared, field by field, with llama.cpp's graph of the family (`problems`), and with the spec that
results when the GGUF header is read back (`lost_in_header`). Each difference prevents export, or is a note if
llama.cpp's own files of the family have the same difference (`notes`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import CheckpointError, UnsupportedError
from zeropoint.gguf.architecture.families import FAMILIES, PRE, Family
from zeropoint.gguf.architecture.tensors import Placement
from zeropoint.gguf.architecture.to_config import LARGEST_GEMMA, config_of
from zeropoint.gguf.architecture.to_header import ROPE_FACTORS, narrow_windows
from zeropoint.models.families import derive
from zeropoint.models.spec import Activation, LinearSlot, ModelSpec, NormSlot, Rope

#: Kinds of rope scaling that a GGUF header can state for every family.
STATED_ROTATIONS = frozenset({"default", "linear", "yarn"})


def problems(family: Family, record: ModelSpec) -> list[str]:
    """Return each difference between the spec and llama.cpp's graph of the family that changes results."""
    return [*_differences(family, record), *_parts(family, record), *_rotation_problems(family, record)]


def _differences(family: Family, record: ModelSpec) -> Iterator[str]:
    """Yield each difference between the spec's config and what llama.cpp computes for the family."""
    config = record.config
    expected: dict[str, Any] = {
        "norm": family.norm,
        "gated": family.gated,
        "rope": family.rope,
        "embedding_scale": math.sqrt(config.hidden) if family.scaled_embedding else 1.0,
        "residual_scale": 1.0,
        "logit_scale": 1.0,
        "attention_scale": _attention_scale(family, record),
        "attention_softcap": 0.0,
        "logit_softcap": 0.0,
    }
    if config.activation != Activation.GELU or family.activation != Activation.GELU_TANH:
        expected["activation"] = family.activation  # llama.cpp has only the tanh form: a note, not a problem
    if not family.partial and family.rope != Rope.NONE:
        expected["rotary_dim"] = config.head_dim
    if family.parallel in ("no", "yes"):
        expected["parallel"] = family.parallel == "yes"
    for key, graph in expected.items():
        value = getattr(config, key)
        if key in family.scales | family.softcaps:
            continue
        if value != graph and not (isinstance(graph, float) and math.isclose(value, graph, rel_tol=1e-6)):
            yield f"llama.cpp's {family.name} has {key} = {_shown(graph)}, this model {_shown(value)}"
    for key in sorted(family.softcaps):
        if not getattr(config, key) and family.name == "gemma2":
            yield f"llama.cpp's {family.name} always has a {key}, this model none"
    if family.square and config.heads * config.head_dim != config.hidden:
        yield f"llama.cpp's {family.name} has heads of {config.hidden // config.heads}, this model of {config.head_dim}"
    windows = narrow_windows(record)
    if family.windows == "none" and any(windows):
        sees = f"{max(windows)} positions in {sum(each > 0 for each in windows)} layers"
        yield f"llama.cpp's {family.name} attends to the whole context, this model to {sees}"
    if len({window for window in windows if window}) > 1:
        yield f"llama.cpp's {family.name} has one width of window, this model several"


def _attention_scale(family: Family, record: ModelSpec) -> float:
    """Return the factor by which llama.cpp multiplies attention logits (see `LARGEST_GEMMA`)."""
    config = record.config
    largest = {FAMILIES[name].arch: layers for name, layers in LARGEST_GEMMA.items()}
    wide = largest.get(family.arch) == config.layers
    return 1 / math.sqrt(config.hidden // config.heads if wide else config.head_dim)


def _parts(family: Family, record: ModelSpec) -> Iterator[str]:
    """Yield each bias, norm or output head that the model has and llama.cpp's graph has not, or the reverse."""
    name = family.name
    biased = {slot for _, slot, linear in record.linears() if linear.bias}
    if unknown := biased - family.biases:
        yield f"llama.cpp's {name} has no bias for {_slots(unknown)}"
    if missing := family.needed_biases - biased:
        yield f"llama.cpp's {name} has a bias for {_slots(missing)}, this model none"
    normed = {slot for _, slot, _ in record.norms()}
    if unknown_norms := normed - family.norms:
        yield f"llama.cpp's {name} has no norm {_slots(unknown_norms)}"
    if missing_norms := family.norms - family.optional_norms - normed:
        yield f"llama.cpp's {name} has a norm {_slots(missing_norms)}, this model none"
    if family.norms == PRE and family.norm_weights != all(norm.weight for _, _, norm in record.norms()):
        yield f"llama.cpp's {name} has norms {'with' if family.norm_weights else 'without'} weights"
    linears = record.model.linears
    if family.head == "tied" and linears[LinearSlot.HEAD].weight != linears[LinearSlot.EMBEDDING].weight:
        yield f"llama.cpp's {name} has no output head beside its embedding, this model has one"
    if family.parallel == "without norm" and record.config.parallel != (NormSlot.MLP not in normed):
        yield f"llama.cpp's {name} has both halves side by side where the second has no norm"


def _rotation_problems(family: Family, record: ModelSpec) -> Iterator[str]:
    """Yield each rope scaling that the header cannot state for this family."""
    for table in record.ropes:
        rope = table.parameters
        if rope is None:
            continue
        if rope.kind not in STATED_ROTATIONS and not (family.factors and rope.kind == "llama3"):
            yield f"llama.cpp's {family.name} cannot scale its rotation as {rope.kind} does"
        unusual = set(rope.numbers) - {"factor", "original_max_position_embeddings"}
        if rope.kind == "yarn" and unusual:
            yield f"llama.cpp fixes yarn's {', '.join(sorted(unusual))}, which this model sets"


def lost_in_header(
    family: Family,
    record: ModelSpec,
    placed: tuple[Placement, ...],
    values: Mapping[str, Any],
    extras: Mapping[str, NDArray[np.float32]],
) -> Iterator[str]:
    """Yield each property that is lost when the header is written and read back."""
    names = {place.name for place in placed} | set(extras)
    read = {key: np.asarray(value) if isinstance(value, list) else value for key, value in values.items()}
    metadata = {"general.architecture": family.name, **read}
    try:
        again = derive(config_of(metadata, names, record.config.vocab, lambda: extras[ROPE_FACTORS]))
    except (UnsupportedError, CheckpointError) as cause:
        yield f"its header would not be read again: {cause}"
        return
    for key in record.config.__slots__:
        one, other = getattr(record.config, key), getattr(again.config, key)
        same = math.isclose(one, other, rel_tol=1e-6) if isinstance(one, float) else one == other
        if not same and key not in ("activation",):
            yield f"a GGUF header of {family.name} gives back {key} = {_shown(other)}, this model has {_shown(one)}"
    if narrow_windows(record) != narrow_windows(again):
        yield f"a GGUF header of {family.name} does not say which layers' attention slides as here"
    for number, (mine, other) in enumerate(zip(_turns(record), _turns(again), strict=True)):
        if not np.allclose(mine, other, rtol=3e-6, atol=0):
            yield f"a GGUF header of {family.name} does not say how layer {number} turns its heads"
            return


def _turns(record: ModelSpec) -> list[NDArray[np.float32]]:
    """Return each layer's rotation: its inverse frequencies, then its scale."""
    if not record.ropes:
        return []
    tables = [np.append(table.inverse_frequency, np.float32(table.scale)) for table in record.ropes]
    return [tables[layer.table] for layer in record.layers]


def notes(family: Family, record: ModelSpec) -> Iterator[str]:
    """Yield the differences in results that llama.cpp's own files of this family have too."""
    windows = narrow_windows(record)
    if family.windows == "unused" and any(windows):
        yield (
            f"llama.cpp's {family.name} attends to the whole context, this model to {max(windows)} positions: their "
            "results differ for longer texts"
        )
    if record.config.activation == Activation.GELU and family.activation == Activation.GELU_TANH:
        yield f"llama.cpp's {family.name} computes GELU by tanh, this model exactly: logits differ by about 1e-3"


def _slots(slots: frozenset[Any] | set[Any]) -> str:
    """Return the names of slots, separated by commas."""
    return ", ".join(sorted(slot.name for slot in slots))


def _shown(value: Any) -> str:
    """Return a value as text for a message."""
    return getattr(value, "name", None) or (f"{value:.6g}" if isinstance(value, float) else str(value))
