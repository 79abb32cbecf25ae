"""The loss of a plan: mean KL divergence from the 16-bit model on a fixed text, in about a second.

The native engine runs both. The 16-bit model's logits are stored once, in the cache if there is one. Each
candidate is compared window by window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zeropoint.kernels.divergence import divergence
from zeropoint.predictions import LOGITS_BYTES
from zeropoint.runtime.native.library import Decoder
from zeropoint.runtime.native.packed_weights import Packed, PackedWeights, collect
from zeropoint.runtime.native.session import read, token_array
from zeropoint.values.arrays import Doubles, Floats

Keep = Callable[[float, Callable[[], Iterable[Packed]]], PackedWeights]
"""Cache callback: gets a size in bytes and a function that makes the values; returns cached or new values."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss over `tokens` predictions.

    `kl`: the mean KL divergence in nats per token. `standard_error`: that of `kl`, over the means of the windows, or
    over the tokens if there is one window. `perplexity_increase`: the relative rise of perplexity (0.01 = 1 %).
    """

    kl: float
    standard_error: float
    perplexity_increase: float
    tokens: int


class LossMeter:
    """Measures the loss of decoders against the decoder `reference` on token windows, int64 `[count, length]`."""

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
        count = max(1, min(len(windows), LOGITS_BYTES // (rows * vocab * 4)))
        self.windows = windows[:count]
        self._threads = threads
        self._logits = np.empty((windows.shape[1], vocab), np.float32)

        def run() -> Iterator[Packed]:
            """Yield the logits of each window."""
            for index in range(count):
                yield Packed(_name(index), None, self._run(reference, index).flatten())

        logits = keep(count * rows * vocab * 4, run).vectors
        self._expected = [logits[_name(index)].reshape(rows, vocab) for index in range(count)]

    def measure(self, decoder: Decoder, *, windows: int | None = None) -> Loss:
        """Return the loss of `decoder` on the first `windows` windows (None: all)."""
        count = len(self.windows) if windows is None else min(windows, len(self.windows))
        kl, excess = np.array([self._window(i, self._run(decoder, i)) for i in range(count)]).swapaxes(0, 1)
        samples = kl.mean(axis=1) if count > 1 else kl[0]
        error = float(samples.std(ddof=min(1, len(samples) - 1)) / np.sqrt(len(samples)))
        return Loss(float(kl.mean()), error, float(np.expm1(excess.mean())), kl.size)

    def _run(self, decoder: Decoder, index: int) -> Floats:
        """Return the logits of one window, float32 `[length - 1, vocabulary]`, in a buffer that the next run reuses."""
        ids = token_array(self.windows[index], decoder.record.config.vocab)
        cache = decoder.cache(len(ids))
        read(decoder, cache, ids, threads=self._threads, out=self._logits)
        return self._logits[:-1]

    def _window(self, index: int, logits: Floats) -> tuple[Doubles, Doubles]:
        """Return the KL divergence of each token of a window, and the rise of its negative log likelihood, in nats."""
        scores = divergence(self._expected[index], logits, self.windows[index, 1:], threads=self._threads)
        return scores.kl, scores.nll - scores.reference_nll


def _name(index: int) -> str:
    return f"window {index}"
