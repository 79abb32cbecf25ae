"""Damaged files for tests: seeded mutants of files that are whole, and what a reader may do with one.

A reader may refuse a mutant with an error of ours, in one clear sentence. Or it may give a model: the same one, where
padding or free text was hit; where a number or a name was hit that nothing else in the file repeats, the file is a
sound one of another model, and only its soundness can be asked for. A `strict` mutant breaks what the rest of the file
contradicts, and leaves the first two outcomes. Whichever it is, the memory taken is bounded by what the whole file
takes.

`python -m tests.support.damage_search 5000` tries more mutants than the suite has time for.
"""

from __future__ import annotations

import random
import re
import resource
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zeropoint.errors import MAX_SENTENCE, ZeropointError

Outcome = Literal["refused", "same", "another"]

#: What a damaged file may make its reader take, beside twice what the whole one takes: a header of nonsense is shown.
SPARE_BYTES = 1 << 20
#: Room in the address space while mutants are read. A reader that believes in a huge count fails at once.
HEADROOM_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Mutant:
    """A file's damaged content, and what was done to it."""

    what: str
    content: bytes
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """A file, how it is damaged, and `load`: a digest of all that its reader makes of it. Of one that is `mended` the
    reader finds elsewhere what it lacks."""

    name: str
    file: Path
    damage: Callable[[bytes, random.Random], Mutant]
    load: Callable[[], str]
    mended: bool = False


class Trial:
    """Reads mutants of one subject, one after the other. Use within `limited`."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._whole = subject.file.read_bytes()
        subject.load()  # imports and caches are no part of what reading takes
        before = _begin()
        self._meant, self.whole_bytes = subject.load(), _taken(before)

    def run(self, count: int, seed: int) -> dict[Outcome, int]:
        """Try so many mutants; raises `AssertionError` naming the first that is neither refused nor sound."""
        outcomes, failures = self.search(count, seed, most=1)
        assert not failures, failures[0]
        return outcomes

    def search(self, count: int, seed: int, most: int = 20) -> tuple[dict[Outcome, int], list[str]]:
        """Outcomes of so many mutants, and what is said of the first `most` that are neither refused nor sound."""
        outcomes: dict[Outcome, int] = {"refused": 0, "same": 0, "another": 0}
        failures: list[str] = []
        for index in range(count):
            rng = random.Random(f"{self.subject.name} {seed} {index}")
            mutant = self.subject.damage(self._whole, rng)
            try:
                outcomes[self._try(mutant, f"{self.subject.name}, seed {seed}, number {index}")] += 1
            except AssertionError as error:
                failures.append(str(error))
                if len(failures) == most:
                    break
        self.subject.file.write_bytes(self._whole)
        return outcomes, failures

    def _try(self, mutant: Mutant, which: str) -> Outcome:
        self.subject.file.write_bytes(mutant.content)
        where, found = f"{which}: {mutant.what}", ""
        before = _begin()
        try:
            found = self.subject.load()
        except ZeropointError as error:
            check_sentence(str(error), where)
        except BaseException as error:
            raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
        taken = _taken(before)
        assert taken <= 2 * self.whole_bytes + SPARE_BYTES, f"{where}: it took {taken} bytes"
        if not found:
            return "refused"
        assert found == self._meant or not mutant.strict, f"{where}: another model was read"
        return "same" if found == self._meant else "another"


def _begin() -> int:
    tracemalloc.reset_peak()
    return tracemalloc.get_traced_memory()[0]


def _taken(before: int) -> int:
    """The most bytes that were allocated beside those allocated before."""
    return tracemalloc.get_traced_memory()[1] - before


def check_sentence(text: str, where: str) -> None:
    """One line that can be printed anywhere, of bounded length, and no exception's bare remains."""
    assert text, f"{where}: nothing was said"
    assert text.isprintable(), f"{where}: not one printable line: {text!r}"
    assert len(text) <= MAX_SENTENCE, f"{where}: {len(text)} characters: {text}"
    assert not re.search(r"Traceback|\b(Key|Type|Value|Index|Overflow|Recursion|Attribute)Error\b", text), (
        text
    )


@contextmanager
def limited() -> Iterator[None]:
    """Memory is traced, and the address space may grow by `HEADROOM_BYTES` only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + HEADROOM_BYTES, hard))
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
