"""From a folder to a filled decoder: an artifact through its packed file, a checkpoint by packing what it holds.

Readers of tensors are imported when there is something to pack: starting from a packed file needs neither their time
nor their memory.
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeropoint.allocator import trim
from zeropoint.errors import ArtifactError, CheckpointError, SchemeError, UnsupportedError
from zeropoint.jsonfile import CARD_NAME, MAX_CARD_BYTES, load_json
from zeropoint.models.families import derive
from zeropoint.models.record import DecoderRecord
from zeropoint.qtensor import Weight as Stored
from zeropoint.runtime.native import library, store
from zeropoint.runtime.native.library import Decoder
from zeropoint.runtime.native.parcel import Packed, Parcel, collect, pack_stream
from zeropoint.shards import shard_files

if TYPE_CHECKING:
    from zeropoint.tensorfile import TensorFile

logger = logging.getLogger(__name__)

#: Tables that older checkpoints store and the model's code computes: masks and rotations.
COMPUTED = re.compile(
    r".*(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias|rotary_emb\.(cos|sin)_cached)"
)


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A decoder, the config it was derived from, and the bytes of its weights in memory and on disk."""

    decoder: Decoder
    config: Mapping[str, Any]
    weights_bytes: int
    stored_bytes: int


def load(folder: Path) -> Loaded:
    """Load an artifact or a checkpoint folder.

    Raises `UnsupportedError` for a model that the native engine does not cover, and the artifact's or checkpoint's
    own errors.
    """
    if (folder / CARD_NAME).is_file():
        config = _config(folder)
        record = derive(config)
        decoder, nbytes = open_artifact(folder, record)
        stored = sum(_tensor_bytes(file) for file in folder.glob("*.safetensors"))
        return Loaded(decoder, config, nbytes, stored)
    config, record, parcel, stored = open_checkpoint(folder)
    return Loaded(parcel.decoder(record), config, parcel.nbytes, stored)


def check(folder: Path) -> None:
    """Raise `UnsupportedError`, without reading weights, when the native engine does not know such a model."""
    library.load()
    derive(_config(folder))


def _config(folder: Path) -> dict[str, Any]:
    """config.json, which is damaged in an artifact or in a checkpoint: what to do differs."""
    error = ArtifactError if (folder / CARD_NAME).is_file() else CheckpointError
    return load_json(folder / "config.json", error=error)


# -- artifacts ------------------------------------------------------------------------------------


def open_artifact(folder: Path, record: DecoderRecord) -> tuple[Decoder, int]:
    """An artifact's decoder and the bytes of its weights, from the packed file beside it, which is made when it is
    missing, stale or damaged. Where it cannot be written the weights are packed in memory."""
    path, key = folder / store.NAME, artifact_key(folder, record)
    try:
        return _kept(path, key, record)
    except FileNotFoundError:
        logger.info("packing %s for the native engine, once", folder)
    except OSError as cause:
        logger.warning("the packed file %s cannot be read (%s): packing again", path, cause.strerror)
    except store.StoreError as cause:
        logger.warning("the packed file %s %s: packing again", path, cause)
    try:
        store.write(path, key, _packed(folder, record))
        return _kept(path, key, record)
    except (OSError, store.StoreError) as cause:
        logger.info("the packed file %s cannot be kept (%s): packing in memory", path, cause)
    finally:
        trim()
    parcel = collect(_packed(folder, record))
    return parcel.decoder(record), parcel.nbytes


def _kept(path: Path, key: str, record: DecoderRecord) -> tuple[Decoder, int]:
    """What the packed file holds. Raises as `store.read` does, `StoreError` also where parts are not the record's."""
    parcel = store.read(path, key)
    try:
        return parcel.decoder(record), parcel.nbytes
    except (ArtifactError, SchemeError, UnsupportedError) as cause:
        raise store.StoreError(f"does not fit the model ({cause})") from cause


def _packed(folder: Path, record: DecoderRecord) -> Iterator[Packed]:
    from zeropoint import artifact

    return pack_stream(record, artifact.open(folder).stream())


def artifact_key(folder: Path, record: DecoderRecord) -> str:
    """What decides an artifact's packed bytes: its plan and layout, how the record cuts its weights, and its files'
    headers, sizes and times. The tensors themselves are not read. Raises `ArtifactError` for an unreadable card."""
    card = load_json(folder / CARD_NAME, MAX_CARD_BYTES)
    plan = json.dumps([card.get("plan"), card.get("layout")], sort_keys=True)
    parts = repr([source for _, _, source in record.linears()])
    files = [[path.name, *_state(path)] for path in sorted(folder.glob("*.safetensors"))]
    return json.dumps([zlib.crc32(plan.encode()), zlib.crc32(parts.encode()), files])


def _state(path: Path) -> tuple[int, int, int]:
    """A file's size, time of change, and its header's CRC."""
    status = path.stat()
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return status.st_size, status.st_mtime_ns, zlib.crc32(file.read(min(length, MAX_CARD_BYTES)))


def _tensor_bytes(path: Path) -> int:
    """Bytes of a safetensors file's tensors, without its header."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


# -- checkpoints ----------------------------------------------------------------------------------


def open_checkpoint(folder: Path) -> tuple[dict[str, Any], DecoderRecord, Parcel, int]:
    """A Hugging Face folder of unquantized safetensors: config, record, weights, bytes on disk.

    Raises `CheckpointError`, and `UnsupportedError` for what only the universal runtime reads.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json: it is not a Hugging Face model folder")
    config = _config(folder)
    if config.get("quantization_config"):
        raise UnsupportedError(f"{folder} is quantized by another program's format")
    record = derive(config)
    from zeropoint.tensorfile import TensorFile

    files = [TensorFile(path) for path in shard_files(folder, CheckpointError)]
    if not files:
        raise UnsupportedError(
            f"{folder} has no safetensors weights, the only ones that the native engine reads"
        )
    parcel = collect(pack_stream(record, _checkpoint_stream(record, files)))
    trim()
    return config, record, parcel, sum(file.nbytes(name) for file in files for name in file.names())


def _checkpoint_stream(record: DecoderRecord, files: list[TensorFile]) -> Iterator[tuple[str, Stored]]:
    """Tensors under the names of the record: base-model checkpoints lack a prefix, some have names of their own,
    and a tied head may be stored beside its embedding."""
    wanted = record.names()
    aliases = {stored: name for name, stored in record.aliases.items()}
    for file in files:
        for stored in file.names():
            name = aliases.get(stored, stored)
            if name not in wanted and record.prefix + name in wanted:
                name = record.prefix + name
            unused = COMPUTED.fullmatch(name) or (name == "lm_head.weight" and name not in wanted)
            if name in wanted or not unused:
                yield name, file.read(stored)
