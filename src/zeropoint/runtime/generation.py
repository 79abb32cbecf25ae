"""The loop that every engine generates with: a step gives logits, the sampler chooses, the caller may end it."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UsageError
from zeropoint.runtime.sampling import Sampler, Sampling

Step = Callable[[Sequence[int]], NDArray[np.float32]]
"""Feeds tokens after those fed before; the logits `[vocab]` after the last one."""

OnToken = Callable[[int], object]
"""Told of each new token; a true result ends the generation."""


def generate(
    step: Step,
    tokens: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Container[int] = (),
    on_token: OnToken | None = None,
) -> list[int]:
    """The continuation of `tokens`: new tokens only, a stop token included. Raises `UsageError` when there are none."""
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
