"""A key-value cache in Python that holds tokens instead of keys and values."""

from __future__ import annotations

from collections import Counter

from zeropoint.serve.prefix_cache import PAGE


class FakeCache:
    """Sequences of tokens, whose pages can be shared and count their owners, as in the native cache."""

    def __init__(self, pages: int, sequences: int) -> None:
        self.pages = pages
        self.tokens: list[list[int]] = [[] for _ in range(sequences)]
        self._pages: list[list[int]] = [[] for _ in range(sequences)]
        self._owners = Counter[int]()
        self._fresh = 0

    @property
    def free_pages(self) -> int:
        return self.pages - len(self._owners)

    def truncate(self, length: int, sequence: int = 0) -> None:
        del self.tokens[sequence][length:]
        while len(self._pages[sequence]) * PAGE >= length + PAGE:
            page = self._pages[sequence].pop()
            self._owners[page] -= 1
            if not self._owners[page]:
                del self._owners[page]

    def share(self, source: int, target: int, length: int) -> None:
        assert not self.tokens[target]
        assert length % PAGE == 0
        assert length <= len(self.tokens[source])
        self.tokens[target] = self.tokens[source][:length]
        self._pages[target] = self._pages[source][: length // PAGE]
        self._owners.update(self._pages[target])

    def append(self, sequence: int, tokens: list[int]) -> None:
        """Append tokens as a forward step does. The last page must belong to this sequence alone."""
        pages, own = self._pages[sequence], self.tokens[sequence]
        assert len(own) % PAGE == 0 or self._owners[pages[-1]] == 1
        own += tokens
        while len(pages) * PAGE < len(own):
            self._fresh += 1
            pages.append(self._fresh)
            self._owners[self._fresh] = 1
        assert self.free_pages >= 0, "more pages than there are"
