"""The `quantization_config` of a folder that another tool quantized: the tool's name, and whether Zeropoint imports it.

`zeropoint.importers` imports a folder if `why_not_imported` returns None. Code that needs float weights reports a
quantized folder with `already_quantized`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zeropoint.errors import CheckpointError
from zeropoint.files.json_file import CARD_NAME, load_json

Section = Mapping[str, Any]

GPTQ, AWQ, AUTO_ROUND, COMPRESSED = "gptq", "awq", "auto-round", "compressed-tensors"

#: `quant_method` -> name of the format, for the formats that Zeropoint imports, and for others.
IMPORTED: Mapping[str, str] = {
    GPTQ: "GPTQ",
    AWQ: "AWQ",
    AUTO_ROUND: "AutoRound",
    COMPRESSED: "compressed-tensors",
}
OTHERS: Mapping[str, str] = {
    "aqlm": "AQLM",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "eetq": "EETQ",
    "exl2": "ExLlamaV2",
    "exl3": "ExLlamaV3",
    "fbgemm_fp8": "FP8 of FBGEMM",
    "fouroversix": "Four Over Six (NVFP4)",
    "fp8": "FP8",
    "fp_quant": "FP-Quant",
    "gguf": "GGUF",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "marlin": "Marlin",
    "modelopt": "NVIDIA ModelOpt",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
    "nvfp4": "NVFP4",
    "qqq": "QQQ",
    "quanto": "Quanto",
    "quark": "AMD Quark",
    "quarot": "QuaRot",
    "quip": "QuIP#",
    "sinq": "SINQ",
    "spinquant": "SpinQuant",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
_SYNONYMS = {
    "auto_round": AUTO_ROUND,
    "autoround": AUTO_ROUND,
    "intel/auto-round": AUTO_ROUND,
    "compressed_tensors": COMPRESSED,
    "finegrained_fp8": "fp8",
    "quip_sharp": "quip",
}

#: The advice of a message about a format that Zeropoint does not read.
ADVICE = "give the model that it was made from, or save it as floats with the tool that made it"

#: AutoRound's packing -> whether it stores `zero_point - 1`, as the first version of GPTQ's format does.
GPTQ_PACKINGS: Mapping[str, bool] = {
    "auto_round:auto_gptq": True,
    "auto_round:gptq": True,
    "auto_gptq": True,
    "gptq": True,
    "auto_round:gptqmodel": False,
    "auto_round": False,
}
AWQ_PACKINGS = ("auto_round:auto_awq", "auto_round:awq", "auto_awq", "awq")

#: Code widths of GPTQ, in bits.
GPTQ_BITS = (2, 3, 4, 5, 6, 7, 8)


def section_of(path: Path) -> dict[str, Any] | None:
    """Return the `quantization_config` of a model folder, also from its older places; None for an unquantized model.

    Raises `CheckpointError` for a file that is not JSON.
    """
    if not (path / "config.json").is_file():
        return None
    config = load_json(path / "config.json", error=CheckpointError)
    section = config.get("quantization_config") or config.get("compression_config")
    if section:
        return dict(section) if isinstance(section, Mapping) else {"quant_method": str(section)}
    for name, method in (("quantize_config.json", GPTQ), ("quant_config.json", AWQ)):
        if (path / name).is_file():  # early versions of AutoGPTQ and AutoAWQ
            return {"quant_method": method, **load_json(path / name, error=CheckpointError)}
    return None


def method_of(section: Section) -> str:
    """Return `quant_method` in its standard spelling. If it is missing, infer it from fields that only one tool writes.

    Returns "" if neither identifies the tool.
    """
    method = section.get("quant_method")
    if isinstance(method, str):
        lower = method.lower()
        return _SYNONYMS.get(lower, lower)
    if "load_in_4bit" in section or "load_in_8bit" in section:
        return "bitsandbytes"
    if "quant_algo" in section or isinstance(section.get("producer"), Mapping):
        return "modelopt"
    return COMPRESSED if "config_groups" in section else ""


def describe(section: Section) -> str:
    """Return the name of the tool or format, for use in a message."""
    method = method_of(section)
    name = IMPORTED.get(method) or OTHERS.get(method)
    if name is None:
        return f"an unknown format (quant_method {str(section.get('quant_method'))[:40]!r})"
    if method == "bitsandbytes":
        kind = str(section.get("bnb_4bit_quant_type", "4 bits"))[:10].upper()
        return f"{name} {kind if section.get('load_in_4bit') else 'INT8'}"
    detail = section.get("quant_algo") if method == "modelopt" else None
    return f"{name} {str(detail)[:20]}" if detail else name


def why_not_imported(section: Section) -> str | None:
    """Return why the folder cannot be imported, naming the decisive field; None if its config allows the import."""
    method = method_of(section)
    if method not in IMPORTED:
        return f"{describe(section)} is not read"
    return _REASONS[method](section)


def _gptq(section: Section) -> str | None:
    """Return why a GPTQ folder cannot be imported."""
    form = section.get("checkpoint_format") or section.get("format") or "gptq"
    if section.get("is_marlin_format"):
        return "is_marlin_format is true, and Marlin's order of codes is not read"
    if form not in ("gptq", "gptq_v2"):
        return f"the checkpoint_format {str(form)[:40]!r} is not read: gptq and gptq_v2 are"
    if section.get("pack_dtype", "int32") != "int32":
        return f"the pack_dtype {str(section['pack_dtype'])[:20]!r} is not read: int32 is"
    for field in ("adapter", "rotation"):
        if section.get(field):
            return f"{field} is set: the model computes more than its weights say"
    return _bits(section, GPTQ_BITS)


def _awq(section: Section) -> str | None:
    """Return why an AWQ folder cannot be imported."""
    if section.get("backend") == "llm-awq":
        return "the backend 'llm-awq' is not read: autoawq is"
    version = str(section.get("version") or section.get("format") or "gemm").lower()
    if version not in ("gemm", "gemv"):
        return f"the version {version[:20]!r} is not read: gemm and gemv are"
    if section.get("zero_point") is False:
        return "zero_point is false, which is not read"
    return _bits(section, (4,))


def _auto_round(section: Section) -> str | None:
    """Return why an AutoRound folder cannot be imported."""
    packing = auto_round_packing(section)
    if packing not in GPTQ_PACKINGS and packing not in AWQ_PACKINGS:
        return f"AutoRound's packing_format {packing[:40]!r} is not read"
    if not str(section.get("data_type", "int")).startswith("int"):
        return f"AutoRound's data_type {str(section['data_type'])[:20]!r} is not read: int is"
    act = section.get("act_bits")
    if act is not None and not (type(act) is int and act >= 16):
        return f"AutoRound's act_bits is {str(act)[:20]!r}, and quantized inputs are not read"
    if section.get("super_bits") is not None:
        return "AutoRound's super_bits is set, and scales that are quantized themselves are not read"
    return _bits(section, GPTQ_BITS if packing in GPTQ_PACKINGS else (4,))


def auto_round_packing(section: Section) -> str:
    """Return AutoRound's `packing_format`, in older folders the first parts of `backend`."""
    packing = section.get("packing_format") or section.get("backend") or "auto_round"
    words = (
        str(packing).lower().replace("auto-round", "auto_round").replace("autoround", "auto_round").split(":")
    )
    kernels = {"exllamav2", "exllama", "triton", "tritonv2", "marlin", "cuda"}
    return ":".join(word for word in words if word not in kernels)


def _bits(section: Section, supported: tuple[int, ...]) -> str | None:
    """Return why codes of the stated width cannot be imported."""
    bits = section.get("bits", section.get("w_bit"))
    if type(bits) is int and bits in supported:
        return None
    return f"codes of {str(bits)[:20]} bits are not read: {', '.join(map(str, supported))} are"


def _compressed(section: Section) -> str | None:
    """Return why a compressed-tensors folder cannot be imported."""
    sparsity = section.get("sparsity_config")
    form = sparsity.get("format") if isinstance(sparsity, Mapping) else None
    if form not in (None, "dense"):
        return f"the sparsity_config's format {str(form)[:40]!r} is not read"
    if (online := _online(section.get("transform_config"))) is not None:
        return f"transform_config rotates inputs as the model runs ({online}), which no artifact does"
    groups = section.get("config_groups")
    for name, group in groups.items() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and weights.get("type") not in (None, "int"):
            kind = _FLOATS.get(str(weights.get("num_bits")), "floats of few bits")
            return f"the weights of {str(name)[:40]} are {kind} (type {str(weights['type'])[:20]!r})"
        if isinstance(group, Mapping) and group.get("output_activations"):
            return f"output_activations of {str(name)[:40]} are quantized, which is not read"
    return None


_FLOATS: Mapping[str, str] = {"8": "FP8", "4": "FP4 (NVFP4 or MXFP4)"}

_REASONS = {GPTQ: _gptq, AWQ: _awq, AUTO_ROUND: _auto_round, COMPRESSED: _compressed}


def _online(transforms: Any) -> str | None:
    """Return the first transform that acts on inputs or outputs at run time; None if all are in the weights."""
    if not transforms:
        return None
    groups = transforms.get("config_groups") if isinstance(transforms, Mapping) else None
    if not isinstance(groups, Mapping):
        return "of an unknown kind"
    for name, group in groups.items():
        applied = group.get("apply") if isinstance(group, Mapping) else None
        for each in applied if isinstance(applied, list) else [None]:
            location = each.get("location") if isinstance(each, Mapping) else None
            if location not in ("weight_input", "weight_output"):
                return f"{str(name)[:40]}, at {str(location)[:20]!r}"
    return None


def kv_cache_note(section: Section) -> str | None:
    """Return a note on a quantized key-value cache (`kv_cache_scheme` of compressed-tensors); None if there is none."""
    scheme = section.get("kv_cache_scheme")
    if not scheme:
        return None
    own = scheme if isinstance(scheme, Mapping) else {"type": scheme}
    bits, kind = str(own.get("num_bits", "?"))[:10], str(own.get("type", "?"))[:20]
    return (
        f"its kv_cache_scheme ({bits} bits, {kind}) is left out: Zeropoint keeps the key-value cache in a type of its "
        "own, float16 or what --kv-cache says"
    )


def already_quantized(path: Path, section: Section) -> str:
    """Return the message for a quantized folder where float weights are needed."""
    if (path / CARD_NAME).is_file():
        return (
            f"{path} is already quantized (a Zeropoint artifact; its plan is in {CARD_NAME}): "
            "give the original model that it was made from"
        )
    reason = why_not_imported(section)
    if reason is None:
        return (
            f"{path} is already quantized ({describe(section)}): keep these numbers with "
            f"`zeropoint import {path} --out OUT`, or quantize the model that it was made from"
        )
    return f"{path} is already quantized ({describe(section)}), and cannot be imported ({reason}): {ADVICE}"
