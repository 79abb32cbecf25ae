"""The config.json fields that transformers' code of each model family reads, from the table `fields.json`.

A field that this code never reads cannot change what the model computes, and published configs have many such fields.
`tests/models/reads.py` records the table; a test records it again and compares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_TABLE = Path(__file__).with_name("fields.json")


@cache
def _families() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the recorded fields of every family."""
    loaded: dict[str, dict[str, dict[str, Any]]] = json.loads(_TABLE.read_text())["families"]
    return loaded


def read_by(model_type: str) -> Mapping[str, Any]:
    """Return `{field: default}` of the fields that the family's code reads; None if a field has no default."""
    return _families()[model_type]["reads"]


def under_own_names(model_type: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with alternative field names replaced by the family's (GPT-2: `hidden_size` by `n_embd`)."""
    config = dict(data)
    for alternative, own in _families()[model_type]["aliases"].items():
        if alternative in config:
            config[own] = config.pop(alternative)
    return config
