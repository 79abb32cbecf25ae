"""Mean KL divergence of any mix from the 16-bit model on a fixed text, by the native engine, in about a second.

The reference's logits are kept, on disk if there is a cache; a candidate's are compared window by window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zeropoint.kernels.divergence import divergence
from zeropoint.runtime.native.library import Decoder
from zeropoint.runtime.native.packed_weights import Packed, PackedWeights, collect
from zeropoint.runtime.native.session import read, token_array

Floats = NDArray[np.float32]
Keep = Callable[[float, Callable[[], Iterable[Packed]]], PackedWeights]
"""Given bytes and how to make them: what was kept of an earlier time, or what is made."""

#: The reference's logits take no more memory than this.
MOST_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Loss:
    """Over `tokens` predictions: mean KL in nats with its standard error over windows, and the relative rise of
    perplexity."""

    kl: float
    standard_error: float
    perplexity_increase: float
    tokens: int


class LossMeter:
    """Compares decoders with `reference` on `windows` `[count, length]` of tokens."""

    def __init__(
        self,
        reference: Decoder,
        windows: NDArray[np.int64],
        *,
        threads: int,
        keep: Keep = lambda nbytes, make: collect(make()),
    ) -> None:
        vocab = reference.record.config.vocab
        rows = windows.shape[1] - 1
        count = max(1, min(len(windows), MOST_BYTES // (rows * vocab * 4)))
        self.windows = windows[:count]
        self._threads = threads
        self._logits = np.empty((windows.shape[1], vocab), np.float32)

        def run() -> Iterator[Packed]:
            for index in range(count):
                yield Packed(_name(index), None, self._run(reference, index).flatten())

        kept = keep(count * rows * vocab * 4, run).vectors
        self._expected = [kept[_name(index)].reshape(rows, vocab) for index in range(count)]

    def measure(self, decoder: Decoder, *, windows: int | None = None) -> Loss:
        """`windows`: only the first so many."""
        count = len(self.windows) if windows is None else min(windows, len(self.windows))
        kl, excess = np.empty(count), np.empty(count)
        for index in range(count):
            kl[index], excess[index] = self._window(index, self._run(decoder, index))
        error = float(kl.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
        tokens = count * (self.windows.shape[1] - 1)
        return Loss(float(kl.mean()), error, float(np.expm1(excess.mean())), tokens)

    def _run(self, decoder: Decoder, index: int) -> Floats:
        ids = token_array(self.windows[index], decoder.record.config.vocab)
        cache = decoder.cache(len(ids))
        read(decoder, cache, ids, threads=self._threads, out=self._logits)
        return self._logits[:-1]

    def _window(self, index: int, logits: Floats) -> tuple[float, float]:
        """Mean KL of a window, and the mean rise of its negative log likelihood."""
        found = divergence(self._expected[index], logits, self.windows[index, 1:], threads=self._threads)
        return float(found.kl.mean()), float((found.nll - found.reference_nll).mean())


def _name(index: int) -> str:
    return f"window {index}"
