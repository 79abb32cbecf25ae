"""The reference model of a quality run, block by block: its logits, and the quality of its own runs in other dtypes.

Memory holds one transformer block and the hidden states of the text, then the output heads. `paired_models.py` opens
the artifacts only after that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from zeropoint.checkpoint import Checkpoint, open_checkpoint
from zeropoint.errors import CheckpointError, UnsupportedError
from zeropoint.evaluate.quality.token_scores import measure_quality
from zeropoint.evaluate.quality.windows import Windows
from zeropoint.evaluate.worker import reference_cache
from zeropoint.evaluate.worker.hidden_states import HiddenStates
from zeropoint.evaluate.worker.messages import QualityRequest
from zeropoint.evaluate.worker.streamed_model import StreamedModel
from zeropoint.machine.heap import release
from zeropoint.progress import Progress, part

#: Approximate share of the time that the blocks take; the rest is for the scores of the model's own runs.
_BLOCKS_SHARE = 0.9


def stream_reference(
    request: QualityRequest,
    windows: Windows,
    folder: Path | None,
    key: Mapping[str, Any],
    dtypes: set[str],
    step: Progress,
) -> tuple[StreamedModel, Mapping[str, Mapping[str, Any]]]:
    """Return the float32 model of a request, and the quality entry of its run in each of `dtypes`.

    The results go into the cache `folder` (None: nowhere) under `key`, and so do the hidden states of an interrupted
    run, which the next call continues. Raises `UnsupportedError` if the model cannot be run block by block.
    """
    torch.set_num_threads(request.threads)
    checkpoint = open_checkpoint(request.reference.path)
    models: dict[str, StreamedModel] = {}
    files: dict[str, HiddenStates] = {}
    for dtype in (request.reference.dtype, *sorted(dtypes)):
        model = _streamed(checkpoint, windows, dtype)
        if all(model.dtype != other.dtype for other in models.values()):
            files[dtype] = HiddenStates(folder, {**key, "dtype": str(model.dtype)})
            models[dtype] = model
    for number, (dtype, model) in enumerate(models.items()):
        share = _BLOCKS_SHARE / len(models)
        named = part(step, number * share, share)
        assert named is not None
        model.run(files[dtype], _told(named, f"blocks in {str(model.dtype).removeprefix('torch.')}"))
    reference = models[request.reference.dtype]
    own = {
        dtype: next(m for m in models.values() if m.dtype == _dtype(checkpoint, dtype)) for dtype in dtypes
    }
    run = measure_quality(
        reference,
        own,
        windows=windows,
        seed=request.seed,
        resamples=request.resamples,
        progress=lambda done: step("scores", _BLOCKS_SHARE + (1 - _BLOCKS_SHARE) * done),
    )
    entries = {dtype: quality.to_json() for dtype, quality in run.candidates.items()}
    inputs = reference.head_inputs()
    stored = None if inputs is None else checkpoint.stored_name(inputs[0])
    if folder is not None and inputs is not None and stored is not None and checkpoint.path.is_dir():
        kept = reference_cache.Kept(stored, inputs[1], entries)
        if reference_cache.write(folder, key, kept):  # it replaces the hidden states
            for file in files.values():
                file.forget()
    models.clear()
    own.clear()
    release()
    return reference, entries


def _streamed(checkpoint: Checkpoint, windows: Windows, dtype: str) -> StreamedModel:
    """Return the streamed model. Raises `UnsupportedError` if the model has no list of blocks."""
    try:
        return StreamedModel(checkpoint, windows, dtype)
    except CheckpointError as cause:
        raise UnsupportedError(str(cause)) from cause


def _dtype(checkpoint: Checkpoint, dtype: str) -> torch.dtype:
    """Return the torch dtype of a name; `auto` is the checkpoint's own."""
    result: torch.dtype = checkpoint.own_dtype() if dtype == "auto" else getattr(torch, dtype)
    return result


def _told(step: Progress, what: str) -> Callable[[float], None]:
    """Return a callback that passes a fraction on to `step` under the name `what`."""
    return lambda done: step(what, done)
