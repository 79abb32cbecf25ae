"""The scheduler with a fake cache: which tokens each step reads, in which order, and which pages are freed."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serve.fake_cache import FakeCache
from zeropoint.serve.job import FairQueue, Job
from zeropoint.serve.pace import ROWS, Pace
from zeropoint.serve.prefix_cache import PAGE
from zeropoint.serve.request import Event, Request
from zeropoint.serve.scheduler import SCORED_ROWS, Part, Scheduler


def ignore(events: list[Event]) -> None: ...


def job(prompt: list[int], new: int = 4, client: str = "", **options: int) -> Job:
    return Job(Request(tuple(prompt), new, **options), ignore, client)


class Model:
    """Runs the steps of a scheduler; the next token is a function of the text."""

    def __init__(self, scheduler: Scheduler, cache: FakeCache) -> None:
        self.scheduler, self.cache = scheduler, cache

    def step(self) -> list[Part]:
        parts = self.scheduler.plan()
        for part in parts:
            each = part.job
            assert each.slot is not None
            self.cache.append(each.slot, part.tokens())
        for part in parts:
            each, right = part.job, 0
            for guess in part.draft:
                if next_token(each.tokens) != guess:
                    break
                each.add(guess)
                right += 1
            self.scheduler.advance(part, right)
            assert each.slot is not None
            assert self.cache.tokens[each.slot] == each.tokens[: each.read]
            assert each.read - part.wanted <= each.logits_from or not part.wanted
            if part.wanted:
                each.logits_from = each.read
            if each.read == each.target:
                self.choose(each)
        return parts

    def choose(self, each: Job) -> None:
        """Choose the next token of a job."""
        assert each.logits_from == each.target
        each.announced = True
        if each.request.max_new_tokens:
            each.add(next_token(each.tokens))
        if each.new_tokens == each.request.max_new_tokens:
            each.ended = True
            self.scheduler.remove(each, keep=True)


def next_token(tokens: list[int]) -> int:
    return (tokens[-1] + tokens[len(tokens) // 2] + len(tokens) // 7) % 3


def scheduler_of(pages: int = 100, sequences: int = 32, **options: int) -> tuple[Scheduler, FakeCache]:
    cache = FakeCache(pages, sequences)
    return Scheduler(cache, sequences, **{"max_running": 8, **options}), cache


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_every_job_ends_with_its_own_text_and_no_page_is_lost(seed: int) -> None:
    rng = random.Random(seed)
    pages = rng.randint(4, 30)
    scheduler, cache = scheduler_of(
        pages, rng.randint(6, 40), max_running=rng.randint(1, 6), prefix_sharing=rng.random() < 0.8
    )
    model, jobs = Model(scheduler, cache), list[Job]()
    beginnings = [[rng.randrange(3) for _ in range(rng.randint(1, 200))] for _ in range(3)]
    for _ in range(100):
        if len(jobs) < 12 and rng.random() < 0.3:
            prompt = rng.choice(beginnings) + [rng.randrange(3) for _ in range(rng.randint(0, 70))]
            prompt = prompt[: pages * PAGE - 100]
            scored = rng.choice([{}, {"prompt_logprobs": 0}, {"prompt_logits": rng.randint(1, len(prompt))}])
            jobs.append(job(prompt, rng.choice([0 if scored else 1, 3, 10, 100]), rng.choice("ab"), **scored))
            if jobs[-1].target:
                scheduler.add(jobs[-1])
            else:
                jobs.pop()
        if rng.random() < 0.02 and jobs:
            cancelled = rng.choice(jobs)
            if not cancelled.ended:
                cancelled.ended = True
                scheduler.remove(cancelled, keep=rng.random() < 0.5)
        parts = model.step()
        assert parts or not scheduler.running
        assert sum(part.count for part in parts) <= ROWS
        assert sum(part.wanted for part in parts) <= scheduler.most_rows
    for _ in range(20_000):
        if not scheduler.running and not scheduler.waiting:
            break
        assert model.step()
    assert all(each.ended for each in jobs)
    for each in jobs:
        for position in range(len(each.request.prompt), len(each.tokens)):
            assert each.tokens[position] == next_token(each.tokens[:position])
    assert scheduler.free_pages == pages
    while scheduler.prefixes.evict():
        pass
    assert cache.free_pages == pages
    assert not any(cache.tokens)


def test_a_prompt_is_read_beside_those_that_decode() -> None:
    scheduler, cache = scheduler_of(pace=_Steady())
    model = Model(scheduler, cache)
    scheduler.add(job([1] * 10, 50))
    assert [part.count for part in model.step()] == [10]
    scheduler.add(job([2] * 100, 5))
    steps = [model.step() for _ in range(4)]
    assert [[part.count - len(part.draft) for part in step] for step in steps] == [
        [1, 40],
        [1, 40],
        [1, 20],
        [1, 1],
    ]


class _Steady(Pace):
    """Reads 40 prompt tokens in each step."""

    def budget(self, decoding: int, reading: int) -> int:
        return 40


def test_clients_take_turns() -> None:
    queue, names = FairQueue(), dict[Job, str]()
    for name in ("a1", "a2", "a3", "b1", "c1", "b2"):
        each = job([1], client=name[0])
        names[each] = name
        queue.add(each)
    jobs = {name: each for each, name in names.items()}
    queue.discard(jobs["b1"])
    queue.discard(job([1], client="d"))
    first = queue.take()
    queue.put_back(first)
    assert names[first] == "a1"
    assert [names[queue.take()] for _ in range(len(queue))] == ["a1", "b2", "c1", "a2", "a3"]
    assert queue.first() is None


def test_prompts_of_clients_are_read_in_turns() -> None:
    scheduler, cache = scheduler_of(pace=_Steady())
    model = Model(scheduler, cache)
    for client in "aab":
        scheduler.add(job([ord(client)] * 80, client=client))
    readers = [[part.job.client for part in model.step() if not part.decodes] for _ in range(4)]
    assert readers == [["a"], ["b"], ["a"], ["b"]]


def test_a_shared_beginning_is_read_once() -> None:
    scheduler, cache = scheduler_of(pace=_Steady())
    model = Model(scheduler, cache)
    beginning = [1, 2] * 100
    first = job([*beginning, 3], 100)
    scheduler.add(first)
    while first.target - first.read > 1:
        model.step()
    running, later = job([*beginning, 4], 2), job([*beginning, 5], 2)
    scheduler.add(running)  # shares with one that runs
    assert [part.count for part in model.step()] == [1, 201 - 192]
    while scheduler.running:
        model.step()
    scheduler.add(later)  # shares with those that have ended
    assert [part.count for part in model.step()] == [201 - 192]
    assert [each.cached for each in (first, running, later)] == [0, 192, 192]
    same = job(first.tokens[:192], 1)
    scheduler.add(same)  # the last token is read again for its logits, and so is its block
    assert [part.count for part in [*model.step(), *model.step()] if part.job is same] == [40, 24]


def test_a_conversation_is_kept_once() -> None:
    scheduler, cache = scheduler_of()
    model = Model(scheduler, cache)
    text = [1] * 100
    for _ in range(5):
        turn = job(text, 64)
        scheduler.add(turn)
        while scheduler.running or scheduler.waiting:
            model.step()
        text = turn.tokens
        assert sum(map(bool, cache.tokens)) == 1
    assert cache.pages - cache.free_pages == (len(text) - 1) // PAGE


def test_the_longest_unused_beginning_is_evicted_from_its_end() -> None:
    scheduler, cache = scheduler_of(pages=10)
    model = Model(scheduler, cache)
    for token in (1, 2, 1):  # the first beginning is used once more
        scheduler.add(job([token] * 257, 1))
        model.step()
    scheduler.add(job([3] * 192, 1))
    model.step()
    lengths = {tokens[0]: len(tokens) for tokens in cache.tokens if tokens}
    assert lengths == {1: 256, 2: 192, 3: 192}


def test_the_youngest_gives_its_pages_up_and_reads_again() -> None:
    scheduler, cache = scheduler_of(pages=4)
    model = Model(scheduler, cache)
    old, young = job([1] * 60, 190), job([2] * 60, 100)
    scheduler.add(old)
    scheduler.add(young)
    while scheduler.running or scheduler.waiting:
        model.step()
        assert old.ended or old.slot is not None
    assert scheduler.preemptions >= 1
    assert young.preempted
    assert not old.preempted
    assert (old.new_tokens, young.new_tokens) == (190, 100)


def test_rows_of_logits_are_few() -> None:
    scheduler, cache = scheduler_of()
    model = Model(scheduler, cache)
    for _ in range(3):
        scheduler.add(job([1] * 50, 1, prompt_logprobs=0))
    scheduler.add(job([2] * 50, 1))
    steps = [[(part.count, part.wanted) for part in model.step()] for _ in range(3)]
    assert steps == [[(50, 50), (14, 14), (50, 1)], [(36, 36), (28, 28)], [(22, 22)]]


def test_scored_parts_are_short() -> None:
    scheduler, cache = scheduler_of()
    model = Model(scheduler, cache)
    scheduler.add(job([1] * 300, 0, prompt_logits=100))
    parts = [model.step()[0] for _ in range(2)]
    assert [(part.count, part.wanted) for part in parts] == [(200 + SCORED_ROWS, SCORED_ROWS), (36, 36)]
