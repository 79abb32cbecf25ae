"""What a client asks of an engine (`Request`), what comes back (`NewToken`, `Finished`), and the interfaces of engines
and of the models that a server offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from zeropoint.runtime.sampling import Sampling
from zeropoint.tokenizer import Tokenizer
from zeropoint.values.arrays import Floats, Int32s

STOP, LENGTH, CANCELLED, FAILED = "stop", "length", "cancelled", "failed"


class Constraint(Protocol):
    """The grammar of one answer: says which tokens may come next. Each request needs an object of its own."""

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
    - `stop_tokens`: ids that end the text. The stop token itself is an event, too: the client must not show it;
    - `logprobs`: return the log-probabilities of each new token and of the `logprobs` most likely ones (None: none);
    - `prompt_logprobs`: return the same for each prompt token but the first;
    - `prompt_logits`: return the logits after each of the last `prompt_logits` prompt tokens (0: none). These tokens
      are always read, never taken from the prefix cache. The engine sets no limit, and a row of logits takes
      4 * vocab_size bytes: the client must keep the number small;
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
    """Event: the prompt is read. `cached_tokens` of its tokens were found in the prefix cache.

    `scores` has one entry for each prompt token but the first if the request asked for `prompt_logprobs`, else none.
    `logits`, float32 `[prompt_logits, vocab_size]`, are a copy of the model's logits before sampling options are
    applied (None if the request asked for none).
    """

    cached_tokens: int
    scores: tuple[TokenScore, ...] = ()
    logits: Floats | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class NewToken:
    """Event: the next token. `score` is None unless the request asked for `logprobs`."""

    id: int
    score: TokenScore | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """Event, the last one of a request. `reason` is STOP, LENGTH, CANCELLED or FAILED; `error` says why it failed."""

    reason: str
    error: str = ""


Event = PromptRead | NewToken | Finished

Listener = Callable[[Sequence[Event]], None]
"""Receives a request's events in order, on the engine's thread: it must return at once and must not raise."""


class Ticket(Protocol):
    """The handle of a submitted request, to cancel it."""

    def cancel(self) -> None:
        """End the request before its next token. Does nothing if the request has ended. Any thread may call it."""
        ...


@dataclass(slots=True)
class EngineStats:
    """The state of an engine, and its counts since it was loaded.

    - `running`, `waiting`: requests in the batch and in the queue;
    - `pages`, `free_pages`: all pages of the key-value cache, and the free ones. Pages that only the prefix cache holds
      count as free;
    - `prefix_queries`, `prefix_hits`: prompt tokens looked up in the prefix cache, and those found there;
    - `preemptions`: how often a request lost its pages, so that its tokens must be read again;
    - `prompt_tokens`, `new_tokens`: prompt tokens read (not those found in the prefix cache), and new tokens chosen;
    - `guesses`, `right_guesses`: tokens guessed by speculative decoding, and those of them that the model chose, too;
    - `steps`, `step_seconds`, `forward_seconds`: forward steps, their time, and the time in the native library alone.
    """

    running: int = 0
    waiting: int = 0
    pages: int = 0
    free_pages: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    guesses: int = 0
    right_guesses: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    forward_seconds: float = 0.0


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

    def stats(self) -> EngineStats:
        """Return the engine's state now."""
        ...

    def drain(self, seconds: float) -> None:
        """Refuse new requests, finish the running ones for at most `seconds`, cancel the rest, stop the thread."""
        ...


class Model(Protocol):
    """A model that the server offers by name. Its weights are loaded when they are first needed, and may be unloaded
    while no request runs. All methods may be called from any thread.

    `tokenizer`, `vocab_size`, `max_positions` (the longest context, prompt and answer together), `format` (the
    number format in words, as reports show it) and `weights_bytes` (on disk) are known without loading the weights.
    """

    name: str
    format: str
    weights_bytes: int
    tokenizer: Tokenizer
    vocab_size: int
    max_positions: int

    @property
    def loaded(self) -> bool:
        """Return whether the weights are in memory, so that `submit` returns at once."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Return the bytes of the loaded weights and the key-value cache; 0 while the model is not loaded."""
        ...

    def load(self) -> None:
        """Load the weights now, which takes seconds, unless they are loaded. Raises the errors of `submit`."""
        ...

    def submit(self, request: Request, listener: Listener, *, client: str = "") -> Ticket:
        """Queue a request as `ServingEngine.submit` does. Loads the weights first if needed, which takes seconds.

        Also raises `ArtifactError`, `CheckpointError` or `UnsupportedError` if the model cannot be loaded, and
        `BusyError` if its weights do not fit beside models that are in use.
        """
        ...

    def stats(self) -> EngineStats:
        """Return the engine's state. The counts continue when the model is unloaded and loaded again."""
        ...


class Models(Protocol):
    """The models of a server, in the order of the command line."""

    @property
    def by_name(self) -> Mapping[str, Model]:
        """Return the models by the names under which they are served."""
        ...

    def drain(self, seconds: float) -> None:
        """Drain every engine, within `seconds` in all."""
        ...
