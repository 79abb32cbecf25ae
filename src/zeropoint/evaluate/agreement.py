"""Whether an exported file computes what its artifact computes, or what it lost of the float model that it was made of:
each is run by its own runtime, on the same tokens."""

from __future__ import annotations

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
from zeropoint.runtime import foreign

TOKENS, CONTEXT, NEW_TOKENS = 1000, 256, 64
OTHER = "the export"


@dataclass(frozen=True, slots=True)
class Agreement:
    """`kl` is the mean divergence of the other runtime's predictions from the source's, nats per token, `top1` the
    share of tokens predicted alike; `same` of `answered` greedy tokens are the same from the first on. The source is an
    artifact of the same numbers, or (`lossy`) the float model, and `kl` then is what the file loses."""

    runtime: str
    lossy: bool
    kl: float
    top1: float
    tokens: int
    same: int
    answered: int

    def sentence(self) -> str:
        alike = "all" if self.same == self.answered else f"the first {self.same} of"
        source = "the float model, which is what it loses" if self.lossy else "the artifact"
        return (
            f"{self.runtime} runs it: KL {self.kl:.2g} nats/token from {source}; top-1 {self.top1:.1%} of "
            f"{self.tokens} tokens, {alike} {self.answered} greedy tokens the same"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "runtime": self.runtime,
            "against": "float model" if self.lossy else "artifact",
            "kl_divergence": self.kl,
            "top1_agreement": self.top1,
            "scored_tokens": self.tokens,
            "same_greedy_tokens": self.same,
            "greedy_tokens": self.answered,
        }


def agreement(
    source: str | Path,
    exported: str | Path,
    *,
    lossy: bool = False,
    threads: int,
    progress: Progress | None = None,
) -> Agreement:
    """Run an artifact by our engine, or with `lossy` a float model in float32, and the file made of it by the runtime
    that it is for, in one fresh process.

    Raises `UnsupportedError` when that runtime is not installed or there is no text to run, and `GateError` when it
    refuses the file.
    """
    other = foreign.identify(exported)
    if other is None:
        raise UnsupportedError(f"no runtime here is known for {exported}")
    (model,) = describe(str(source))
    # in float32 transformers rounds nothing: what differs is the file's meaning
    candidate = {"path": str(exported), "dtype": other.exact_dtype, "engine": "auto"}
    request = paired_request(
        {"path": model.path, "dtype": "auto" if model.card else "float32", "engine": "auto"},
        {OTHER: candidate},
        threads,
        text=None,
        tokens=TOKENS,
        context=min(CONTEXT, model.context or CONTEXT),
        seed=0,
    )
    request |= {
        "prompts": DEFAULT_PROMPTS[:1],
        "answer_tokens": NEW_TOKENS,
        "speakers": ["", OTHER],
    }
    try:
        found = client.call(request, threads=threads, subject=other.runtime, progress=progress)
    except UnsupportedError:
        raise
    except ZeropointError as cause:
        raise GateError(f"{exported} is written, but {other.runtime} does not run it: {cause}") from cause
    return _read(other.runtime, found, lossy=lossy)


def _read(runtime: str, found: Mapping[str, Any], *, lossy: bool) -> Agreement:
    quality = found["candidates"][OTHER]
    ours, theirs = found["answers"][0]["answers"]
    answered, same = ours["token_count"], theirs["first_difference"]
    return Agreement(
        runtime,
        lossy,
        quality["kl_divergence"]["value"],
        quality["top1_agreement"]["value"],
        found["scored_tokens"],
        answered if same is None else same,
        answered,
    )
