"""Loading a model into the native decoder: an artifact through its packed file, a checkpoint by packing its weights.

Tensor readers are imported only when weights must be packed: a start from a packed file saves their import time and
memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zeropoint.errors import ArtifactError, CheckpointError, SchemeError, UnsupportedError
from zeropoint.files import identity
from zeropoint.files.json_file import CARD_NAME, MAX_CARD_BYTES, load_json
from zeropoint.files.shards import shard_files
from zeropoint.machine.heap import trim
from zeropoint.models.families import derive
from zeropoint.models.spec import ModelSpec
from zeropoint.runtime.native import kept, library, store
from zeropoint.runtime.native.library import Decoder
from zeropoint.runtime.native.packed_weights import Packed, PackedWeights, collect, pack_stream
from zeropoint.sources.records import derive_stored
from zeropoint.sources.source import Source
from zeropoint.values.qtensor import QuantizedTensor, Weight
from zeropoint.values.scheme import Activation

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A loaded decoder, its config.json, and the bytes of its weights in memory and of its tensors on disk."""

    decoder: Decoder
    config: Mapping[str, Any]
    weights_bytes: int
    stored_bytes: int


def load(folder: Path) -> Loaded:
    """Load an artifact, a checkpoint folder or a GGUF file.

    Raises `UnsupportedError` if the native engine does not support the model, `ArtifactError` or `CheckpointError` if
    the files are damaged.
    """
    if not (folder / CARD_NAME).is_file():
        return load_checkpoint(folder)
    config, record = _artifact_record(folder)
    decoder, nbytes = open_artifact(folder, record)
    stored = sum(_tensor_bytes(file) for file in folder.glob("*.safetensors"))
    return Loaded(decoder, config, nbytes, stored)


def pack(folder: Path) -> tuple[ModelSpec, PackedWeights]:
    """Return the spec and the weights, packed in memory, of a model; raises as `load`."""
    if not (folder / CARD_NAME).is_file():
        from zeropoint.sources import open_source

        return _packed_checkpoint(open_source(folder))
    _, record = _artifact_record(folder)
    return record, collect(_packed(folder, record))


@dataclass(frozen=True, slots=True, eq=False)
class Description:
    """A model before its weights are read: its config.json, its spec, the files that hold it, and the bytes of its
    tensors on disk."""

    config: Mapping[str, Any]
    record: ModelSpec
    files: tuple[Path, ...]
    stored_bytes: int


def describe(folder: Path) -> Description:
    """Return what is known of an artifact, a checkpoint folder or a GGUF file from its headers; raises as `load`."""
    library.load()
    if (folder / CARD_NAME).is_file():
        config, record = _artifact_record(folder)
        weights = tuple(shard_files(folder, ArtifactError))
        files = (*weights, folder / CARD_NAME, folder / "config.json")
        return Description(config, record, files, sum(map(_tensor_bytes, weights)))
    from zeropoint.sources import open_source, records

    source = open_source(folder)
    record = records.describe(source).record
    config_file = [file for file in [folder / "config.json"] if file.is_file()]
    return Description(source.config, record, (*source.files, *config_file), source.nbytes())


def check(folder: Path) -> None:
    """Raise `UnsupportedError` if the native engine does not support the model of this config.json; read no weights."""
    library.load()
    derive(_config(folder))


def _artifact_record(folder: Path) -> tuple[dict[str, Any], ModelSpec]:
    """Return an artifact's config and model spec. An output head that the plan names is used even if the config says
    that it is tied to the embedding."""
    config = _config(folder)
    plan = load_json(folder / CARD_NAME, MAX_CARD_BYTES).get("plan")
    names = plan.get("choices") if isinstance(plan, Mapping) else None
    return config, derive_stored(config, names if isinstance(names, Mapping) else ())


def _config(folder: Path) -> dict[str, Any]:
    """Return config.json. Raises `ArtifactError` or `CheckpointError`, depending on the folder, if it is damaged."""
    error = ArtifactError if (folder / CARD_NAME).is_file() else CheckpointError
    return load_json(folder / "config.json", error=error)


# -- artifacts ------------------------------------------------------------------------------------


def open_artifact(folder: Path, record: ModelSpec) -> tuple[Decoder, int]:
    """Return an artifact's decoder and the bytes of its weights in memory.

    The weights come from the packed file in the user's cache. If that file is missing, damaged or not owned by the
    user, it is written again; if it cannot be written, the weights are packed in memory. An artifact that differs from
    its card is run all the same, with a warning in the log. Raises `ArtifactError` if the artifact is damaged or
    changes while it is read.
    """
    card = load_json(folder / CARD_NAME, MAX_CARD_BYTES)
    states, standing = identity.file_states(folder), identity.standing(folder, card)
    if standing.doubts:
        logger.warning("%s", standing.sentence(folder))
    key = kept.packed_key(card, record, standing.tensors)
    try:
        path = kept.place(key)
    except OSError as cause:
        logger.info("packing in memory: the user's cache cannot be used (%s)", cause)
        path = None
    opened = None if path is None else _from_cache(folder, path, key, record)
    if opened is None:
        try:
            packed_weights = collect(_packed(folder, record))
        finally:
            trim()
        opened = packed_weights.decoder(record), packed_weights.nbytes
    if identity.file_states(folder) != states:
        raise ArtifactError(f"the weights in {folder} changed while they were read: try again")
    return opened


def _from_cache(folder: Path, path: Path, key: str, record: ModelSpec) -> tuple[Decoder, int] | None:
    """Return the decoder and its bytes from the packed file `path`, writing the file first if needed.

    Returns None if the file cannot be written and read back.
    """
    try:
        opened = _kept(path, key, record)
        kept.used(path)
        return opened
    except FileNotFoundError:
        logger.info("packing %s for the native engine, once", folder)
    except OSError as cause:
        logger.warning("the packed file %s is not used, it %s: packing again", path, cause.strerror)
    except store.StoreError as cause:
        logger.warning("the packed file %s %s: packing again", path, cause)
    try:
        kept.make_room(path, sum(_tensor_bytes(file) for file in shard_files(folder, ArtifactError)))
        store.write(path, key, _packed(folder, record))
        return _kept(path, key, record)
    except (OSError, store.StoreError) as cause:
        logger.info("the packed file %s cannot be kept (%s): packing in memory", path, cause)
        return None
    finally:
        trim()


def _kept(path: Path, key: str, record: ModelSpec) -> tuple[Decoder, int]:
    """Return the decoder and its bytes from the packed file.

    Raises like `store.read`, and `StoreError` if the file's weights do not fit the model spec.
    """
    packed_weights = store.read(path, key)
    try:
        return packed_weights.decoder(record), packed_weights.nbytes
    except (ArtifactError, SchemeError, UnsupportedError) as cause:
        raise store.StoreError(f"does not fit the model ({cause})") from cause


def _packed(folder: Path, record: ModelSpec) -> Iterator[Packed]:
    """Yield the packed weights of an artifact, read from its safetensors files."""
    from zeropoint import artifact

    return pack_stream(record, artifact.open(folder).stream())


def _tensor_bytes(path: Path) -> int:
    """Return the bytes of a safetensors file's tensors, without its header."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


# -- checkpoints ----------------------------------------------------------------------------------


def load_checkpoint(path: Path) -> Loaded:
    """Load a checkpoint folder, or a GGUF file with the quantized values that it stores.

    Raises `CheckpointError` if the files are damaged, `UnsupportedError` if only the torch runtime can run the model.
    """
    from zeropoint.sources import open_source

    source = open_source(path)
    record, packed_weights = _packed_checkpoint(source)
    return Loaded(packed_weights.decoder(record), source.config, packed_weights.nbytes, source.nbytes())


def _packed_checkpoint(source: Source) -> tuple[ModelSpec, PackedWeights]:
    """Return a checkpoint's model spec and its weights, packed in memory."""
    from zeropoint.sources.records import describe

    described = describe(source)
    for note in described.notes:
        logger.warning("%s", note)
    stream = ((own, _weight(source, stored)) for own, stored in described.stored.items())
    packed_weights = collect(pack_stream(described.record, stream))
    trim()
    return described.record, packed_weights


def _weight(source: Source, name: str) -> Weight:
    """Return one weight, quantized as the source stores it; the activations have 16 bits if the source sets none."""
    weight = source.weight(name)
    if not isinstance(weight, QuantizedTensor):
        return source.read(name)
    if weight.scheme.activation is None:
        return replace(weight, scheme=replace(weight.scheme, activation=Activation(16)))
    return weight
