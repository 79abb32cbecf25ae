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
from zeropoint.progress import Progress

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
    wanted = {name: _dtype(checkpoint, name) for name in (request.reference.dtype, *sorted(dtypes))}
    models = {dtype: _streamed(checkpoint, windows, dtype) for dtype in dict.fromkeys(wanted.values())}
    files = {dtype: HiddenStates(folder, {**key, "dtype": str(dtype)}) for dtype in models}
    for number, (dtype, model) in enumerate(models.items()):
        share = _BLOCKS_SHARE / len(models)
        model.run(
            files[dtype], _told(step, f"blocks in {str(dtype).removeprefix('torch.')}", number * share, share)
        )
    reference = models[wanted[request.reference.dtype]]
    own = {name: models[wanted[name]] for name in dtypes}
    recorder = None if folder is None or not checkpoint.path.is_dir() else reference.recorder()
    run = measure_quality(
        recorder or reference,
        own,
        windows=windows,
        seed=request.seed,
        resamples=request.resamples,
        progress=_told(step, "scores", _BLOCKS_SHARE, 1 - _BLOCKS_SHARE),
    )
    entries = {name: quality.to_json() for name, quality in run.candidates.items()}
    recording = None if recorder is None else recorder.remembered()
    kept = None if recording is None else reference_cache.Kept(*recording, entries)
    if folder is not None and kept is not None and reference_cache.write(folder, key, kept):
        for file in files.values():
            file.forget()  # the results replace the hidden states
    del models, model, own, recorder, recording, kept
    release()
    return reference, entries


def _streamed(checkpoint: Checkpoint, windows: Windows, dtype: torch.dtype) -> StreamedModel:
    """Return the streamed model. Raises `UnsupportedError` if the model has no list of blocks."""
    try:
        return StreamedModel(checkpoint, windows, dtype)
    except CheckpointError as cause:
        raise UnsupportedError(str(cause)) from cause


def _dtype(checkpoint: Checkpoint, name: str) -> torch.dtype:
    """Return the torch dtype of a name; `auto` is the checkpoint's own."""
    dtype: torch.dtype = checkpoint.own_dtype() if name == "auto" else getattr(torch, name)
    return dtype


def _told(step: Progress, what: str, start: float, share: float) -> Callable[[float], None]:
    """Return a callback that gets the finished fraction of a step, which is a `share` of the whole from `start` on."""
    return lambda done: step(what, start + share * done)
