"""Fuzzing of file readers: seeded mutants of intact files, and checks of what a reader does with each.

A reader of a mutant has three possible outcomes:

- "refused": it raises a `ZeropointError` with one clear sentence;
- "same": it returns the intact file's model, because the damage hit padding or unused text;
- "another": it returns another sound model, because the damage hit a number or name that nothing else in the file
  repeats. A `strict` mutant contradicts the rest of the file, so this outcome is an error.

In every case the reader's memory is bounded by the memory that the intact file takes.

`python -m tests.support.damage_search 5000` tries more mutants than the test suite.
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

#: Bytes that reading a mutant may take beyond twice the intact file's: error messages quote damaged headers.
SPARE_BYTES = 1 << 20
#: Bytes by which the address space may grow while mutants are read: a reader that trusts a huge count fails at once.
HEADROOM_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Mutant:
    """A file's damaged content, and a text `what` that describes the damage. `strict`: see the module's docstring."""

    what: str
    content: bytes
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """A file to damage.

    - `damage` makes a mutant of the file's bytes;
    - `load` reads the file and returns a digest of everything that the reader returns;
    - `mended`: whether the reader replaces a damaged file with data from elsewhere.
    """

    name: str
    file: Path
    damage: Callable[[bytes, random.Random], Mutant]
    load: Callable[[], str]
    mended: bool = False


class Trial:
    """Reads mutants of one subject, one after the other. Must run within `limited`."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._whole = subject.file.read_bytes()
        subject.load()  # fills imports and caches, which are not counted as memory of the reader
        before = _begin()
        self._intact_digest, self.whole_bytes = subject.load(), _taken(before)

    def run(self, count: int, seed: int) -> dict[Outcome, int]:
        """Try `count` mutants and return how often each outcome came. Raises `AssertionError` at the first failure."""
        outcomes, failures = self.search(count, seed, most=1)
        assert not failures, failures[0]
        return outcomes

    def search(self, count: int, seed: int, most: int = 20) -> tuple[dict[Outcome, int], list[str]]:
        """Try `count` mutants, up to `most` failures. Return how often each outcome came, and the failures as texts."""
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
        where, limit = f"{which}: {mutant.what}", 2 * self.whole_bytes + SPARE_BYTES
        digest, taken = self._read(mutant, where)
        if taken > limit:
            # What happens once in a process (a module loaded late, another thread's work) is counted too: read again.
            digest, taken = self._read(mutant, where)
        assert taken <= limit, f"{where}: it took {taken} bytes"
        if not digest:
            return "refused"
        assert digest == self._intact_digest or not mutant.strict, f"{where}: another model was read"
        return "same" if digest == self._intact_digest else "another"

    def _read(self, mutant: Mutant, where: str) -> tuple[str, int]:
        """Read a mutant. Return the digest, "" if the mutant was refused, and the bytes of memory that were taken."""
        self.subject.file.write_bytes(mutant.content)
        digest, before = "", _begin()
        try:
            digest = self.subject.load()
        except ZeropointError as error:
            check_sentence(str(error), where)
        except BaseException as error:
            raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
        return digest, _taken(before)


def _begin() -> int:
    """Reset the peak of traced memory and return the bytes allocated now."""
    tracemalloc.reset_peak()
    return tracemalloc.get_traced_memory()[0]


def _taken(before: int) -> int:
    """Return the peak of traced memory since `_begin`, minus the bytes allocated then."""
    return tracemalloc.get_traced_memory()[1] - before


def check_sentence(text: str, where: str) -> None:
    """Assert that an error message is one printable line of bounded length, without the name of a Python exception."""
    assert text, f"{where}: the error message is empty"
    assert text.isprintable(), f"{where}: not one printable line: {text!r}"
    assert len(text) <= MAX_SENTENCE, f"{where}: {len(text)} characters: {text}"
    assert not re.search(r"Traceback|\b(Key|Type|Value|Index|Overflow|Recursion|Attribute)Error\b", text), (
        text
    )


@contextmanager
def limited() -> Iterator[None]:
    """Trace memory, and limit the growth of the address space to `HEADROOM_BYTES`, in the `with` body."""
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
