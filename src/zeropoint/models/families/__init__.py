"""The model families of the native engine: one module per `model_type`, found by name, with `derive(config)`.

A new family needs more than a module here (config fields, tests, docs, GGUF): CONTRIBUTING.md, "Add a model family",
has the whole list.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from zeropoint.errors import UnsupportedError
from zeropoint.models import fields
from zeropoint.models.config import Config
from zeropoint.models.spec import ModelSpec


def families() -> tuple[str, ...]:
    """Return the model types that the native engine supports, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def engine_of(data: Mapping[str, Any]) -> dict[str, str]:
    """Return `{"name", "reason"}`: the engine that runs a model of this config.json, and why it is not the native one.

    The name is `native` (with an empty reason) or `universal` (the torch runtime).
    """
    try:
        derive(data)
    except UnsupportedError as reason:
        return {"name": "universal", "reason": str(reason)}
    return {"name": "native", "reason": ""}


def derive(data: Mapping[str, Any]) -> ModelSpec:
    """Return the spec of the model that a config.json describes.

    Raises `UnsupportedError` naming the field and the value that the native engine does not support.
    """
    model_type = data.get("model_type")
    if not isinstance(model_type, str) or not re.fullmatch(r"[a-z0-9_]+", model_type):
        raise UnsupportedError(
            f"config.json has model_type = {str(model_type)[:60]!r}, which is no family's name"
        )
    text = data.get("text_config")
    if model_type not in families() and isinstance(text, Mapping):
        raise UnsupportedError(
            f"config.json has model_type = {model_type!r}, a model of several parts (text and others), which "
            "the native engine does not cover; it may cover a checkpoint of the text part alone (model_type = "
            f"{str(text.get('model_type'))[:60]!r})"
        )
    if model_type not in families():
        raise UnsupportedError(
            f"config.json has model_type = {model_type!r}, which the native engine does not cover"
        )
    config = Config(fields.under_own_names(model_type, data))
    config.only("is_encoder_decoder", False)
    config.only("is_causal", True)
    record: ModelSpec = import_module(f"{__name__}.{model_type}").derive(config)
    # this family has full attention only; transformers' cache reads the field
    if config.unread("layer_types"):
        config.only("layer_types", ["full_attention"] * record.config.layers)
    config.finish(fields.read_by(model_type))
    return record
