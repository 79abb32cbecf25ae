"""Agreement of an exported file with its artifact: each runs in its own runtime, on the same tokens."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeropoint.errors import GateError, UnsupportedError, ZeropointError
from zeropoint.evaluate.model_description import describe
from zeropoint.evaluate.quality.greedy_answers import DEFAULT_PROMPTS
from zeropoint.evaluate.worker import client
from zeropoint.evaluate.worker.messages import ModelToOpen, QualityRequest
from zeropoint.machine.detect import Machine
from zeropoint.progress import Progress
from zeropoint.runtime import external

TOKENS, CONTEXT, NEW_TOKENS = 1000, 256, 64
OWN, EXACT = "the export", "the export in exact arithmetic"


@dataclass(frozen=True, slots=True)
class Closeness:
    """The distance of an exported file from its artifact.

    `kl`: mean KL divergence, in nats per token. `top1`: share of tokens with the same argmax. `same`: number of equal
    greedy tokens before the first difference.
    """

    kl: float
    top1: float
    same: int

    def to_json(self) -> dict[str, Any]:
        return {"kl_divergence": self.kl, "top1_agreement": self.top1, "same_greedy_tokens": self.same}


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement of an exported file with its artifact on `tokens` scored and `answered` greedy tokens.

    `own`: in its runtime's own arithmetic, as users run the file. `exact`: in float32, for a runtime that rounds more
    than the file's format requires; it shows whether the file holds the same weights. `skipped`: why there is no exact
    run. `lossy`: the file was made from the float model, and `own` is its loss against the float model.
    """

    runtime: str
    lossy: bool
    tokens: int
    answered: int
    own: Closeness
    exact: Closeness | None = None
    skipped: str = ""

    def sentences(self) -> list[str]:
        """Return the agreement as sentences."""
        lines = [f"{self.runtime} runs it: {self._describe(self.own)}"]
        if self.exact is not None:
            lines.append(f"in float32, which rounds nothing further: {self._describe(self.exact)}")
        elif self.skipped:
            lines.append(f"not run in float32: {self.skipped}")
        return lines

    def _describe(self, closeness: Closeness) -> str:
        alike = "all" if closeness.same == self.answered else f"the first {closeness.same} of"
        source = "the float model, which is what it loses" if self.lossy else "the artifact"
        return (
            f"KL {closeness.kl:.2g} nats/token from {source}; top-1 {closeness.top1:.1%} of {self.tokens} tokens, "
            f"{alike} {self.answered} greedy tokens the same"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "runtime": self.runtime,
            "against": "float model" if self.lossy else "artifact",
            "scored_tokens": self.tokens,
            "greedy_tokens": self.answered,
            **self.own.to_json(),
            "exact": None if self.exact is None else self.exact.to_json(),
        }


def agreement(
    source: str | Path,
    exported: str | Path,
    *,
    weights: int,
    lossy: bool = False,
    revision: str | None = None,
    threads: int,
    progress: Progress | None = None,
) -> Agreement:
    """Measure the agreement of the file `exported` with its artifact `source`, in one fresh process.

    The artifact runs in Zeropoint's engine, the file in its external runtime. With `lossy`, `source` is a float model
    and runs in float32. `weights` is the file's number of weights. Raises `UnsupportedError` if the external runtime is
    not installed or there is no text to run, `GateError` if the runtime refuses the file.
    """
    other = external.identify(exported)
    if other is None:
        raise UnsupportedError(f"no external runtime is known for {exported}")
    other.prepare()  # raises if it is missing; else the file would run in our own engine and agree trivially
    (model,) = describe(str(source), revision=revision)
    dtypes = {OWN: "auto"}
    skipped = ""
    if other.exact_dtype != "auto" and not lossy:
        skipped = _too_large(weights)
        dtypes |= {} if skipped else {EXACT: other.exact_dtype}
    request = QualityRequest(
        ModelToOpen(model.path, "auto" if model.card else "float32"),
        {name: ModelToOpen(str(exported), dtype) for name, dtype in dtypes.items()},
        threads,
        text=None,
        tokens=TOKENS,
        context=min(CONTEXT, model.context or CONTEXT),
        seed=0,
        prompts=DEFAULT_PROMPTS[:1],
        answer_tokens=NEW_TOKENS,
        speakers=["", *dtypes],
    )
    try:
        result = client.call(request, threads=threads, subject=other.runtime, progress=progress)
    except UnsupportedError:
        raise
    except ZeropointError as cause:
        raise GateError(f"{exported} is written, but {other.runtime} does not run it: {cause}") from cause
    ours, *theirs = result.answers[0]["answers"]
    answered = ours["token_count"]
    runs = {
        name: _closeness(result.candidates[name], answer["first_difference"], answered)
        for name, answer in zip(dtypes, theirs, strict=True)
    }
    scored = result.scored_tokens
    return Agreement(other.runtime, lossy, scored, answered, runs[OWN], runs.get(EXACT), skipped)


def _too_large(weights: int) -> str:
    """Return why there is no exact run: "" if memory and temporary folder have room for the float32 weights twice.

    Some runtimes pass the float32 weights through the temporary folder.
    """
    needed = 4 * weights
    room = min(Machine.detect().ram_available_bytes, shutil.disk_usage(tempfile.gettempdir()).free)
    if 2 * needed <= room:
        return ""
    return f"the weights would take {needed / 1e9:.1f} GB of memory and of {tempfile.gettempdir()}"


def _closeness(quality: Mapping[str, Any], first_difference: int | None, answered: int) -> Closeness:
    kl, top1 = quality["kl_divergence"]["value"], quality["top1_agreement"]["value"]
    return Closeness(kl, top1, answered if first_difference is None else first_difference)
