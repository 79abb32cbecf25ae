"""`PrefixCache` finds the sequences of the key-value cache that begin with the tokens of a new request.

A sequence is divided into blocks of 64 tokens, one page each. A block's key is a digest of its tokens and of the key of
the block before it, so equal keys mean equal beginnings. The blocks of running requests are registered as they are
read. The sequence of an ended request is kept, without a last page that is not full, until its pages are needed. Then
blocks are evicted, from the end of the least recently used sequence.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

#: Tokens of one page of the key-value cache.
PAGE = 64


class Pages(Protocol):
    """The key-value cache, as the scheduler sees it; `zeropoint.runtime.native.library.Cache` documents it."""

    @property
    def pages(self) -> int: ...

    @property
    def free_pages(self) -> int: ...

    def truncate(self, length: int, sequence: int = 0) -> None: ...

    def share(self, source: int, target: int, length: int) -> None: ...


def extend_keys(keys: list[bytes], tokens: Sequence[int]) -> None:
    """Append the keys of the blocks of `tokens` that `keys` lacks."""
    for end in range((len(keys) + 1) * PAGE, len(tokens) + 1, PAGE):
        digest = blake2b(keys[-1] if keys else b"", digest_size=16)
        digest.update(array("i", tokens[end - PAGE : end]).tobytes())
        keys.append(digest.digest())


@dataclass(slots=True, eq=False)
class _Page:
    """A full page: the key of its block, and how many running and kept sequences own it."""

    key: bytes
    running: int = 0
    kept: int = 0


class PrefixCache:
    """The full pages of all sequences of `cache`. With `enabled` false, no sequence is kept and none is found."""

    def __init__(self, cache: Pages, sequences: int, *, enabled: bool = True) -> None:
        self._cache = cache
        self._enabled = enabled
        self._free = list(range(sequences - 1, -1, -1))
        self._pages: dict[int, list[_Page]] = {}  # sequence in use -> its pages
        self._holders: dict[bytes, set[int]] = {}  # key of a block -> sequences that hold it
        self._kept: OrderedDict[int, None] = OrderedDict()  # the least recently used sequence first
        #: How many pages belong to kept sequences only. Evicting all kept sequences frees this many pages.
        self.evictable = 0

    def take(self) -> int:
        """Return an empty sequence for a running request. Evicts kept sequences if none is free."""
        while not self._free:
            self.evict()
        sequence = self._free.pop()
        self._pages[sequence] = []
        return sequence

    def add(self, sequence: int, keys: Iterable[bytes]) -> None:
        """Register the next blocks that a running request has read."""
        if self._enabled:
            self._own(sequence, [_Page(key) for key in keys])

    def match(self, keys: Sequence[bytes], first: int = 0) -> int:
        """Return how many blocks at the start of `keys` are in the cache; the first `first` ones are not looked up."""
        while first < len(keys) and keys[first] in self._holders:
            first += 1
        return first

    def evictable_of(self, keys: Sequence[bytes]) -> int:
        """Return how many evictable pages would be in use after `share(sequence, keys)`."""
        return sum(page.running == 0 for page in self._source(keys)[1]) if keys else 0

    def share(self, sequence: int, keys: Sequence[bytes]) -> None:
        """Replace the content of a running request's sequence by the blocks `keys`.

        Some other sequence must begin with these blocks.
        """
        self._disown(sequence, 0)
        self._cache.truncate(0, sequence)
        source, pages = self._source(keys)
        if source in self._kept:
            self._kept.move_to_end(source)
        self._cache.share(source, sequence, len(keys) * PAGE)
        self._own(sequence, pages)

    def release(self, sequence: int) -> None:
        """Free a sequence."""
        self._disown(sequence, 0)
        del self._pages[sequence]
        self._kept.pop(sequence, None)
        self._cache.truncate(0, sequence)
        self._free.append(sequence)

    def keep(self, sequence: int, *, evict_first: bool = False) -> None:
        """Keep the sequence of a request that no longer runs. It is evicted last; with `evict_first`, first.

        A sequence is freed instead if it has no registered pages, or if another sequence holds all its pages.
        """
        pages = self._pages[sequence]
        if not pages or len(self._holders[pages[-1].key]) > 1:  # another one holds all that this one holds
            self.release(sequence)
            return
        for page in pages[:-1]:
            for other in [s for s in self._holders[page.key] if s in self._kept]:
                if self._pages[other][-1].key == page.key:  # this one holds all that the other holds
                    self.release(other)
        for page in pages:
            page.running -= 1
            page.kept += 1
            self.evictable += page.running == 0
        self._cache.truncate(len(pages) * PAGE, sequence)
        self._kept[sequence] = None
        self._kept.move_to_end(sequence, last=not evict_first)

    def evict(self) -> bool:
        """Evict the last page of the least recently used kept sequence; return False if no sequence is kept.

        This frees the page unless another sequence owns it too.
        """
        if not self._kept:
            return False
        sequence = next(iter(self._kept))
        left = len(self._pages[sequence]) - 1
        if left == 0:
            self.release(sequence)
        else:
            self._disown(sequence, left)
            self._cache.truncate(left * PAGE, sequence)
        return True

    def _source(self, keys: Sequence[bytes]) -> tuple[int, list[_Page]]:
        """Return a sequence that begins with the blocks `keys`, and its pages of them."""
        source = next(iter(self._holders[keys[-1]]))
        return source, self._pages[source][: len(keys)]

    def _own(self, sequence: int, pages: Sequence[_Page]) -> None:
        """Append pages to a running request's sequence."""
        self._pages[sequence] += pages
        for page in pages:
            self._holders.setdefault(page.key, set()).add(sequence)
            self.evictable -= page.running == 0 and page.kept > 0
            page.running += 1

    def _disown(self, sequence: int, left: int) -> None:
        """Remove all pages from a sequence but the first `left`."""
        pages, kept = self._pages[sequence], sequence in self._kept
        for page in pages[left:]:
            holders = self._holders[page.key]
            holders.remove(sequence)
            if not holders:
                del self._holders[page.key]
            evictable = page.running == 0
            page.kept -= kept
            page.running -= not kept
            self.evictable += (page.running == 0 and page.kept > 0) - evictable
        del pages[left:]
