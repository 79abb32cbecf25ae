"""`Job`: a submitted request and its progress. `FairQueue`: the waiting jobs, whose clients take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from zeropoint.runtime.sampling import Sampler
from zeropoint.serve.draft import Drafter
from zeropoint.serve.request import LENGTH, STOP, Finished, Listener, PromptRead, Request, TokenScore
from zeropoint.values.arrays import Floats


@dataclass(slots=True, eq=False)
class Job:
    """A submitted request.

    - `tokens`: the prompt, and the new tokens so far;
    - `slot`: the number of its sequence in the key-value cache, None while the job waits;
    - `read`: how many of `tokens` are in the cache;
    - `target`: how many of `tokens` must be read before the next event;
    - `logits_from`: the position from which on the job needs the logits of the tokens that are read;
    - `keys`: the keys of its blocks, see `prefix_cache.py`;
    - `cached`: how many tokens of the prompt were found in the prefix cache;
    - `preempted`: whether the job lost its pages since it began;
    - `scores`, `logits`: those of the prompt that the request asked for, so far;
    - `sampler`: the sampling options, and counts of the new tokens;
    - `adjusts`: whether penalties or a bias change the logits;
    - `drafter`: guesses the next tokens; None unless decoding is greedy, without penalties, bias or grammar;
    - `announced`: whether `PromptRead` was sent;
    - `cancelled`: whether the client has cancelled the request;
    - `ended`: whether the job has left the scheduler.
    """

    request: Request
    listener: Listener
    client: str = ""
    tokens: list[int] = field(default_factory=list)
    slot: int | None = None
    read: int = 0
    target: int = 0
    logits_from: int = 0
    keys: list[bytes] = field(default_factory=list)
    cached: int = 0
    preempted: bool = False
    scores: list[TokenScore] = field(default_factory=list)
    logits: list[Floats] = field(default_factory=list)
    announced: bool = False
    cancelled: bool = False
    ended: bool = False
    sampler: Sampler = field(init=False)
    adjusts: bool = field(init=False)
    drafter: Drafter | None = None

    def __post_init__(self) -> None:
        request, length = self.request, len(self.request.prompt)
        self.tokens = list(request.prompt)
        self.sampler, options = Sampler(request.sampling, request.prompt), request.sampling
        penalties = (options.repetition_penalty - 1, options.presence_penalty, options.frequency_penalty)
        self.adjusts = any(penalties) or bool(options.logit_bias)
        if options.greedy and not self.adjusts and request.constraint is None:
            self.drafter = Drafter()
        self.target = length if request.max_new_tokens or request.prompt_logits else length - 1
        self.logits_from = (
            0 if request.prompt_logprobs is not None else length - max(request.prompt_logits, 1)
        )

    @property
    def max_read(self) -> int:
        """Return the most tokens that the job ever has in the cache: the last new token is never read."""
        return max(len(self.request.prompt) + self.request.max_new_tokens - 1, 1)

    @property
    def new_tokens(self) -> int:
        """Return how many new tokens the job has."""
        return len(self.tokens) - len(self.request.prompt)

    def add(self, token: int) -> None:
        """Append a new token, which the next step must read."""
        self.tokens.append(token)
        self.target += 1

    def prompt_read(self) -> PromptRead:
        """Return the `PromptRead` event, with the logits, which the job then drops."""
        logits = np.stack(self.logits) if self.logits else None
        self.logits = []
        return PromptRead(self.cached, tuple(self.scores), logits)

    def end(self) -> Finished | None:
        """Return the `Finished` event if the last new token ends the text, else None.

        Call this once for each new token, because the token is added to the grammar.
        """
        request, token = self.request, self.tokens[-1]
        if token in request.stop_tokens:
            return Finished(STOP)
        if request.constraint is not None and request.constraint.accept(token):
            return Finished(STOP)
        return Finished(LENGTH) if self.new_tokens == request.max_new_tokens else None


class FairQueue:
    """The waiting jobs. Clients take turns, each with its oldest job first. Preempted jobs come before all others."""

    def __init__(self) -> None:
        self._returned: deque[Job] = deque()
        self._clients: dict[str, deque[Job]] = {}  # in the order of their turns

    def __len__(self) -> int:
        return len(self._returned) + sum(map(len, self._clients.values()))

    def __iter__(self) -> Iterator[Job]:
        yield from self._returned
        for jobs in self._clients.values():
            yield from jobs

    def add(self, job: Job) -> None:
        """Add a new job."""
        self._clients.setdefault(job.client, deque()).append(job)

    def put_back(self, job: Job) -> None:
        """Add a preempted job, in front of all others."""
        self._returned.appendleft(job)

    def first(self) -> Job | None:
        """Return the job whose turn it is, None if none waits."""
        return next(iter(self), None)

    def take(self) -> Job:
        """Remove and return the job whose turn it is."""
        if self._returned:
            return self._returned.popleft()
        client, jobs = next(iter(self._clients.items()))
        del self._clients[client]
        if len(jobs) > 1:
            self._clients[client] = jobs  # at the end: the other clients' turns come first
        return jobs.popleft()

    def discard(self, job: Job) -> None:
        """Remove a job if it waits."""
        if job in self._returned:
            self._returned.remove(job)
        jobs = self._clients.get(job.client, deque())
        if job in jobs:
            jobs.remove(job)
            if not jobs:
                del self._clients[job.client]
