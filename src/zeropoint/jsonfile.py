"""The JSON files of a model folder, read within bounds. Light: what runs a model natively starts with this."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zeropoint.errors import ArtifactError

#: The quality card, which makes a folder an artifact.
CARD_NAME = "zeropoint.json"
MAX_CARD_BYTES = 64 << 20
MAX_CONFIG_BYTES = 16 << 20


def load_json(path: Path, limit: int) -> dict[str, Any]:
    """A JSON object from a file of bounded size. Raises `ArtifactError`."""
    try:
        if path.stat().st_size > limit:
            raise ArtifactError(f"{path} is larger than {limit >> 20} MB: it is not a file of ours")
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constants)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: this is not a complete Zeropoint artifact") from None
    except (OSError, ValueError, RecursionError) as cause:
        raise ArtifactError(f"{path} is not valid JSON ({cause}): make the artifact again") from cause
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} does not hold a JSON object: make the artifact again")
    return data


def _no_constants(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")
