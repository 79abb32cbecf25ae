"""Which safetensors files hold a model folder's weights: one, or the shards that an index names.

The single file comes first, as in transformers: an index beside it is left over from another save.
"""

from __future__ import annotations

from pathlib import Path

from zeropoint.errors import ZeropointError
from zeropoint.files.json_file import ADVICE, MAX_CARD_BYTES, load_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def shard_files(folder: Path, error: type[ZeropointError]) -> list[Path]:
    """Return the files in order; none when the folder has neither an index nor a single file.

    Raises `error` for an index that is damaged, reaches outside the folder, or names a file that is not there.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        return []
    weight_map = load_json(index, MAX_CARD_BYTES, error).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise error(f"{index} has no weight_map: {ADVICE[error]}")
    if strange := [name for name in weight_map.values() if not isinstance(name, str)]:
        raise error(f"{index} names the shard {str(strange[0])[:60]}, which is no text: {ADVICE[error]}")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name:
            raise error(
                f"{index} names the shard {name!r}, which is not a file of this folder: {ADVICE[error]}"
            )
        if not _is_there(folder / name):
            raise error(
                f"{folder} lacks the shard {name}, one of {len(names)} that {INDEX} names: {ADVICE[error]}"
            )
    return [folder / name for name in names]


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than names can be
        return False
