"""Cost tables kept in a file, so that another budget for the same model on the same machine costs no measuring.

The file names what it was measured with; of anything else it is refused, never used silently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zeropoint.errors import UsageError
from zeropoint.jsonfile import MAX_CONFIG_BYTES
from zeropoint.planning.solver import CostTable

TABLES_VERSION = 1


def read_table(path: Path, key: Mapping[str, Any]) -> CostTable | None:
    """The table in a file; None when there is no file yet.

    Raises `UsageError` when the file is damaged or was measured with another `key`, naming what differs.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("it is too large")
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["tables_version"] != TABLES_VERSION:
            raise ValueError(f"its version is {data['tables_version']!r}, not {TABLES_VERSION}")
        found, table = dict(data["measured_with"]), dict(data["table"])
        arrays = {name: np.array(table.pop(name), np.float64) for name in ("nbytes", "seconds", "loss")}
        groups, formats = tuple(table.pop("groups")), tuple(table.pop("formats"))
        if any(array.shape != (len(groups), len(formats)) for array in arrays.values()):
            raise ValueError("its arrays do not fit its groups and formats")
        read = CostTable(groups, formats, arrays["nbytes"], arrays["seconds"], arrays["loss"], **table)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise UsageError(
            f"{path} is not a file of cost tables ({cause}): name another, or remove it"
        ) from cause
    for name, value in key.items():
        if found.get(name) != value:
            raise UsageError(
                f"the cost tables in {path} were measured with another {name} ({found.get(name)!r}, now {value!r}): "
                "name another file, or remove this one to measure again"
            )
    return read


def table_text(table: CostTable, key: Mapping[str, Any]) -> str:
    """The file's content."""
    values = {name: getattr(table, name).tolist() for name in ("nbytes", "seconds", "loss")}
    rest = {
        "groups": table.groups,
        "formats": table.formats,
        "fixed_nbytes": table.fixed_nbytes,
        "fixed_seconds": table.fixed_seconds,
    }
    data = {"tables_version": TABLES_VERSION, "measured_with": dict(key), "table": rest | values}
    return json.dumps(data, indent=1) + "\n"
