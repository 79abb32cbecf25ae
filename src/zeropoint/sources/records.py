"""The native engine's model spec of a source, checked against the source's tensor headers without torch."""

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
    """A source's model spec, `stored` (name in the spec -> name of the stored tensor), and notes for the user."""

    record: ModelSpec
    stored: Mapping[str, str]
    notes: tuple[str, ...]


def describe(source: Source) -> Described:
    """Return a source's model spec and the stored names of its tensors.

    If the config ties the output head to the embedding but the files hold two different tensors, the model spec has
    both, as in transformers. Raises `UnsupportedError` for a model that the native engine does not support,
    `CheckpointError` if the tensors do not match the spec.
    """
    record = derive(source.config)
    own = with_own_head(source.config, record)
    embedding, head = own.embedding, own.head
    aliases = {stored: name for name, stored in own.aliases.items()}
    stored, unused = match({*record.names(), *own.names()}, source.tensors, record.prefix, aliases)
    if embedding in stored and head in stored and not source.same(stored[embedding][0], stored[head][0]):
        record = own
    elif record.head != head:  # one tensor for both, under either name
        stored[embedding] = stored.get(embedding) or stored.get(head, [])
    parameters = [Wanted(name, shape, stored.get(name, [])) for name, shape in record.shapes().items()]
    notes = source.check(parameters, unused)
    return Described(record, {each.name: each.stored[0] for each in parameters}, notes)


def derive_stored(config: Mapping[str, Any], names: Container[str]) -> ModelSpec:
    """Return the model spec of an artifact, whose tensors have the spec's `names`.

    The spec has a separate output head if `names` includes one, whatever the config says. Raises `UnsupportedError` as
    `derive` does.
    """
    record = derive(config)
    own = with_own_head(config, record)
    return own if own.head in names else record


def with_own_head(config: Mapping[str, Any], record: ModelSpec) -> ModelSpec:
    """Return the spec of the same model with a separate output head, or `record` if the family always ties the head."""
    if record.head != record.embedding:
        return record
    try:
        return derive({**config, "tie_word_embeddings": False})
    except UnsupportedError:  # a family whose head is always tied
        return record
