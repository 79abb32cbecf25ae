"""What `check`, `compare` and `bench` need, and whether the reference model is run block by block."""

from __future__ import annotations

from collections.abc import Sequence

from zeropoint.errors import UsageError, ZeropointError
from zeropoint.evaluate.model_description import Model
from zeropoint.machine.detect import Machine
from zeropoint.predictions import (
    TORCH_BYTES,
    Need,
    Sizes,
    reference_in_memory,
    reference_streamed,
    refuse_large,
    running,
    stored_bytes,
)
from zeropoint.runtime import reference_engine
from zeropoint.sources import Source, open_source


def streams(
    models: Sequence[Model], *, engine: str, tokens: int, context: int, asked: bool | None = None
) -> bool:
    """Return whether to run the reference model `models[0]` block by block, on `engine`.

    That is if it was `asked` for, or, without a word on it (None), if the float32 model does not fit into the free
    memory. Raises `UsageError` if there is too little memory either way, or if no model can be streamed as asked for.
    """
    first, *others = models
    if asked and (first.card or first.runtime or engine != reference_engine().NAME):
        raise UsageError(
            f"{first.name} is no original model that runs in transformers, and only such a model runs block by block "
            "(--stream)"
        )
    source = _source(first)
    if source is None or engine != reference_engine().NAME:
        return False
    artifacts = [stored_bytes(model.path) for model in others]
    free = Machine.detect().ram_available_bytes
    whole = reference_in_memory(source, context, artifacts)
    if asked is False or (asked is None and (not free or whole.memory <= free)):
        refuse_large(f"{first.name} in float32", whole, "run it block by block (--stream)")
        return False
    least = reference_streamed(source, tokens, context, artifacts)
    what = f"comparing {', '.join(model.name for model in others)} with {first.name}, block by block,"
    refuse_large(what, least, "read fewer --tokens, or use a machine with more memory")
    return True


def refuse_large_run(model: Model, advice: str, *, exact: bool = False) -> None:
    """Raise `UsageError` if a model (`exact`: in float32) does not fit into the free memory; `advice`: what to do."""
    source = _source(model)
    if source is None:
        need = running(stored_bytes(model.path))
    else:
        numbers = 4 if exact or model.dtype != "bfloat16" else 2
        need = Need(TORCH_BYTES + numbers * Sizes.of(source).parameters)
    refuse_large(f"running {model.name}", need, advice)


def fits_beside(models: Sequence[Model]) -> bool:
    """Return whether the reference model `models[0]`, in its own type, and the artifacts fit into memory together."""
    free = Machine.detect().ram_available_bytes
    return not free or TORCH_BYTES + sum(stored_bytes(model.path) for model in models) <= free


def _source(model: Model) -> Source | None:
    """Return the source of an original model; None for artifacts, other runtimes' files, and unreadable models."""
    if model.card or model.runtime:
        return None
    try:
        return open_source(model.path)
    except (ZeropointError, OSError):  # the measuring process reports the error
        return None
