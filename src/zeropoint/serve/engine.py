"""`Engine`: one model that continues many requests at once, in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from zeropoint.errors import BusyError, UsageError, ZeropointError, reason
from zeropoint.machine.detect import Machine
from zeropoint.models.spec import ModelSpec
from zeropoint.runtime.native.library import Decoder
from zeropoint.runtime.native.session import token_array
from zeropoint.runtime.native.steps import Chunk, forward
from zeropoint.serve.choose import Failure, choose, note_prompt
from zeropoint.serve.job import Job
from zeropoint.serve.prefix_cache import PAGE
from zeropoint.serve.request import (
    CANCELLED,
    FAILED,
    LENGTH,
    EngineStats,
    Event,
    Finished,
    Listener,
    NewToken,
    PromptRead,
    Request,
)
from zeropoint.serve.scheduler import Part, Scheduler, pages_of
from zeropoint.values.arrays import Floats

logger = logging.getLogger(__name__)

#: The most sequences that are kept for later requests, beside those that run.
KEPT_SEQUENCES = 1024


class ClosedError(BusyError):
    """The engine takes no more requests."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine runs.

    - `threads`: how many threads the native library uses;
    - `cache_tokens`: how many tokens the key-value cache holds, for all requests together. None: as many as take a
      quarter of the free memory, but at most 65,536 and at most eight contexts, and at least one context;
    - `cache_type`: the number format of the key-value cache: float16, int8 or float32;
    - `context`: the most tokens of a prompt and its answer (None: as many as the model and the cache take);
    - `max_running`: the most requests in one step;
    - `max_queue`: how many requests may wait beside `max_running` running ones. If `max_running + max_queue` requests
      run or wait, the next one is refused;
    - `prefix_sharing`: whether requests reuse the cached pages of earlier requests that begin with the same tokens;
    - `drafting`: whether next tokens are guessed while few requests run (speculative decoding).
    """

    threads: int = 1
    cache_tokens: int | None = None
    cache_type: str = "float16"
    context: int | None = None
    max_running: int = 64
    max_queue: int = 256
    prefix_sharing: bool = True
    drafting: bool = True


@dataclass(frozen=True, slots=True)
class Room:
    """What an engine has room for: the pages of its key-value cache, their bytes, and the tokens of one request."""

    pages: int
    nbytes: int
    max_positions: int

    @classmethod
    def of(cls, record: ModelSpec, options: EngineOptions) -> Room:
        """Return the room of an engine for this model."""
        config = record.config
        context = min(options.context or config.max_positions, config.max_positions)
        number_bytes = {"int8": 1, "float16": 2}.get(options.cache_type, 4)
        head_bytes = config.head_dim * number_bytes + 4 * (number_bytes == 1)
        token_bytes = 2 * config.layers * config.kv_heads * head_bytes
        free = Machine.detect().ram_available_bytes // 4 // token_bytes
        pages = pages_of(options.cache_tokens or max(min(8 * context, 65_536, free), context))
        return cls(pages, pages * PAGE * token_bytes, min(context, pages * PAGE))


class Engine:
    """The `zeropoint.serve.request.ServingEngine` of a native decoder.

    The engine's thread owns the decoder, the cache and the scheduler. Other threads put submitted and cancelled jobs
    into `_inbox`, which the thread empties between steps.
    """

    def __init__(self, decoder: Decoder, options: EngineOptions) -> None:
        self.decoder, self.options = decoder, options
        room = Room.of(decoder.record, options)
        # Beside the running requests, up to KEPT_SEQUENCES ended ones keep their sequences. There are at most as many
        # sequences as pages, because a sequence has at least one page.
        pages, sequences = room.pages, min(options.max_running + KEPT_SEQUENCES, room.pages)
        self.vocab_size = decoder.record.config.vocab
        self.max_positions = room.max_positions
        # A cache is created for a number of tokens, and has room for them however the sequences divide them. The worst
        # case is one token in the last page of every sequence. So `pages` pages are allocated for
        # `(pages - sequences) * PAGE + sequences` tokens.
        self._cache = decoder.cache(
            (pages - sequences) * PAGE + sequences, sequences=sequences, type=options.cache_type
        )
        assert self._cache.pages == pages
        self._scheduler = Scheduler(
            self._cache,
            sequences,
            max_running=min(options.max_running, sequences),
            prefix_sharing=options.prefix_sharing,
            drafting=options.drafting,
        )
        self._logits = np.empty((self._scheduler.most_rows, self.vocab_size), np.float32)
        self._counts = EngineStats()
        self._wake = threading.Condition()
        self._inbox: deque[Job] = deque()
        self._accepted = 0  # jobs submitted and not ended
        self._draining = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="zeropoint-engine", daemon=True)
        self._thread.start()

    # The following methods may be called from any thread.

    def submit(self, request: Request, listener: Listener, *, client: str = "") -> _Ticket:
        """Queue a request, as `ServingEngine.submit` says."""
        self._check(request)
        job = Job(request, listener, client)
        with self._wake:
            if self._draining:
                raise ClosedError("the server is shutting down: send the request to another one")
            if self._accepted >= self.options.max_running + self.options.max_queue:
                raise BusyError(f"{self._accepted} requests are running or waiting: try again later")
            self._accepted += 1
            self._inbox.append(job)
            self._wake.notify()
        return _Ticket(self, job)

    def cancel(self, job: Job) -> None:
        """End a job before its next token. Does nothing if the job has ended."""
        with self._wake:
            job.cancelled = True
            self._inbox.append(job)
            self._wake.notify()

    def stats(self) -> EngineStats:
        """Return the engine's state now."""
        scheduler, running = self._scheduler, len(self._scheduler.running)
        return replace(
            self._counts,
            running=running,
            waiting=max(self._accepted - running, 0),
            pages=scheduler.cache.pages,
            free_pages=scheduler.free_pages,
            preemptions=scheduler.preemptions,
        )

    @property
    def cache_bytes(self) -> int:
        """Return the bytes of the key-value cache."""
        return self._cache.nbytes

    def close_if_idle(self) -> bool:
        """Refuse new requests and stop the thread, unless a request runs or waits; return whether it was stopped."""
        with self._wake:
            if self._accepted:
                return False
            self._draining = True
        self.drain(0)
        return True

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
        least = 0 if scored else 1
        if request.max_new_tokens < least:
            raise UsageError(f"the number of new tokens is at least {least}, not {request.max_new_tokens}")
        if min(request.logprobs or 0, request.prompt_logprobs or 0) < 0:
            raise UsageError("logprobs and prompt_logprobs must be 0 or more")
        if not 0 <= request.prompt_logits <= length:
            raise UsageError(
                f"prompt_logits must be 0 to {length}, the tokens of the prompt, not {request.prompt_logits}"
            )
        if length + request.max_new_tokens > self.max_positions:
            raise UsageError(
                f"the prompt has {length} tokens and the answer up to {request.max_new_tokens}, which is more than the "
                f"{self.max_positions} that fit: shorten the prompt, or ask for fewer new tokens"
            )

    # The following methods run in the engine's own thread.

    def _run(self) -> None:
        """Run steps until the engine is stopped."""
        while self._receive():
            try:
                started = time.perf_counter()
                parts = self._scheduler.plan()
                if parts:
                    self._step(parts)
                    self._counts.steps += 1
                    self._counts.step_seconds += time.perf_counter() - started
            except Exception as error:  # a bug: end all requests with the error, and go on
                for job in [*self._scheduler.running, *self._scheduler.waiting]:
                    self._fail(job, error)

    def _receive(self) -> bool:
        """Take the jobs of the inbox; wait for one if no job runs or waits. Return whether the engine goes on."""
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
        """Queue a new job."""
        self._scheduler.add(job)
        if job.target == 0:  # the request only scores a prompt of one token, and a first token has no score
            self._end(job, PromptRead(0), Finished(LENGTH))

    def _step(self, parts: Sequence[Part]) -> None:
        """Run a step. If it fails, run its parts one by one, so that a job fails only if its own part does."""
        chunks = [Chunk(p.job.sequence or 0, p.job.read, p.tokens(), p.wanted) for p in parts]
        started = time.perf_counter()
        try:
            logits = forward(
                self.decoder, self._cache, chunks, threads=self.options.threads, out=self._logits
            )
        except Exception as error:
            if len(parts) > 1:
                logger.warning("a step failed and is run again, request by request: %s", error)
                for part in parts:
                    self._step([part])
                return
            self._fail(parts[0].job, error)
            return
        seconds = time.perf_counter() - started
        self._counts.forward_seconds += seconds
        decoding = sum(part.decodes for part in parts)
        prompt_tokens = sum(part.count for part in parts if not part.decodes)
        self._counts.prompt_tokens += prompt_tokens
        self._scheduler.pace.record(decoding, prompt_tokens, seconds)
        try:
            self._advance(parts, logits)
        except Exception as error:
            for part in parts:
                if not part.job.ended:
                    self._fail(part.job, error)

    def _advance(self, parts: Sequence[Part], logits: Floats) -> None:
        """Use the logits of a step: store prompt scores, choose next tokens, end the jobs that are complete."""
        drawing, last_rows, row = list[Job](), list[int](), 0
        for part in parts:
            job = part.job
            rows = logits[row : row + part.wanted]
            row += part.wanted
            if part.draft:
                self._verify(part, rows)
                continue
            self._scheduler.advance(part)
            try:
                note_prompt(rows, job, threads=self.options.threads)
            except ZeropointError as error:
                self._fail(job, error)
                continue
            if job.read < job.target:
                continue
            if job.request.max_new_tokens:
                drawing.append(job)
                last_rows.append(row - 1)
            else:
                self._end(job, self._prompt_read(job), Finished(LENGTH))
        if drawing:
            self._draw(drawing, logits if len(last_rows) == len(logits) else logits[last_rows])

    def _draw(self, jobs: Sequence[Job], logits: Floats) -> None:
        """Choose each job's next token from its row of logits."""
        chosen = choose(logits, jobs, threads=self.options.threads)
        for job, token in zip(jobs, chosen, strict=True):
            before = [] if job.announced else [self._prompt_read(job)]
            self._emit(job, [*before, *self._events(job, token)])

    def _verify(self, part: Part, rows: Floats) -> None:
        """Accept the guesses before the first one that differs from the model's choice; then add the model's token."""
        job, events = part.job, list[Event]()
        chosen = choose(rows, [job] * len(rows), threads=self.options.threads)
        for token, guess in zip(chosen, (*part.draft, None), strict=True):
            events += self._events(job, token)
            if isinstance(events[-1], Finished) or not isinstance(token, NewToken) or token.id != guess:
                break
        right = max(sum(isinstance(event, NewToken) for event in events) - 1, 0)
        self._scheduler.advance(part, right)
        job.logits_from = job.read
        assert job.drafter is not None
        job.drafter.learn(len(part.draft), right)
        self._counts.guesses += len(part.draft)
        self._counts.right_guesses += right
        self._emit(job, events)

    def _events(self, job: Job, token: NewToken | Failure) -> list[Event]:
        """Append a job's next token; return the token, and `Finished` if the job ends with it."""
        if isinstance(token, Failure):
            return [Finished(FAILED, str(token.error))]
        job.add(token.id)
        self._counts.new_tokens += 1
        try:
            end = job.end()
        except Exception as error:
            end = Finished(FAILED, f"the grammar failed: {reason(error)}")
        return [token] if end is None else [token, end]

    def _prompt_read(self, job: Job) -> PromptRead:
        """Count the tokens of a prompt that is read; return the `PromptRead` event."""
        self._counts.prefix_queries += len(job.request.prompt)
        self._counts.prefix_hits += job.cached
        return job.prompt_read()

    def _fail(self, job: Job, error: Exception) -> None:
        """End a job that failed."""
        if not isinstance(error, ZeropointError):
            logger.error("a request failed", exc_info=error)
        self._end(job, Finished(FAILED, str(error) if isinstance(error, ZeropointError) else reason(error)))

    def _emit(self, job: Job, events: Sequence[Event]) -> None:
        """Send events; end the job if the last one is `Finished`."""
        if isinstance(events[-1], Finished):
            self._end(job, *events)
        else:
            self._send(job, events)

    def _send(self, job: Job, events: Sequence[Event]) -> None:
        """Give events to a job's listener; end the job if the listener raises."""
        job.announced = True
        try:
            job.listener(events)
        except Exception:
            logger.exception("a listener failed: its request is cancelled")
            if not job.ended:
                self._end(job)

    def _end(self, job: Job, *events: Event) -> None:
        """Remove a job from the scheduler and send its last events."""
        job.ended = True
        self._scheduler.remove(
            job, keep=not any(isinstance(e, Finished) and e.reason == FAILED for e in events)
        )
        with self._wake:
            self._accepted -= 1
            self._wake.notify_all()
        if events:
            self._send(job, events)


@dataclass(frozen=True, slots=True)
class _Ticket:
    """The `zeropoint.serve.request.Ticket` of a job."""

    engine: Engine
    job: Job

    def cancel(self) -> None:
        """Cancel the job."""
        self.engine.cancel(self.job)
