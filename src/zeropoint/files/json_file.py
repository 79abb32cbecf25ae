"""The JSON files of a model folder, read within bounds. Light: what runs a model natively starts with this.

Shared by source checkpoints and artifacts, which fail with different errors: a reader says which class to raise.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from importlib import import_module
from math import inf, isfinite
from pathlib import Path
from typing import Any

from zeropoint.errors import ArtifactError, CheckpointError, ZeropointError

#: The quality card, which makes a folder an artifact.
CARD_NAME = "zeropoint.json"
MAX_CARD_BYTES = 64 << 20
MAX_CONFIG_BYTES = 16 << 20

#: Levels of objects and lists within each other; a model's own files have six.
MAX_DEPTH = 64

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
        data = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path} is missing, so its folder is not complete: {advice}") from None
    except (OSError, ValueError) as cause:
        raise error(f"{path} is not valid JSON ({cause}): {advice}") from cause
    if not isinstance(data, dict):
        raise error(f"{path} does not hold a JSON object: {advice}")
    return data


def parse_json(text: str | bytes) -> Any:
    """A JSON value that says one thing: every key once, every number finite, every text Unicode, nothing nested deeper
    than `MAX_DEPTH`. Python's own parser takes more, of which later code would fail far from the file's name. An open
    range `[0.0, Infinity]`, as transformers writes it for Mamba, is one thing too.

    Raises `ValueError` with what is wrong.
    """
    try:
        data = json.loads(text, parse_constant=_infinity, parse_float=_finite, object_pairs_hook=_once_each)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    _check_values(data)
    return data


def json_digest(value: Any) -> str:
    """sha256 of a plain JSON value, the same in whatever order its keys stand, as hex."""
    return short_sha256(json.dumps(value, sort_keys=True).encode())


def short_sha256(data: bytes) -> str:
    """Return the sha256 of some kilobytes as hex, by CPython's own code where there is such.

    `hashlib` loads OpenSSL, 3.6 MB of memory that running a small model does without.
    """
    for module in ("_sha256", "_sha2", "hashlib"):  # CPython 3.11; 3.12 and later; anywhere
        with suppress(ImportError):
            return str(import_module(module).sha256(data).hexdigest())
    raise AssertionError("hashlib is part of Python")


def _infinity(text: str) -> float:
    if text == "NaN":
        raise ValueError("NaN is not a JSON number")
    return float(text)


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {counts.most_common(1)[0][0][:60]!r} is given twice")
    return found


def _check_values(data: Any) -> None:
    """Raise `ValueError` for half of a surrogate pair, which no file can hold, for infinity unless it is the end of a
    range, and for what lies too deep."""
    level, depth = [data], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deep")
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below += (*each, *each.values())
            elif isinstance(each, list):
                below += each[:1] if len(each) == 2 and each[1] == inf else each
            elif isinstance(each, str) and not each.isascii():
                each.encode()
            elif isinstance(each, float) and not isfinite(each):
                raise ValueError("Infinity is not a JSON number")
        level = below
