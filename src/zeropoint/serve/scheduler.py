"""`Scheduler` decides which tokens the next step reads.

It knows nothing of the model, and of the engine only the key-value cache, through the protocol `Pages`. A *block* is 64
tokens of a sequence that fill one page of the cache; requests share whole blocks (`prefix_cache.py`).

Every step reads the last token of each request that decodes, and a part of the prompts that are still to be read. A
request either runs, and has a sequence in the cache, or it waits. If the pages run out, the youngest running request is
preempted: it moves to the front of the queue, and its pages can be evicted. It keeps its tokens, those of its answer
included. When there is room, it runs again and first reads the tokens whose pages were evicted.
"""

from __future__ import annotations

from dataclasses import dataclass

from zeropoint.serve.draft import MAX_GUESSES
from zeropoint.serve.job import FairQueue, Job
from zeropoint.serve.pace import Pace
from zeropoint.serve.prefix_cache import PAGE, Pages, PrefixCache, extend_keys

#: The most rows of logits in one step for scored prompts, which need the logits after many tokens. (Other prompts need
#: one row, that after their last token.) A row takes 4 * vocab_size bytes.
SCORED_ROWS = 64
#: Tokens are guessed only while at most this many requests run: in larger batches, guesses would delay other requests.
DRAFTING_JOBS = 2


@dataclass(frozen=True, slots=True)
class Part:
    """The `count` tokens of one job that a step reads. The last `wanted` of these need logits.

    `decodes`: whether the job's last token is the only one that is not yet read. Then `draft` may hold guesses of the
    tokens after it, and `count` includes them.
    """

    job: Job
    count: int
    wanted: int
    decodes: bool
    draft: tuple[int, ...] = ()

    def tokens(self) -> list[int]:
        """Return the tokens to read."""
        start = self.job.read
        return [*self.job.tokens[start : start + self.count], *self.draft]


class Scheduler:
    """The requests of one engine. Not for use by two threads at once.

    - `sequences`: how many sequences `cache` has, at least `max_running`;
    - `prefix_sharing`: whether the sequences of ended requests are kept, until their pages are needed, for later
      requests that begin with the same tokens;
    - `drafting`: whether next tokens are guessed while few requests run.
    """

    def __init__(
        self,
        cache: Pages,
        sequences: int,
        *,
        max_running: int,
        prefix_sharing: bool = True,
        drafting: bool = True,
        pace: Pace | None = None,
    ) -> None:
        self.cache = cache
        self.prefixes = PrefixCache(cache, sequences, enabled=prefix_sharing)
        self.max_running = max_running
        self.drafting = drafting
        self.pace = pace or Pace()
        self.waiting = FairQueue()
        self.running: list[Job] = []  # oldest first
        self.preemptions = 0
        self._turns: dict[str, int] = {}  # client -> number of the step that last read one of its prompts
        self._step = 0

    @property
    def most_rows(self) -> int:
        """Return the most rows of logits that one step has."""
        return self.max_running + SCORED_ROWS + DRAFTING_JOBS * MAX_GUESSES

    @property
    def free_pages(self) -> int:
        """Return the pages that no running request uses."""
        return self.cache.free_pages + self.prefixes.evictable

    def add(self, job: Job) -> None:
        """Queue a new job."""
        self.waiting.add(job)

    def remove(self, job: Job, *, keep: bool) -> None:
        """Forget a job that has ended, wherever it is; `keep`: later requests may share what it has read."""
        if job.sequence is None:
            self.waiting.discard(job)
        elif keep:
            self.prefixes.keep(self._stop(job))
        else:
            self.prefixes.release(self._stop(job))

    def plan(self) -> list[Part]:
        """Return the parts of the next step, those of decoding jobs first; [] if there is nothing to do.

        There are free pages for all parts. The caller runs the step and calls `advance` with each part.
        """
        self._step += 1
        self._admit()
        while self.running:
            parts = self._decode()
            parts += self._read(parts)
            if parts:
                self._free_pages_for(parts)
                return parts
            self._preempt()  # prompts hold all pages, and no prompt can be read further
        return []

    def advance(self, part: Part, right: int = 0) -> None:
        """Note that the tokens of a part are in the cache.

        `right`: how many guesses were right; the job's tokens include these now. The others leave the cache.
        """
        job, blocks = part.job, part.job.read // PAGE
        wrong = len(part.draft) - right
        job.read += part.count - wrong
        if wrong:
            self.cache.truncate(job.read, job.sequence or 0)
        if job.read // PAGE > blocks:
            extend_keys(job.keys, job.tokens[: job.read])
            assert job.sequence is not None
            self.prefixes.add(job.sequence, job.keys[blocks : job.read // PAGE])

    def _decode(self) -> list[Part]:
        """Return the parts that decode, oldest first. Preempts the youngest jobs if their pages do not fit."""
        parts, taken = list[Part](), 0
        for job in [job for job in self.running if job.target - job.read == 1]:
            needed = pages_of(job.read + 1) - pages_of(job.read)
            # `free_pages` is read only if the job needs a page: its native call releases the GIL, which costs time
            while needed and job.sequence is not None and taken + needed > self.free_pages:
                self._preempt()  # the youngest job, which is this one or has no part yet
            if job.sequence is None:
                continue
            draft = self._draft(job, taken)
            parts.append(Part(job, 1 + len(draft), 1 + len(draft), True, draft))
            taken += _new_pages(parts[-1])
        return parts

    def _draft(self, job: Job, taken: int) -> tuple[int, ...]:
        """Return guesses of a job's next tokens; () if guesses do not pay now, or no pages are free for them."""
        if not self.drafting or job.drafter is None or len(self.running) > DRAFTING_JOBS or not job.announced:
            return ()
        draft = job.drafter.draft(job.tokens, job.max_read - job.target)
        fits = not draft or pages_of(job.target + len(draft)) - pages_of(job.read) + taken <= self.free_pages
        return draft if fits else ()

    def _read(self, decoding: list[Part]) -> list[Part]:
        """Return the parts of prompts, to read beside the parts that decode. Clients take turns. Preempts no job."""
        readers = [job for job in self.running if job.target - job.read > 1]
        budget = self.pace.budget(len(decoding), len(readers))
        self._turns = {job.client: self._turns.get(job.client, 0) for job in readers}
        if budget <= 0 or not readers:
            return []
        parts, rows = list[Part](), SCORED_ROWS
        free = self.free_pages - sum(map(_new_pages, decoding))
        for job in sorted(readers, key=lambda job: self._turns[job.client]):
            if budget <= 0:
                break
            free -= self._share(job)
            count = min(job.target - job.read, budget, (pages_of(job.read) + free) * PAGE - job.read)
            wanted = max(job.read + count - job.logits_from, 0)
            if wanted > 1:
                count -= max(wanted - rows, 0)
                wanted = min(wanted, rows)
                rows -= wanted
            if count <= 0:
                continue
            parts.append(Part(job, count, wanted, False))
            self._turns[job.client] = self._step
            budget -= count
            free -= _new_pages(parts[-1])
        return parts

    def _share(self, job: Job) -> int:
        """Share the blocks of another sequence, if it holds more of the job's tokens than the job has read.

        Return how many free pages this takes.
        """
        blocks = job.read // PAGE
        shared = self.prefixes.match(_shareable(job), blocks)
        if shared <= blocks:
            return 0
        free = self.free_pages
        assert job.sequence is not None
        self.prefixes.share(job.sequence, job.keys[:shared])
        if not job.preempted:
            job.cached = min(shared * PAGE, len(job.request.prompt))
        job.read = shared * PAGE
        return free - self.free_pages

    def _free_pages_for(self, parts: list[Part]) -> None:
        """Evict kept blocks until enough pages are free for the parts."""
        needed = sum(map(_new_pages, parts))
        while needed and needed > self.cache.free_pages and self.prefixes.evict():
            pass

    def _admit(self) -> None:
        """Let waiting jobs run, in turn, as long as their pages fit beside those that running jobs still need."""
        if not self.waiting or len(self.running) >= self.max_running:
            return
        # one page more for each running job: otherwise the next new token would preempt the admitted job again
        promised = sum(pages_of(job.target) - pages_of(job.read) + 1 for job in self.running)
        while len(self.running) < self.max_running and (job := self.waiting.first()) is not None:
            keys = _shareable(job)
            keys = keys[: self.prefixes.match(keys)]
            needed = pages_of(job.target) - len(keys)
            if self.running and promised + needed > self.free_pages - self.prefixes.evictable_of(keys):
                return
            self.waiting.take()
            job.sequence = self.prefixes.take()
            self.running.append(job)
            self._share(job)
            promised += needed + 1

    def _preempt(self) -> None:
        """Move the youngest running job to the front of the queue. Its blocks are the first to be evicted."""
        job = self.running[-1]
        self.prefixes.keep(self._stop(job), evict_first=True)
        job.preempted = True
        self.waiting.put_back(job)
        self.preemptions += 1

    def _stop(self, job: Job) -> int:
        """Remove a job from the running ones; return the number of its sequence."""
        sequence = job.sequence
        assert sequence is not None
        self.running.remove(job)
        job.sequence, job.read = None, 0
        return sequence


def _shareable(job: Job) -> list[bytes]:
    """Return the keys of the blocks that a job may share: those before the first token whose logits it needs."""
    extend_keys(job.keys, job.tokens)
    return job.keys[: job.logits_from // PAGE]


def _new_pages(part: Part) -> int:
    """Return how many pages a part adds to its sequence."""
    return pages_of(part.job.read + part.count) - pages_of(part.job.read)


def pages_of(tokens: int) -> int:
    """Return how many pages a sequence of `tokens` tokens takes."""
    return -(-tokens // PAGE)
