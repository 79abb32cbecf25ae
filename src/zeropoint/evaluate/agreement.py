"""Whether an exported file computes what its artifact computes: each is run by its own runtime, on the same tokens."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeropoint.errors import GateError, UnsupportedError, ZeropointError
from zeropoint.evaluate import client
from zeropoint.evaluate.answers import DEFAULT_PROMPTS
from zeropoint.evaluate.compare import paired_request
from zeropoint.evaluate.models import describe
from zeropoint.evaluate.progress import Progress
from zeropoint.machine.detect import Machine
from zeropoint.runtime import external

TOKENS, CONTEXT, NEW_TOKENS = 1000, 256, 64
OWN, EXACT = "the export", "the export in exact arithmetic"


@dataclass(frozen=True, slots=True)
class Closeness:
    """`kl` is the mean divergence of the file's predictions from the artifact's, nats per token, `top1` the share of
    tokens predicted alike; the first `same` greedy tokens are the same."""

    kl: float
    top1: float
    same: int

    def to_json(self) -> dict[str, Any]:
        return {"kl_divergence": self.kl, "top1_agreement": self.top1, "same_greedy_tokens": self.same}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near the file comes to the artifact on `tokens` tokens and in `answered` greedy ones: in its runtime's `own`
    arithmetic, as users will run it, and where that rounds more than the file says, in `exact` arithmetic too, which
    shows whether the file means what the artifact means. `skipped` says why that was not run. Of a `lossy` file, which
    was made of the float model, `own` is what it loses against that model.
    """

    runtime: str
    lossy: bool
    tokens: int
    answered: int
    own: Closeness
    exact: Closeness | None = None
    skipped: str = ""

    def sentences(self) -> list[str]:
        said = [f"{self.runtime} runs it: {self._describe(self.own)}"]
        if self.exact is not None:
            said.append(f"in float32, which rounds nothing further: {self._describe(self.exact)}")
        elif self.skipped:
            said.append(f"not run in float32: {self.skipped}")
        return said

    def _describe(self, found: Closeness) -> str:
        alike = "all" if found.same == self.answered else f"the first {found.same} of"
        source = "the float model, which is what it loses" if self.lossy else "the artifact"
        return (
            f"KL {found.kl:.2g} nats/token from {source}; top-1 {found.top1:.1%} of {self.tokens} tokens, "
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
    threads: int,
    progress: Progress | None = None,
) -> Agreement:
    """Run an artifact by our engine, or with `lossy` a float model in float32, and the file of so many weights that was
    made of it by the runtime that it is for, in one fresh process.

    Raises `UnsupportedError` when that runtime is not installed or there is no text to run, and `GateError` when it
    refuses the file.
    """
    other = external.identify(exported)
    if other is None:
        raise UnsupportedError(f"no runtime here is known for {exported}")
    other.prepare()  # without it the file would run on our own engine, and agree with itself
    (model,) = describe(str(source))
    dtypes = {OWN: "auto"}
    skipped = ""
    if other.exact_dtype != "auto" and not lossy:
        skipped = _too_large(weights)
        dtypes |= {} if skipped else {EXACT: other.exact_dtype}
    request = paired_request(
        {"path": model.path, "dtype": "auto" if model.card else "float32", "engine": "auto"},
        {name: {"path": str(exported), "dtype": dtype, "engine": "auto"} for name, dtype in dtypes.items()},
        threads,
        text=None,
        tokens=TOKENS,
        context=min(CONTEXT, model.context or CONTEXT),
        seed=0,
    )
    request |= {
        "prompts": DEFAULT_PROMPTS[:1],
        "answer_tokens": NEW_TOKENS,
        "speakers": ["", *dtypes],
    }
    try:
        found = client.call(request, threads=threads, subject=other.runtime, progress=progress)
    except UnsupportedError:
        raise
    except ZeropointError as cause:
        raise GateError(f"{exported} is written, but {other.runtime} does not run it: {cause}") from cause
    ours, *theirs = found["answers"][0]["answers"]
    answered = ours["token_count"]
    runs = {
        name: _closeness(found["candidates"][name], answer["first_difference"], answered)
        for name, answer in zip(dtypes, theirs, strict=True)
    }
    scored = found["scored_tokens"]
    return Agreement(other.runtime, lossy, scored, answered, runs[OWN], runs.get(EXACT), skipped)


def _too_large(weights: int) -> str:
    """Why weights are not held as floats: empty where both memory and the temporary folder, through which some runtimes
    take them, have room for them twice."""
    needed = 4 * weights
    room = min(Machine.detect().ram_available_bytes, shutil.disk_usage(tempfile.gettempdir()).free)
    if 2 * needed <= room:
        return ""
    return f"the weights would take {needed / 1e9:.1f} GB of memory and of {tempfile.gettempdir()}"


def _closeness(quality: Mapping[str, Any], first_difference: int | None, answered: int) -> Closeness:
    kl, top1 = quality["kl_divergence"]["value"], quality["top1_agreement"]["value"]
    return Closeness(kl, top1, answered if first_difference is None else first_difference)
