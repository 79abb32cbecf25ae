"""Mean KL divergence of any mix from the 16-bit model on a fixed text, by the native engine, in about a second.

The reference's log probabilities are kept; a candidate's logits are compared window by window. In float32: the
differences summed are of log probabilities near 10 with errors of 1e-6, and the losses compared are above 1e-5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zeropoint.runtime.native.library import Decoder
from zeropoint.runtime.native.session import read, token_array

Floats = NDArray[np.float32]

#: The reference's log probabilities take no more memory than this.
MOST_BYTES = 512 << 20

_ROWS = 64  # whose logits fit the second-level cache


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

    def __init__(self, reference: Decoder, windows: NDArray[np.int64], *, threads: int) -> None:
        vocab = reference.record.config.vocab
        rows = windows.shape[1] - 1
        count = max(1, min(len(windows), MOST_BYTES // (rows * vocab * 4)))
        self.windows = windows[:count]
        self._threads = threads
        self._logits = np.empty((windows.shape[1], vocab), np.float32)
        self._expected = np.empty((count, rows, vocab), np.float32)
        for index in range(count):
            logits = self._run(reference, index)
            for start in range(0, rows, _ROWS):
                part = slice(start, min(start + _ROWS, rows))
                self._expected[index, part] = _log_softmax(logits[part])

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
        expected, targets = self._expected[index], self.windows[index, 1:]
        divergence = np.empty(len(targets))
        excess = np.empty(len(targets))
        for start in range(0, len(targets), _ROWS):
            rows = slice(start, min(start + _ROWS, len(targets)))
            difference = expected[rows] - _log_softmax(logits[rows])
            divergence[rows] = np.einsum("ij,ij->i", np.exp(expected[rows]), difference)
            excess[rows] = difference[np.arange(len(difference)), targets[rows]]
        return max(float(divergence.mean()), 0.0), float(excess.mean())


def _log_softmax(logits: Floats) -> Floats:
    shifted: Floats = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
