"""Model folders quantized by other tools (GPTQ, AWQ, compressed-tensors), run by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeropoint.errors import CheckpointError, UnsupportedError
from zeropoint.files.json_file import load_json
from zeropoint.runtime.external import first_line, require
from zeropoint.sources.folder import open_files, weight_files
from zeropoint.sources.source import listed

if TYPE_CHECKING:
    from zeropoint.runtime.torch_engine.runner import TorchRunner

RUNTIME, EXACT = "transformers", "float32"

#: `quant_method` of config.json -> the package that it needs besides transformers: module name, name for pip.
PACKAGES: Mapping[str, tuple[str, str]] = {
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "gptq": ("gptqmodel", "gptqmodel"),
    "awq": ("gptqmodel", "gptqmodel"),
}
NAMES = {"gptq": "GPTQ", "awq": "AWQ"}


def recognizes(path: Path) -> bool:
    return bool(_section(path))


def label(path: Path) -> str:
    section = _section(path)
    method = str(section.get("quant_method"))
    detail = f"{section['bits']} bits" if "bits" in section else str(section.get("format", ""))
    return f"{NAMES.get(method, method)} {detail}".strip()


def prepare(path: Path) -> None:
    method = str(_section(path).get("quant_method"))
    for package in ("torch", "transformers"):
        require(package, "'zeropoint[quantize]'", f"Model folders are run by transformers and {package}")
    if method in PACKAGES:
        package, install = PACKAGES[method]
        require(
            package, install, f"{NAMES.get(method, method)} folders are run by transformers with {package}"
        )


def open(path: Path, *, threads: int, dtype: str) -> TorchRunner:
    """Load a folder (see `zeropoint.runtime.external`).

    `dtype="auto"` means bfloat16 if config.json says so, otherwise float32: CPUs emulate float16.
    """
    prepare(path)
    import torch

    from zeropoint.checkpoint.tokenizer import load_tokenizer
    from zeropoint.runtime.torch_engine.runner import TorchRunner, tensor_bytes

    torch.set_num_threads(threads)
    method = str(_section(path)["quant_method"])
    config = load_json(path / "config.json", error=CheckpointError)
    default = "bfloat16" if config.get("dtype", config.get("torch_dtype")) == "bfloat16" else "float32"
    dtype_name = default if dtype == "auto" else dtype
    try:
        model = _load(path, method, getattr(torch, dtype_name))
        if method == "awq" and dtype == EXACT:
            model = _unpacked(model)
        tokenizer = load_tokenizer(str(path))
    except ImportError as cause:
        raise UnsupportedError(f"transformers cannot run {path} here: {first_line(cause)}") from cause
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as cause:
        raise CheckpointError(f"transformers does not load {path}: {first_line(cause)}") from cause
    return TorchRunner(
        model.eval(), tokenizer, name=path.resolve().name, engine=RUNTIME, artifact_bytes=tensor_bytes(path)
    )


def _section(path: Path) -> dict[str, Any]:
    """Return `quantization_config` of config.json, empty if there is none."""
    if not (path / "config.json").is_file():
        return {}
    section = load_json(path / "config.json", error=CheckpointError).get("quantization_config")
    return section if isinstance(section, dict) and "quant_method" in section else {}


def _unpacked(model: Any) -> Any:
    """Replace AWQ layers by float32 layers with the same dequantized weights.

    GPTQModel's AWQ kernel multiplies in float16 even if the input is float32.
    """
    import torch
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    for name, module in list(model.named_modules()):
        if isinstance(module, AwqTorchLinear):
            scales = module.scales.float()
            weight = dequantize_gemm(module.qweight, module.qzeros, scales, module.bits, module.group_size)
            columns, rows = weight.shape
            plain = torch.nn.Linear(columns, rows, bias=module.bias is not None)
            with torch.no_grad():
                plain.weight.copy_(weight.T)
                if plain.bias is not None:
                    plain.bias.copy_(module.bias)
            model.set_submodule(name, plain)
    return model


def _load(path: Path, method: str, dtype: Any) -> Any:
    """Return the model in `dtype` (GPTQ, AWQ: in float32). Raises `CheckpointError` if weights are missing."""
    if method in ("gptq", "awq"):
        import torch
        from gptqmodel import BACKEND, GPTQModel

        _refuse_incomplete(path)
        # GPTQModel cannot load float32, and bfloat16 would round the float16 scales: load float16, then widen
        model = GPTQModel.load(str(path), device="cpu", dtype=torch.float16, backend=BACKEND.TORCH).model
        return torch.nn.Module.float(model)
    from transformers import AutoModelForCausalLM

    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # transformers then lists them, and `_refuse_random` raises
        )
    except RuntimeError as cause:
        # transformers fills missing weights with normal random numbers, which torch cannot do for integers
        if 'normal_kernel_cpu" not implemented' not in str(cause):
            raise
        raise CheckpointError(
            f"{path} lacks integer weights that its config.json asks for: the download is incomplete, or the config "
            "belongs to another model"
        ) from cause
    _refuse_random(path, loaded)
    return model


def _refuse_random(path: Path, loaded: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` if a weight is missing or has another shape: transformers made it random."""
    _refuse_missing(path, sorted(loaded["missing_keys"]))
    if mismatched := sorted(str(each[0]) for each in loaded["mismatched_keys"]):
        raise CheckpointError(
            f"{path} holds {len(mismatched)} tensors in another shape than its config.json implies, "
            f"{listed(mismatched)}: the two belong to different models"
        )


def _refuse_incomplete(path: Path) -> None:
    """Raise `CheckpointError` if a GPTQ or AWQ folder lacks a tensor: GPTQModel would make the weight random.

    Compares the names of the stored tensors with the parameters of transformers' architecture.
    """
    from zeropoint.checkpoint.architecture import build_meta_model, config_from
    from zeropoint.checkpoint.resolve import missing_parameters

    stored = set(open_files(weight_files(path)))
    modules = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    _refuse_missing(
        path, sorted({f"{each}.{leaf}" for each in modules for leaf in ("qzeros", "scales")} - stored)
    )
    config = load_json(path / "config.json", error=CheckpointError)
    del config["quantization_config"]
    model = build_meta_model(config_from(path, config), allow_remote_code=False)
    _refuse_missing(path, missing_parameters(model, {*stored, *(f"{each}.weight" for each in modules)}))


def _refuse_missing(path: Path, names: Sequence[str]) -> None:
    """Raise `CheckpointError` if `names`, the tensors that a folder lacks, are any."""
    if names:
        raise CheckpointError(
            f"{path} lacks {len(names)} tensors that its config.json asks for, {listed(names)}: the download is "
            "incomplete, or the config belongs to another model"
        )
