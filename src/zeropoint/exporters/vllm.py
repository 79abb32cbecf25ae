"""Export for vLLM: a compressed-tensors folder in the form that vLLM's loader accepts.

The folder differs from an artifact in one point. vLLM multiplies 8-bit weights with float inputs only if the codes are
packed in 32-bit words; an artifact stores one code per byte. Formats that vLLM does not support are problems. The rules
follow vllm/model_executor/layers/quantization/compressed_tensors (`_get_scheme_from_parts`, `find_matched_target`,
`CompressedTensorsWNA16`) and its Marlin kernels. tests/exporters/test_vllm.py runs vLLM where it is installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from zeropoint.artifact import Artifact
from zeropoint.artifact.outline import Outline
from zeropoint.dtypes import BY_NAME
from zeropoint.exporters import Pair, Written
from zeropoint.exporters._folders import decode, encode, read_folder, with_formats, write_folder
from zeropoint.exporters._refusals import by_reason, refusal
from zeropoint.files.safetensors_file import TensorFile
from zeropoint.progress import Progress
from zeropoint.values.qtensor import Weight
from zeropoint.values.scheme import Scheme

#: Groups of projections that vLLM fuses, by the last part of the module's name.
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

#: Group sizes of the Marlin kernels, which also support one scale per channel.
GROUP_SIZES = (32, 64, 128)
#: Weight widths of the Marlin kernels.
BITS = (4, 8)

TAKES = (
    "symmetric 8-bit weights with one scale per channel and a8token inputs, and 4-bit weights with float inputs in "
    "groups of 32, 64 or 128, with bf16 or fp16 scales, whichever the model's own dtype is"
)
#: vLLM looks embeddings up in 16 bits. Models for vLLM commonly leave the output head unquantized, too.
EMBEDDING = LM_HEAD = "keep"


def formats(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the scheme of each short name of a format, the default first. vLLM's CPU backend has kernels for both."""
    scales = "fp16" if _model_format(config) == "fp16" else "bf16"
    return {"int8": f"int8:channel:sym:{scales}:a8token", "int4": f"int4:g32:sym:{scales}:a16token"}


def problems(outline: Outline) -> list[str]:
    """Return every reason why vLLM cannot load the artifact exactly."""
    plan, layout = outline.plan, outline.layout
    schemes = plan.quantized
    everything = {name: _shown(schemes.get(name)) for name in plan.choices if name not in layout.embeddings}
    alone = [(name, why) for name, scheme in schemes.items() for why in refusals(outline, name, scheme)]
    return by_reason([*alone, *_unequal(everything)])


def write(artifact: Artifact, path: Path, progress: Progress) -> Written:
    """Write the folder `path`. Raises `UnsupportedError` with the problems of the artifact."""
    if reasons := problems(artifact):
        raise refusal(artifact.path, "vllm", reasons)
    config = with_formats(artifact.config, _is_packed)
    return write_folder(artifact, path, config, progress, _encode)


def read_back(artifact: Artifact, path: Path) -> Iterator[Pair]:
    """Yield every weight of the written folder beside the artifact's."""
    return read_folder(artifact, path, _decode)


def refusals(outline: Outline, name: str, scheme: Scheme) -> list[str]:
    """Return every reason why vLLM cannot load this weight in this scheme exactly."""
    return list(_refusals(outline, name, scheme))


def _refusals(outline: Outline, name: str, scheme: Scheme) -> Iterator[str]:
    """Yield the reasons of `refusals`."""
    layout = outline.layout
    if name in layout.embeddings:
        yield "vLLM wants embeddings unquantized: quantize with --embedding keep"
        return
    if name in layout.experts or name in layout.transposed:
        yield "vLLM stores experts and Conv1D weights otherwise"
    if scheme.bits not in BITS:
        yield f"vLLM has no kernel for {scheme.bits}-bit weights"
    if scheme.activation is None or scheme.activation.bits == 16:
        yield from _weight_only(scheme, outline.shapes[name][1])
    elif scheme.bits != 8 or scheme.granularity == "group" or not scheme.symmetric:
        yield "vLLM multiplies 8-bit inputs with symmetric 8-bit weights of one scale per channel or tensor only"
    elif scheme.activation.group_size:
        yield "vLLM rounds inputs per token, not per group: quantize with a8token or a16token"
    stored = scheme.plain_scale_dtype
    if _model_format(outline.config) not in (stored, "fp32"):
        yield f"vLLM would round {stored} scales to the model's dtype"


def _weight_only(scheme: Scheme, columns: int) -> Iterator[str]:
    """Yield each reason why vLLM cannot multiply a weight of `columns` inputs with float inputs."""
    if scheme.granularity == "tensor":
        yield "vLLM has no weight-only kernel for one scale per tensor"
    if scheme.granularity == "group":
        if scheme.group_size not in GROUP_SIZES:
            yield f"vLLM has no groups of {scheme.group_size}, only of {', '.join(map(str, GROUP_SIZES))}"
        elif columns % scheme.group_size:
            yield "vLLM wants the groups of a row to be whole"
    if scheme.bits == 8 and not scheme.symmetric:
        yield "vLLM's weight-only 8-bit kernels are symmetric here"


def _unequal(schemes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (module, reason) for each group of projections that vLLM fuses although their formats differ."""
    for leaves in FUSED:
        first = f".{leaves[0]}.weight"
        for name in [name for name in schemes if name.endswith(first)]:
            stem = name.removesuffix(first)
            group = {schemes.get(f"{stem}.{leaf}.weight") for leaf in leaves}
            if len(group) > 1:
                yield stem, f"vLLM runs {', '.join(leaves)} as one, and their formats differ"


def _model_format(config: Mapping[str, Any]) -> str:
    """Return the model's float format, to which vLLM converts scales; "" if it is unknown."""
    dtype = str(config.get("dtype", config.get("torch_dtype", "float32")))
    return BY_NAME[dtype].format if dtype in BY_NAME else ""


def _shown(scheme: Scheme | None) -> str:
    """Return a scheme as text for comparison; "kept" for a float weight."""
    return "kept" if scheme is None else str(scheme)


def _is_packed(group: Mapping[str, Any]) -> bool:
    """Return whether vLLM expects packed codes for a quantization group of config.json."""
    return group["input_activations"] is None or group["weights"]["num_bits"] != 8


def _repacked(scheme: Scheme | None) -> bool:
    """Return whether the artifact stores one code per byte and vLLM expects packed codes."""
    if scheme is None:
        return False
    return scheme.bits == 8 and (scheme.activation is None or scheme.activation.bits == 16)


def _encode(artifact: Artifact, name: str, weight: Weight) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield a weight's tensors in the form that vLLM expects."""
    return encode(artifact, name, weight, packed=_repacked(artifact.plan.choices[name].scheme))


def _decode(artifact: Artifact, name: str, where: Mapping[str, TensorFile]) -> Weight:
    """Return a weight from the tensors of `_encode`."""
    return decode(artifact, name, where, packed=_repacked(artifact.plan.choices[name].scheme))
