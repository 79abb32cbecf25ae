"""What a client asks of an engine (`Request`), what comes back (`NewToken`, `Finished`), and the engine's interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from zeropoint.runtime.sampling import Sampling
from zeropoint.values.arrays import Floats, Int32s

STOP, LENGTH, CANCELLED, FAILED = "stop", "length", "cancelled", "failed"


class Constraint(Protocol):
    """The grammar of one request: which tokens may come next. Each request has its own object."""

    def mask(self) -> Int32s | None:
        """Return the allowed tokens as bits, int32 `[ceil(vocab / 32)]`, lowest bit first; None if all are allowed."""
        ...

    def accept(self, token: int) -> bool:
        """Add a chosen token; return whether the text is complete, so that only a stop token may follow."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """One text to continue.

    - `prompt`: token ids, at least one;
    - `max_new_tokens`: at least 1, unless `prompt_logprobs` or `prompt_logits` is set, which allow 0;
    - `stop_tokens`: ids that end the text (the client leaves a stop token out of the text that it shows);
    - `logprobs`: with each new token, its log-probability and those of so many most likely tokens (None: neither);
    - `prompt_logprobs`: the same for each prompt token but the first;
    - `prompt_logits`: return the logits after each of the last so many prompt tokens, which are therefore read and not
      shared with an earlier request (0: none). The client bounds the memory: a row has 4 * vocab_size bytes;
    - `constraint`: the grammar, or None.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_tokens: frozenset[int] = frozenset()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logits: int = 0
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class TokenScore:
    """The log-probability of a token, in nats, before sampling options; `top`: the most likely tokens, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptRead:
    """The prompt is read. `cached_tokens` of it were shared with an earlier request.

    `scores` has one entry for each prompt token but the first if the request asked for `prompt_logprobs`, else none.
    `logits`, float32 `[prompt_logits, vocab_size]`, are a copy of the model's own, before sampling options (None if the
    request asked for none).
    """

    cached_tokens: int
    scores: tuple[TokenScore, ...] = ()
    logits: Floats | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class NewToken:
    """The next token. `score` is None unless the request asked for `logprobs`."""

    id: int
    score: TokenScore | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request. `reason` is STOP, LENGTH, CANCELLED or FAILED; `error` says why it failed."""

    reason: str
    error: str = ""


Event = PromptRead | NewToken | Finished

Listener = Callable[[Sequence[Event]], None]
"""Receives a request's events in order, on the engine's thread: it must return at once and must not raise."""


class Ticket(Protocol):
    """A submitted request."""

    def cancel(self) -> None:
        """End the request before its next token. Does nothing if the request has ended. Any thread may call it."""
        ...


class ServingEngine(Protocol):
    """One loaded model that continues many requests at once. All methods may be called from any thread."""

    vocab_size: int
    max_positions: int

    def submit(self, request: Request, listener: Listener, *, client: str = "") -> Ticket:
        """Queue a request. Requests of different `client`s take turns.

        Raises `UsageError` if the request can never run (too long, a token outside the vocabulary), and `BusyError` if
        the queue is full or the engine is draining.
        """
        ...

    def drain(self, seconds: float) -> None:
        """Refuse new requests, finish the running ones for at most `seconds`, cancel the rest, stop the thread."""
        ...
