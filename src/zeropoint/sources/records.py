"""A source held against the native engine's record of its family, by headers alone and without torch."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from zeropoint.errors import UnsupportedError
from zeropoint.models.families import derive
from zeropoint.models.spec import ModelSpec
from zeropoint.sources.names import match
from zeropoint.sources.source import Source, Wanted


@dataclass(frozen=True, slots=True, eq=False)
class Described:
    """The record of a source, the stored tensor that each of its names is, and what a user should hear of the files."""

    record: ModelSpec
    stored: Mapping[str, str]
    notes: tuple[str, ...]


def describe(source: Source) -> Described:
    """Return a source's record and where its tensors are.

    Of a head and an embedding that the config ties and the files hold as two different tensors, both count, as in
    transformers. Raise `UnsupportedError` for a model that the native engine does not cover, `CheckpointError` for
    tensors that do not fit it.
    """
    record = derive(source.config)
    own = with_own_head(source.config, record)
    embedding, head = own.embedding, own.head
    aliases = {stored: name for name, stored in own.aliases.items()}
    found, unused = match({*record.names(), *own.names()}, source.tensors, record.prefix, aliases)
    if embedding in found and head in found and not source.same(found[embedding][0], found[head][0]):
        record = own
    elif record.head != head:  # one tensor for both, under either name
        found[embedding] = found.get(embedding) or found.get(head, [])
    wanted = [Wanted(name, shape, found.get(name, [])) for name, shape in record.shapes().items()]
    notes = source.check(wanted, unused)
    return Described(record, {each.name: each.stored[0] for each in wanted}, notes)


def derive_stored(config: Mapping[str, Any], names: Container[str]) -> ModelSpec:
    """Return the record of a model that is stored under the record's own `names`, as an artifact is: a head that is
    stored counts, whatever the config says. Raise `UnsupportedError` as `derive` does."""
    record = derive(config)
    own = with_own_head(config, record)
    return own if own.head in names else record


def with_own_head(config: Mapping[str, Any], record: ModelSpec) -> ModelSpec:
    """Return the record of the same model with a head that is not its embedding."""
    if record.head != record.embedding:
        return record
    try:
        return derive({**config, "tie_word_embeddings": False})
    except UnsupportedError:  # a family that knows no other
        return record
