"""The generation loop of all engines: run a forward step, choose a token from its logits, repeat."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UsageError
from zeropoint.runtime.sampling import Sampler, Sampling

Step = Callable[[Sequence[int]], NDArray[np.float32]]
"""Reads more tokens of the sequence; returns the logits `[vocab]` after the last one."""

OnToken = Callable[[int], object]
"""Called with each new token; a true result ends the generation."""


def generate(
    step: Step,
    tokens: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Container[int] = (),
    on_token: OnToken | None = None,
) -> list[int]:
    """Return the new tokens after `tokens`, a stop token included. Raises `UsageError` if `tokens` is empty."""
    if not tokens:
        raise UsageError("there are no tokens to read: the prompt is empty")
    sampler, out = Sampler(sampling, tokens), list[int]()
    fed: Sequence[int] = tokens
    while len(out) < max_new_tokens:
        token = sampler(step(fed))
        out.append(token)
        if (on_token is not None and on_token(token)) or token in stop:
            break
        fed = (token,)
    return out
