"""`Scheduler`: which tokens the next step reads. Pure Python: it knows the key-value cache by its pages only.

Every step reads the last token of each request that decodes, and a part of the prompts that are still to be read. A
request runs, which means that it has a sequence in the cache, or it waits. If the pages run out, the request that began
last gives its pages up, waits before all others, and reads its tokens again when there is room; no token is lost, since
its new tokens are now part of what it reads.
"""

from __future__ import annotations

from dataclasses import dataclass

from zeropoint.serve.draft import MOST
from zeropoint.serve.job import FairQueue, Job
from zeropoint.serve.pace import Pace
from zeropoint.serve.prefix_cache import PAGE, Pages, PrefixCache, extend_keys

#: The most rows of logits of a step that prompts need beside the one after their last tokens: a row has as many floats
#: as the vocabulary.
SCORED_ROWS = 64
#: Tokens are guessed only while so few requests run: rows of a full batch are better used for the others' tokens.
DRAFTING_JOBS = 2


@dataclass(frozen=True, slots=True)
class Part:
    """The next `count` unread tokens of a job; `wanted`: how many of them, the last ones, need logits.

    `decodes`: whether it is a job's only unread token. Then `count` includes the tokens of `draft`, guesses of what
    follows.
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

    `cache` has `sequences` sequences, at least `max_running`. Those that no request uses keep what was read, as long as
    their pages are free, for later requests that begin with the same tokens (`prefix_sharing`).
    `drafting`: whether next tokens are guessed while few requests run.
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
        """Return the most rows of logits of a step."""
        return self.max_running + SCORED_ROWS + DRAFTING_JOBS * MOST

    @property
    def free_pages(self) -> int:
        """Return the pages that no running request uses."""
        return self.cache.free_pages + self.prefixes.evictable

    def add(self, job: Job) -> None:
        """Let a new job wait."""
        self.waiting.add(job)

    def remove(self, job: Job, *, keep: bool) -> None:
        """Forget a job that has ended, wherever it is; `keep`: later requests may share what it has read."""
        if job.slot is None:
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
            self._preempt()  # prompts that have taken all pages, and none can be read to its end
        return []

    def advance(self, part: Part, right: int = 0) -> None:
        """Note that the tokens of a part are in the cache.

        `right`: how many guesses were right; the job's tokens include these now. The others leave the cache.
        """
        job, blocks = part.job, part.job.read // PAGE
        wrong = len(part.draft) - right
        job.read += part.count - wrong
        if wrong:
            self.cache.truncate(job.read, job.slot or 0)
        if job.read // PAGE > blocks:
            extend_keys(job.keys, job.tokens[: job.read])
            assert job.slot is not None
            self.prefixes.add(job.slot, job.keys[blocks : job.read // PAGE])

    # -- parts of a step ----------------------------------------------------------------------

    def _decode(self) -> list[Part]:
        """Return the parts that decode, oldest first. Preempts the youngest jobs if their pages do not fit."""
        parts, taken = list[Part](), 0
        for job in [job for job in self.running if job.target - job.read == 1]:
            needed = pages_of(job.read + 1) - pages_of(job.read)
            # most tokens need no page: then the cache is not asked, because native calls give the interpreter lock up
            while needed and job.slot is not None and taken + needed > self.free_pages:
                self._preempt()  # never a job that has a part already: those began before this one
            if job.slot is None:
                continue
            draft = self._draft(job, taken)
            parts.append(Part(job, 1 + len(draft), 1 + len(draft), True, draft))
            taken += _new_pages(parts[-1])
        return parts

    def _draft(self, job: Job, taken: int) -> tuple[int, ...]:
        """Return guesses of a job's next tokens, () if they do not pay or there are no pages for them."""
        if not self.drafting or job.drafter is None or len(self.running) > DRAFTING_JOBS or not job.announced:
            return ()
        draft = job.drafter.draft(job.tokens, job.most - job.target)
        fits = not draft or pages_of(job.target + len(draft)) - pages_of(job.read) + taken <= self.free_pages
        return draft if fits else ()

    def _read(self, decoding: list[Part]) -> list[Part]:
        """Return parts of prompts beside those that decode. Clients take turns. No job is preempted for a prompt."""
        budget = self.pace.budget(len(decoding))
        readers = [job for job in self.running if job.target - job.read > 1]
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
            wanted = max(job.read + count - job.wanted, 0)
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
        """Let a job begin with what other requests have read of its tokens, if that is more than it has read itself.

        Return how many fewer pages are free then.
        """
        blocks = job.read // PAGE
        shared = self.prefixes.match(_shareable(job), blocks)
        if shared <= blocks:
            return 0
        free = self.free_pages
        assert job.slot is not None
        self.prefixes.share(job.slot, job.keys[:shared])
        if not job.preempted:
            job.cached = min(shared * PAGE, len(job.request.prompt))
        job.read = shared * PAGE
        return free - self.free_pages

    def _free_pages_for(self, parts: list[Part]) -> None:
        """Evict what is kept until the parts' pages are free."""
        needed = sum(map(_new_pages, parts))
        while needed and needed > self.cache.free_pages and self.prefixes.evict():
            pass

    # -- running and waiting ------------------------------------------------------------------

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
            job.slot = self.prefixes.take()
            self.running.append(job)
            self._share(job)
            promised += needed + 1

    def _preempt(self) -> None:
        """Let the job that began last wait before all others. What it has read is the first to be evicted."""
        job = self.running[-1]
        self.prefixes.keep(self._stop(job), evict_first=True)
        job.preempted = True
        self.waiting.put_back(job)
        self.preemptions += 1

    def _stop(self, job: Job) -> int:
        """Take a running job out; return its sequence."""
        sequence = job.slot
        assert sequence is not None
        self.running.remove(job)
        job.slot, job.read = None, 0
        return sequence


def _shareable(job: Job) -> list[bytes]:
    """Return the keys of the blocks that a job may share: those before the first token whose logits it needs."""
    extend_keys(job.keys, job.tokens)
    return job.keys[: job.wanted // PAGE]


def _new_pages(part: Part) -> int:
    return pages_of(part.job.read + part.count) - pages_of(part.job.read)


def pages_of(tokens: int) -> int:
    """Return the pages of a sequence of so many tokens."""
    return -(-tokens // PAGE)
