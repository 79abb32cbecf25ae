"""The opened models of a quality run, and the token windows that all of them read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UnsupportedError, UsageError, ZeropointError
from zeropoint.evaluate.quality.token_scores import LogitsSource
from zeropoint.evaluate.quality.windows import EvaluationText, Reader, Windows, make_windows
from zeropoint.evaluate.worker import reference_cache
from zeropoint.evaluate.worker.messages import ModelToOpen, QualityRequest, Run
from zeropoint.files.user_folder import default_folder
from zeropoint.predictions import reference_in_memory, refuse_large
from zeropoint.progress import Progress
from zeropoint.runtime import reference_engine
from zeropoint.runtime.protocol import Runner
from zeropoint.sources import open_source

Open = Callable[[ModelToOpen], Runner]
Entries = Mapping[str, Mapping[str, Any]]
"""Quality entries by candidate name."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairing:
    """The models of a quality run.

    `candidates` are measured against the reference model `reference` on `windows`. `known`: quality entries of further
    candidates, which were cached or streamed; `runs`: how the streamed ones ran. `keep`: callback that gets the
    measured entries. `runner`: the reference model's runner, None if its logits come from the cache or block by block.
    """

    reference: LogitsSource
    candidates: Mapping[str, Runner]
    windows: Windows
    runner: Runner | None
    known: Entries = field(default_factory=dict)
    runs: Mapping[str, Run] = field(default_factory=dict)
    keep: Callable[[Entries], None] = lambda entries: None


def pair(request: QualityRequest, text: EvaluationText, opener: Open, step: Progress) -> Pairing:
    """Open the models of a quality request.

    With a cache folder `keep` in the request, results of the reference model, and of candidates that are the same
    checkpoint in another dtype, come from the cache if they are there. `step` gets the progress of a streamed reference
    model. Raises `ZeropointError` if a candidate tokenizes text differently, `UnsupportedError` if the reference model
    can neither be streamed nor held in memory, and each model's own errors.
    """
    models, reference = request.candidates, request.reference
    folder = None
    if reference.engine == reference_engine().NAME:
        if request.streamed:
            try:
                streamed = _stream(request, text, step)
            except UnsupportedError as why:
                _refuse_large(request, why)
            else:
                return _beside(streamed, request, text, opener)
        folder = None if request.keep is None else Path(request.keep)
    own = [name for name, model in models.items() if folder is not None and model.path == reference.path]
    candidates = {name: opener(model) for name, model in models.items() if name not in own}
    if folder is not None and own and candidates:
        windows = _cut(request, text, next(iter(candidates.values())))
        cached = reference_cache.read(folder, reference_cache.key(request, windows))
        if cached is not None and all(models[name].dtype in cached.entries for name in own):
            known = {name: cached.entries[models[name].dtype] for name in own}
            return Pairing(_CachedLogits.of(cached, windows, request), candidates, windows, None, known)
    runner = opener(reference)
    candidates |= {name: opener(models[name]) for name in own}
    _check_tokenizers(candidates, runner, text)
    windows = _cut(request, text, runner)
    if folder is None or not own:
        return Pairing(runner, candidates, windows, runner)
    return _recorded(folder, request, runner, candidates, windows, own)


@dataclass(frozen=True, slots=True, eq=False)
class _Streamed:
    """The reference model's logits on `windows`, the entries of its own runs by candidate name, and its tokenizer."""

    logits: LogitsSource
    entries: Entries
    windows: Windows
    tokenizer: Reader


def _stream(request: QualityRequest, text: EvaluationText, step: Progress) -> _Streamed:
    """Run the reference model block by block, or take its results from the cache.

    Raises `UnsupportedError` if the model cannot be run block by block.
    """
    from zeropoint.checkpoint.tokenizer import load_tokenizer
    from zeropoint.sources.texts import text_folder

    path = request.reference.path
    folder = default_folder() if request.keep is None else Path(request.keep)
    tokenizer = load_tokenizer(str(text_folder(Path(path))))
    windows = _cut(request, text, tokenizer)
    own = {name: model.dtype for name, model in request.candidates.items() if model.path == path}
    key = reference_cache.key(request, windows)
    cached = None if folder is None else reference_cache.read(folder, key)
    logits: LogitsSource
    if cached is not None and set(own.values()) <= cached.entries.keys():
        logits, entries = _CachedLogits.of(cached, windows, request), cached.entries
    else:
        from zeropoint.evaluate.worker.streamed_reference import stream_reference

        logits, entries = stream_reference(request, windows, folder, key, set(own.values()), step)
    return _Streamed(logits, {name: entries[dtype] for name, dtype in own.items()}, windows, tokenizer)


def _beside(streamed: _Streamed, request: QualityRequest, text: EvaluationText, opener: Open) -> Pairing:
    """Open the candidates beside a streamed reference model."""
    models = {name: model for name, model in request.candidates.items() if name not in streamed.entries}
    candidates = {name: opener(model) for name, model in models.items()}
    _check_tokenizers(candidates, streamed.tokenizer, text)
    run = Run("transformers", "", open_source(request.reference.path).nbytes())
    runs = dict.fromkeys(streamed.entries, run)
    return Pairing(streamed.logits, candidates, streamed.windows, None, streamed.entries, runs)


def _refuse_large(request: QualityRequest, why: UnsupportedError) -> None:
    """Raise `UnsupportedError` if the reference model, which cannot be streamed because of `why`, does not fit."""
    needed = reference_in_memory(open_source(request.reference.path), request.context)
    try:
        refuse_large("in float32 it", needed, "use a machine with more memory")
    except UsageError as large:
        raise UnsupportedError(f"{why}, and {large}") from why


def _check_tokenizers(candidates: Mapping[str, Runner], reference: Reader, text: EvaluationText) -> None:
    """Raise `ZeropointError` if a candidate reads a sample of the text as other tokens than the reference model."""
    sample = text.documents[0][:2000]
    for name, candidate in candidates.items():
        if candidate.encode(sample) != reference.encode(sample):
            raise ZeropointError(f"{name} and the reference read text with different tokenizers")


def _cut(request: QualityRequest, text: EvaluationText, reader: Reader) -> Windows:
    """Return the windows that a quality request asks for."""
    return make_windows(text, reader, tokens=request.tokens, context=request.context)


def _recorded(
    folder: Path,
    request: QualityRequest,
    runner: Runner,
    candidates: Mapping[str, Runner],
    windows: Windows,
    own: list[str],
) -> Pairing:
    """Return a pairing that writes the reference model's results into the cache, if they can be recorded."""
    from zeropoint.runtime.torch_engine.recorder import Recorder

    recorder = Recorder.of(runner, request.reference.path)
    if recorder is None:
        return Pairing(runner, candidates, windows, runner)

    def keep(entries: Entries) -> None:
        """Write the recording and the entries of the reference model's own runs into the cache."""
        if (recording := recorder.remembered()) is not None:
            mine = {request.candidates[name].dtype: entries[name] for name in own}
            key = reference_cache.key(request, windows)
            reference_cache.write(folder, key, reference_cache.Kept(*recording, mine))

    return Pairing(recorder, candidates, windows, runner, keep=keep)


class _CachedLogits:
    """The reference model's logits, computed from the cached inputs of its output head."""

    def __init__(self, windows: Windows, logits: Callable[[int], NDArray[np.float32]]) -> None:
        self._index = {window.tobytes(): i for i, window in enumerate(windows.tokens)}
        self._logits = logits

    @classmethod
    def of(cls, results: reference_cache.Kept, windows: Windows, request: QualityRequest) -> _CachedLogits:
        """Return the logits of cached results, with the output head of the request's reference model."""
        from zeropoint.runtime.torch_engine.head import Head

        head = Head.open(request.reference.path, results.head, results.inputs, threads=request.threads)
        return cls(windows, head.window)

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logits of one of the windows. Raises `KeyError` for other tokens."""
        return self._logits(self._index[tokens.tobytes()])
