"""The JSON files of a model folder, read within bounds. Light: what runs a model natively starts with this.

Shared by source checkpoints and artifacts, which fail with different errors: a reader says which class to raise.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from zeropoint.errors import ArtifactError, CheckpointError, ZeropointError

#: The quality card, which makes a folder an artifact.
CARD_NAME = "zeropoint.json"
MAX_CARD_BYTES = 64 << 20
MAX_CONFIG_BYTES = 16 << 20

#: What to do about a folder that is damaged.
ADVICE: dict[type[ZeropointError], str] = {
    ArtifactError: "make the artifact again",
    CheckpointError: "download or copy it again",
}


def load_json(
    path: Path, limit: int = MAX_CONFIG_BYTES, error: type[ZeropointError] = ArtifactError
) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes. Raises `error`, `ArtifactError` or `CheckpointError`."""
    advice = ADVICE[error]
    try:
        if path.stat().st_size > limit:
            raise error(f"{path} is larger than {limit >> 20} MB: it is not a model's {path.name}")
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constants)
    except FileNotFoundError:
        raise error(f"{path} is missing, so its folder is not complete: {advice}") from None
    except (OSError, ValueError, RecursionError) as cause:
        raise error(f"{path} is not valid JSON ({cause}): {advice}") from cause
    if not isinstance(data, dict):
        raise error(f"{path} does not hold a JSON object: {advice}")
    return data


def json_digest(value: Any) -> str:
    """sha256 of a plain JSON value, the same in whatever order its keys stand, as hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _no_constants(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")
