"""Which fields of a config.json each family's own code reads, as recorded from transformers (`fields.json`).

A field that a family's code never reads cannot change what the model computes, whatever its value: published configs
carry many. `tests/models/reads.py` records the table; a test records it again and compares.
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
    loaded: dict[str, dict[str, dict[str, Any]]] = json.loads(_TABLE.read_text())["families"]
    return loaded


def read_by(model_type: str) -> Mapping[str, Any]:
    """Return `{field: default}` of the fields that the family's code reads. The default, null where there is none,
    is what an absent field means."""
    return _families()[model_type]["reads"]


def under_own_names(model_type: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config's fields with second names replaced: in a GPT-2 config, `hidden_size` sets `n_embd`."""
    found = dict(data)
    for other, own in _families()[model_type]["aliases"].items():
        if other in found:
            found[own] = found.pop(other)
    return found
