"""`Engine`: one model that continues many requests at once, in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from zeropoint.errors import BusyError, UsageError, ZeropointError, reason
from zeropoint.runtime.native.library import Cache, Decoder
from zeropoint.runtime.native.session import token_array
from zeropoint.runtime.native.steps import Chunk, forward
from zeropoint.serve.choose import choose, score
from zeropoint.serve.job import Job
from zeropoint.serve.prefix_cache import PAGE
from zeropoint.serve.request import (
    CANCELLED,
    FAILED,
    LENGTH,
    STOP,
    EngineStats,
    Event,
    Finished,
    Listener,
    NewToken,
    PromptRead,
    Request,
)
from zeropoint.serve.scheduler import SCORED_ROWS, Part, Scheduler, pages_of
from zeropoint.values.arrays import Floats

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine runs.

    - `threads`: of the native library;
    - `cache_tokens`: room of the key-value cache, shared by all requests; None: eight times the model's context, but at
      most 65,536 tokens;
    - `cache_type`: float16, int8 or float32;
    - `max_running`: the most requests in one step; `max_queue`: the most that wait.
    """

    threads: int = 1
    cache_tokens: int | None = None
    cache_type: str = "float16"
    max_running: int = 64
    max_queue: int = 256


class Engine:
    """The `zeropoint.serve.request.ServingEngine` of a native decoder.

    The engine's thread owns the decoder, the cache and the scheduler. Other threads put submitted and cancelled jobs
    into `_inbox`, which the thread empties between steps.
    """

    def __init__(self, decoder: Decoder, options: EngineOptions) -> None:
        self.decoder, self.options = decoder, options
        config = decoder.record.config
        tokens = options.cache_tokens or min(8 * config.max_positions, 65_536)
        pages = pages_of(tokens)
        self.vocab_size = config.vocab
        self.max_positions = min(config.max_positions, pages * PAGE)
        self._cache = decoder.cache(pages * PAGE, sequences=options.max_running, type=options.cache_type)
        self._scheduler = Scheduler(
            _Pages(self._cache, pages),
            options.max_running,
            max_running=options.max_running,
            prefix_sharing=False,
        )
        self._logits = np.empty((options.max_running + SCORED_ROWS, config.vocab), np.float32)
        self._totals = _Totals()
        self._wake = threading.Condition()
        self._inbox: deque[Job] = deque()
        self._accepted = 0  # jobs submitted and not ended
        self._draining = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="zeropoint-engine", daemon=True)
        self._thread.start()

    # -- called from any thread ---------------------------------------------------------------

    def submit(self, request: Request, listener: Listener, *, client: str = "") -> _Ticket:
        """Queue a request, as `ServingEngine.submit` says."""
        self._check(request)
        job = Job(request, listener, client)
        with self._wake:
            if self._draining:
                raise BusyError("the server is shutting down: send the request to another one")
            if self._accepted >= self.options.max_running + self.options.max_queue:
                raise BusyError(f"{self._accepted} requests are running or waiting: try again later")
            self._accepted += 1
            self._inbox.append(job)
            self._wake.notify()
        return _Ticket(self, job)

    def cancel(self, job: Job) -> None:
        with self._wake:
            job.cancelled = True
            self._inbox.append(job)
            self._wake.notify()

    def stats(self) -> EngineStats:
        """Return the engine's state now."""
        scheduler, running = self._scheduler, len(self._scheduler.running)
        return EngineStats(
            running=running,
            waiting=max(self._accepted - running, 0),
            pages=scheduler.cache.pages,
            free_pages=scheduler.free_pages,
            preemptions=scheduler.preemptions,
            **asdict(self._totals),
        )

    def drain(self, seconds: float) -> None:
        """Refuse new requests, finish the accepted ones for at most `seconds`, cancel the rest, stop the thread."""
        until = time.monotonic() + seconds
        with self._wake:
            self._draining = True
            self._wake.wait_for(lambda: self._accepted == 0, max(until - time.monotonic(), 0))
            self._stopped = True
            self._wake.notify_all()
        self._thread.join()

    def _check(self, request: Request) -> None:
        """Raise `UsageError` if the request can never run."""
        length = len(request.prompt)
        token_array(request.prompt, self.vocab_size)
        scored = request.prompt_logprobs is not None or request.prompt_logits > 0
        if request.max_new_tokens < (0 if scored else 1):
            raise UsageError(f"the number of new tokens is at least 1, not {request.max_new_tokens}")
        if not 0 <= request.prompt_logits <= length:
            raise UsageError(f"logits of {request.prompt_logits} tokens of a prompt of {length}")
        if length + request.max_new_tokens > self.max_positions:
            raise UsageError(
                f"the prompt has {length} tokens and the answer up to {request.max_new_tokens}, which is more than the "
                f"{self.max_positions} that fit: shorten the prompt, or ask for fewer new tokens"
            )

    # -- the engine's thread ------------------------------------------------------------------

    def _run(self) -> None:
        while self._receive():
            try:
                started = time.perf_counter()
                parts = self._scheduler.plan()
                if parts:
                    self._step(parts)
                    self._totals.steps += 1
                    self._totals.step_seconds += time.perf_counter() - started
            except (
                Exception
            ) as error:  # a mistake of ours: whoever is affected is told, and the engine lives on
                for job in [*self._scheduler.running, *self._scheduler.waiting]:
                    self._fail(job, error)

    def _receive(self) -> bool:
        """Take the jobs of the inbox; wait for some if there is nothing to do. Return whether the engine goes on."""
        scheduler = self._scheduler
        with self._wake:
            while not (self._inbox or self._stopped or scheduler.running or scheduler.waiting):
                self._wake.wait()
            jobs, stopped = list(self._inbox), self._stopped
            self._inbox.clear()
        for job in jobs:
            if not job.ended and job.cancelled:
                self._end(job, Finished(CANCELLED))
            elif not job.ended:
                self._begin(job)
        if stopped:
            for job in [*scheduler.running, *scheduler.waiting]:
                self._end(job, Finished(CANCELLED))
        return not stopped

    def _begin(self, job: Job) -> None:
        self._scheduler.add(job)
        if job.target == 0:  # one token, whose score needs no logits
            self._end(job, PromptRead(0), Finished(LENGTH))

    def _step(self, parts: Sequence[Part]) -> None:
        """Run a step. If it fails, run its parts one by one: only the jobs whose own part fails then fail."""
        chunks = [
            Chunk(p.job.slot or 0, p.job.read, p.job.tokens[p.job.read : p.job.read + p.count], p.wanted)
            for p in parts
        ]
        started = time.perf_counter()
        try:
            logits = forward(
                self.decoder, self._cache, chunks, threads=self.options.threads, out=self._logits
            )
        except Exception as error:
            if len(parts) > 1:
                for part in parts:
                    self._step([part])
                return
            self._fail(parts[0].job, error)
            return
        seconds = time.perf_counter() - started
        self._totals.forward_seconds += seconds
        decoding = sum(part.decodes for part in parts)
        prompt_tokens = sum(part.count for part in parts) - decoding
        self._totals.prompt_tokens += prompt_tokens
        self._scheduler.pace.record(decoding, prompt_tokens, seconds)
        try:
            self._advance(parts, logits)
        except Exception as error:
            for part in parts:
                if not part.job.ended:
                    self._fail(part.job, error)

    def _advance(self, parts: Sequence[Part], logits: Floats) -> None:
        """Hand the logits of a step to its jobs: scores of the prompt, next tokens, ends."""
        drawing, last_rows, row = list[Job](), list[int](), 0
        for part in parts:
            job = part.job
            self._scheduler.advance(part)
            rows = logits[row : row + part.wanted]
            row += part.wanted
            if part.wanted:
                self._note_prompt(job, rows)
            if job.read < job.target:
                continue
            if job.request.max_new_tokens:
                drawing.append(job)
                last_rows.append(row - 1)
            else:
                self._end(job, _prompt_read(job), Finished(LENGTH))
        if drawing:
            self._draw(drawing, logits if len(last_rows) == len(logits) else logits[last_rows])

    def _note_prompt(self, job: Job, rows: Floats) -> None:
        """Keep what the job asked of the logits `rows`, which follow the tokens before `job.read`."""
        request, first = job.request, job.read - len(rows)
        job.wanted = job.read
        if job.announced:
            return
        prompt = request.prompt
        if request.prompt_logprobs is not None:
            scored = prompt[first + 1 : job.read + 1]
            job.scores += score(rows[: len(scored)], scored, request.prompt_logprobs)
        kept = max(len(prompt) - request.prompt_logits - first, 0)
        if request.prompt_logits:
            job.logits += [row.copy() for row in rows[kept:]]

    def _draw(self, jobs: Sequence[Job], logits: Floats) -> None:
        """Choose each job's next token from its row of logits."""
        for job, row, token in zip(jobs, logits, choose(logits, jobs), strict=True):
            events: list[Event] = [] if job.announced else [_prompt_read(job)]
            if isinstance(token, ZeropointError):
                self._end(job, *events, Finished(FAILED, str(token)))
                continue
            top = job.request.logprobs
            events.append(NewToken(token, None if top is None else score(row[None], [token], top)[0]))
            job.add(token)
            self._totals.new_tokens += 1
            end = _end_after(job, token)
            if end is not None:
                self._end(job, *events, end)
            else:
                self._send(job, events)

    # -- events -------------------------------------------------------------------------------

    def _fail(self, job: Job, error: Exception) -> None:
        """End a job because of an error."""
        if not isinstance(error, ZeropointError):
            logger.error("a request failed", exc_info=error)
        self._end(job, Finished(FAILED, str(error) if isinstance(error, ZeropointError) else reason(error)))

    def _send(self, job: Job, events: Sequence[Event]) -> None:
        """Give events to a job's listener; one that raises loses its job."""
        job.announced = True
        try:
            job.listener(events)
        except Exception:
            logger.exception("a listener failed: its request is cancelled")
            if not job.ended:
                self._end(job)

    def _end(self, job: Job, *events: Event) -> None:
        """Forget a job and send its last events."""
        job.ended = True
        self._scheduler.remove(
            job, keep=not any(isinstance(e, Finished) and e.reason == FAILED for e in events)
        )
        with self._wake:
            self._accepted -= 1
            self._wake.notify_all()
        if events:
            self._send(job, events)


@dataclass(slots=True)
class _Totals:
    """The sums of `EngineStats`."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    forward_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Ticket:
    """The `zeropoint.serve.request.Ticket` of a job."""

    engine: Engine
    job: Job

    def cancel(self) -> None:
        self.engine.cancel(self.job)


def _prompt_read(job: Job) -> PromptRead:
    logits = np.stack(job.logits) if job.logits else None
    job.logits = []
    return PromptRead(job.cached, tuple(job.scores), logits)


def _end_after(job: Job, token: int) -> Finished | None:
    """Return the end of a job whose last new token is `token`, None if it goes on."""
    if token in job.request.stop_tokens:
        return Finished(STOP)
    constraint = job.request.constraint
    if constraint is not None and constraint.accept(token):
        return Finished(STOP)
    return Finished(LENGTH) if job.new_tokens == job.request.max_new_tokens else None


class _Pages:
    """The pages of a cache whose sequences share none."""

    def __init__(self, cache: Cache, pages: int) -> None:
        self._cache, self.pages = cache, pages

    @property
    def free_pages(self) -> int:
        return self.pages - sum(pages_of(self._cache.length(s)) for s in range(self._cache.sequences))

    def truncate(self, length: int, sequence: int = 0) -> None:
        self._cache.truncate(length, sequence)

    def share(self, source: int, target: int, length: int) -> None:
        raise NotImplementedError
