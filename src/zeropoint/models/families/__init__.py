"""One file a family, named like config.json's model_type: `derive(config) -> DecoderRecord`, found by name."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from zeropoint.errors import UnsupportedError
from zeropoint.models.config import Config
from zeropoint.models.record import DecoderRecord


def families() -> tuple[str, ...]:
    """The model types that the native engine knows."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def derive(data: Mapping[str, Any]) -> DecoderRecord:
    """The record of the model that a config.json describes.

    Raises `UnsupportedError` with the field and the value that the engine does not cover.
    """
    model_type = data.get("model_type")
    if not isinstance(model_type, str) or not re.fullmatch(r"[a-z0-9_]+", model_type):
        raise UnsupportedError(
            f"config.json has model_type = {str(model_type)[:60]!r}, which is no family's name"
        )
    if model_type not in families():
        raise UnsupportedError(
            f"config.json has model_type = {model_type!r}, which the native engine does not cover"
        )
    config = Config(data)
    config.only("is_encoder_decoder", False)
    config.only("add_cross_attention", False)
    record: DecoderRecord = import_module(f"{__name__}.{model_type}").derive(config)
    config.finish()
    return record
