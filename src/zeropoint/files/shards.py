"""Finding the safetensors files of a model folder: a single file, or the shards that an index names.

Like transformers, `shard_files` prefers the single file: an index beside it is left over from an earlier save.
"""

from __future__ import annotations

from pathlib import Path

from zeropoint.errors import ZeropointError
from zeropoint.files.json_file import ADVICE, MAX_CARD_BYTES, load_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def shard_files(folder: Path, error: type[ZeropointError]) -> list[Path]:
    """Return the files in name order; an empty list if the folder has neither a single file nor an index.

    Raises `error` if the index is damaged, or names a file outside the folder or a missing one.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        return []
    weight_map = load_json(index, MAX_CARD_BYTES, error).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise error(f"{index} has no weight_map: {ADVICE[error]}")
    if invalid := [name for name in weight_map.values() if not isinstance(name, str)]:
        raise error(f"{index} names the shard {str(invalid[0])[:60]}, which is no text: {ADVICE[error]}")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name:
            raise error(
                f"{index} names the shard {name!r}, which is not a file of this folder: {ADVICE[error]}"
            )
        if not _is_file(folder / name):
            raise error(
                f"{folder} lacks the shard {name}, one of {len(names)} that {INDEX} names: {ADVICE[error]}"
            )
    return [folder / name for name in names]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long
        return False
