"""The models of a quality run, opened, and the text that all of them read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import ZeropointError
from zeropoint.evaluate import references
from zeropoint.evaluate.quality import LogitsSource
from zeropoint.evaluate.windows import EvaluationText, Windows, make_windows
from zeropoint.runtime.protocol import Runner

Open = Callable[[Mapping[str, Any]], Runner]
Entries = Mapping[str, Mapping[str, Any]]
"""Quality entries by the candidate's name."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairing:
    """`candidates` are to be measured against `reference` on `windows`; `known` are the entries of those that need not
    be, and `keep` is told what was measured. `runner` is the reference's, None where it did not have to be opened."""

    reference: LogitsSource
    candidates: Mapping[str, Runner]
    windows: Windows
    runner: Runner | None
    known: Entries = field(default_factory=dict)
    keep: Callable[[Entries], None] = lambda entries: None


def pair(request: Mapping[str, Any], text: EvaluationText, opener: Open) -> Pairing:
    """Open what has to be opened. With a folder `keep` in the request, the reference and the candidates that are the
    same checkpoint in other types are taken from there, if an earlier run left them.

    Raises `ZeropointError` for models that read text differently, and each model's own errors.
    """
    models, reference = request["candidates"], request["reference"]
    keeping = request["keep"] is not None and reference["engine"] == "universal"
    own = [name for name, model in models.items() if keeping and model["path"] == reference["path"]]
    candidates = {name: opener(model) for name, model in models.items() if name not in own}
    if own and candidates:
        windows = _cut(request, text, next(iter(candidates.values())))
        kept = references.read(Path(request["keep"]), references.key(request, windows))
        if kept is not None and all(models[name]["dtype"] in kept.entries for name in own):
            known = {name: kept.entries[models[name]["dtype"]] for name in own}
            return Pairing(_Kept.of(kept, windows, request), candidates, windows, None, known)
    runner = opener(reference)
    candidates |= {name: opener(models[name]) for name in own}
    sample = text.documents[0][:2000]
    for name, candidate in candidates.items():
        if candidate.encode(sample) != runner.encode(sample):
            raise ZeropointError(f"{name} and the reference read text with different tokenizers")
    windows = _cut(request, text, runner)
    if not own:
        return Pairing(runner, candidates, windows, runner)
    return _recorded(request, runner, candidates, windows, own)


def _cut(request: Mapping[str, Any], text: EvaluationText, runner: Runner) -> Windows:
    return make_windows(text, runner, tokens=request["tokens"], context=request["context"])


def _recorded(
    request: Mapping[str, Any],
    runner: Runner,
    candidates: Mapping[str, Runner],
    windows: Windows,
    own: list[str],
) -> Pairing:
    """As `Pairing`, and remembered for the next time if the reference can be."""
    from zeropoint.runtime.torch_engine.recorder import Recorder

    recorder = Recorder.of(runner, request["reference"]["path"])
    if recorder is None:
        return Pairing(runner, candidates, windows, runner)

    def keep(entries: Entries) -> None:
        if (found := recorder.remembered()) is not None:
            mine = {request["candidates"][name]["dtype"]: entries[name] for name in own}
            key = references.key(request, windows)
            references.write(Path(request["keep"]), key, references.Kept(*found, mine))

    return Pairing(recorder, candidates, windows, runner, keep=keep)


class _Kept:
    """The reference's logits, of windows in the order in which they were kept."""

    def __init__(self, windows: Windows, logits: Callable[[int], NDArray[np.float32]]) -> None:
        self._index = {window.tobytes(): i for i, window in enumerate(windows.tokens)}
        self._logits = logits

    @classmethod
    def of(cls, kept: references.Kept, windows: Windows, request: Mapping[str, Any]) -> _Kept:
        from zeropoint.runtime.torch_engine.head import Head

        head = Head.open(request["reference"]["path"], kept.head, kept.inputs, threads=request["threads"])
        return cls(windows, head.window)

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._logits(self._index[tokens.tobytes()])
