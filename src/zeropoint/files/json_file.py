"""Reading the JSON files of a model folder, with limits on size and depth.

Source checkpoints and artifacts share these functions; the caller names the error class to raise. The module imports
little, because the native engine starts with it.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from importlib import import_module
from math import inf, isfinite
from pathlib import Path
from typing import Any

from zeropoint.errors import ArtifactError, CheckpointError, ZeropointError, reason

#: File name of the quality card. A folder with this file is an artifact.
CARD_NAME = "zeropoint.json"
MAX_CARD_BYTES = 64 << 20
MAX_CONFIG_BYTES = 16 << 20

#: Deepest nesting of objects and lists; real model files have six levels.
MAX_DEPTH = 64

#: Error class -> the advice for a damaged folder, added to messages.
ADVICE: dict[type[ZeropointError], str] = {
    ArtifactError: "make the artifact again",
    CheckpointError: "download or copy it again",
}


def load_json(
    path: Path, limit: int = MAX_CONFIG_BYTES, error: type[ZeropointError] = ArtifactError
) -> dict[str, Any]:
    """Return the JSON object in a file of at most `limit` bytes.

    Raises `error` (`ArtifactError` or `CheckpointError`) if the file is missing, too large, or no valid JSON object.
    """
    advice = ADVICE[error]
    try:
        if path.stat().st_size > limit:
            raise error(f"{path} is larger than {limit >> 20} MB: it is not a model's {path.name}")
        data = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path} is missing, so its folder is not complete: {advice}") from None
    except OSError as cause:
        raise error(f"{path} cannot be read ({reason(cause)}): {advice}") from cause
    except ValueError as cause:
        raise error(f"{path} is not valid JSON ({cause}): {advice}") from cause
    if not isinstance(data, dict):
        raise error(f"{path} does not hold a JSON object: {advice}")
    return data


def parse_json(text: str | bytes) -> Any:
    """Return a JSON value, parsed more strictly than by `json.loads`.

    Raises `ValueError`, with the reason, for a key given twice, a number that is not finite, a text that is not
    Unicode, and nesting deeper than `MAX_DEPTH`. An open range `[0.0, Infinity]`, which transformers writes for Mamba,
    is allowed. Python's parser accepts all of these, and later code would fail without naming the file.
    """
    try:
        data = json.loads(text, parse_constant=_infinity, parse_float=_finite, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    _check_values(data)
    return data


def json_digest(value: Any) -> str:
    """Return the sha256 of a plain JSON value as hex; the order of keys does not matter."""
    return short_sha256(json.dumps(value, sort_keys=True).encode())


def short_sha256(data: bytes) -> str:
    """Return the sha256 of some kilobytes as hex, computed by CPython's built-in module if there is one.

    `hashlib` would load OpenSSL, which takes 3.6 MB of memory.
    """
    for module in ("_sha256", "_sha2", "hashlib"):  # CPython 3.11; CPython 3.12 and later; any Python
        with suppress(ImportError):
            return str(import_module(module).sha256(data).hexdigest())
    raise AssertionError("hashlib is part of Python")


def _infinity(text: str) -> float:
    """Return infinity, which `_check_values` may refuse; raise `ValueError` for NaN."""
    if text == "NaN":
        raise ValueError("NaN is not a JSON number")
    return float(text)


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {counts.most_common(1)[0][0][:60]!r} is given twice")
    return data


def _check_values(data: Any) -> None:
    """Raise `ValueError` for a lone surrogate, for infinity other than the end of a range, and for nesting too deep."""
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
