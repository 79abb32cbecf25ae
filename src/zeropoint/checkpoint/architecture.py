"""Construction of a transformers model on the meta device (shapes without data) from config.json."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from zeropoint.errors import CheckpointError, shorten
from zeropoint.files.json_file import load_json


def load_config(path: Path, *, allow_remote_code: bool) -> Any:
    """Return the transformers config of a model folder.

    Raises `CheckpointError` unless the config is valid and describes a causal LM that transformers knows.
    """
    data = load_json(path / "config.json", error=CheckpointError)
    model_type = data.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(
            f"{path / 'config.json'} names no model_type: it is not a transformers model's config"
        )
    if "auto_map" in data and model_type not in transformers.CONFIG_MAPPING and not allow_remote_code:
        raise CheckpointError(
            f"{path} needs Python code from its own repository (model_type {model_type!r}), which is not run: "
            "read that code, then pass allow_remote_code=True"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = AutoConfig.from_pretrained(path, trust_remote_code=allow_remote_code)
    except (
        Exception
    ) as cause:  # transformers raises many types: unknown model types, bad values, validation errors
        if model_type not in transformers.CONFIG_MAPPING:
            raise CheckpointError(_unknown(path, model_type)) from cause
        raise CheckpointError(
            f"{path / 'config.json'} is not a valid {model_type} config: {_line(cause)}"
        ) from cause
    _check_causal(path, config)
    return config


def _check_causal(path: Path, config: Any) -> None:
    """Raise `CheckpointError` unless the config is that of a causal LM."""
    architectures = getattr(config, "architectures", None) or []
    if not isinstance(architectures, list):
        raise CheckpointError(
            f"{path}: the config's architectures are {str(architectures)[:60]!r}, not a list of names"
        )
    architectures = [str(name) for name in architectures]
    mapped = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if mapped is None and not getattr(config, "auto_map", None):
        raise CheckpointError(
            f"{path} is a {config.model_type} model, which transformers cannot load as a causal language model: "
            "Zeropoint quantizes text generators only"
        )
    # transformers' causal-LM mapping includes encoders (BertLMHeadModel), whose configs have is_decoder = False
    is_encoder = getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", True) is False
    if is_encoder and mapped not in architectures:
        raise CheckpointError(
            f"{path} is an encoder ({', '.join(architectures) or config.model_type}), not a causal language model: "
            "Zeropoint quantizes text generators only"
        )


def build_meta_model(config: Any, *, allow_remote_code: bool) -> torch.nn.Module:
    """Return the causal LM that `config` describes, on the meta device, in eval mode.

    Raises `CheckpointError` if transformers cannot build the model.
    """
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=allow_remote_code)
    except Exception as cause:  # the model's code fails in many ways on a bad config
        raise CheckpointError(
            f"config.json does not describe a {config.model_type} model: {_line(cause)}"
        ) from cause
    built: torch.nn.Module = model.eval()
    return built


def config_from(path: Path, data: Mapping[str, Any]) -> Any:
    """Return the transformers config for the contents `data` of a config.json.

    Raises `CheckpointError` unless `data` is valid and describes a causal LM that transformers knows.
    """
    model_type = data.get("model_type")
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        raise CheckpointError(
            f"{path} has the model_type {str(model_type)[:60]!r}, which transformers does not know"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = AutoConfig.for_model(**data)
    except Exception as cause:  # transformers raises many types: bad values, validation errors
        raise CheckpointError(
            f"{path} is not described by a valid {model_type} config: {_line(cause)}"
        ) from cause
    _check_causal(path, config)
    return config


def empty_model(config: Any, *, allow_remote_code: bool = False) -> Any:
    """Return the float32 causal LM that `config` describes, in eval mode and without weights.

    Parameters are on the meta device; buffers such as RoPE tables hold their values.
    """
    with _parameters_on_meta(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=allow_remote_code
        ).eval()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Move each parameter to the meta device when a module registers it. Buffers are not moved.

    `torch.device("meta")` would also empty the buffers, which only a module's constructor can compute.
    """

    def move(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta:
            return None  # keeps it: tied modules share one parameter
        moved = type(parameter)(parameter.to("meta"), requires_grad=parameter.requires_grad)
        vars(moved).update(vars(parameter))
        return moved

    hook = register_module_parameter_registration_hook(move)
    try:
        yield
    finally:
        hook.remove()


def _unknown(path: Path, model_type: str) -> str:
    """Return the message for a model type that transformers does not know."""
    return (
        f"{path} has the model_type {model_type!r}, which transformers {transformers.__version__} does not know: "
        "upgrade transformers, or check config.json"
    )


def _line(cause: BaseException) -> str:
    """Return another library's error message in one line, without names of exception classes."""
    return shorten(re.sub(r"\b[A-Z]\w*Error: ", "", str(cause)), 200) or type(cause).__name__
