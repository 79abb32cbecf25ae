"""How far one model's predictions are from another's, row by row: KL divergence, losses, agreement.

The C++ kernel works in float32 on differences from a row's largest logit and sums blocks of 512 in float64: within
1e-6 nats of the plain float64 computation below, which it is tested against and which takes over without the library.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zeropoint.kernels import library
from zeropoint.kernels.native import default_threads

Floats = NDArray[np.float64]
Logits = NDArray[np.float32]
Tokens = NDArray[np.int64]

# Rows turned to float64 at once by the plain computation: 64 x 50,000 words is 26 MB.
_ROWS = 64


class Divergence(NamedTuple):
    """Of each row: KL(reference || candidate) in nats, both losses -ln p[target], and whether the most likely word is
    the same."""

    kl: Floats
    reference_nll: Floats
    nll: Floats
    agrees: NDArray[np.bool_]


def divergence(
    reference: Logits, candidate: Logits, targets: Tokens, *, threads: int | None = None
) -> Divergence:
    """`[rows, words]` logits of two models and the words `[rows]` that came. Logits may be -inf (masked), not NaN."""
    if library.missing() is not None or not np.isfinite(candidate).all():
        return plain(reference, candidate, targets)
    p, q = (np.ascontiguousarray(logits, np.float32) for logits in (reference, candidate))
    wanted = np.ascontiguousarray(targets, np.int64)
    rows, words = p.shape
    library.require_shape("candidate", q, (rows, words))
    library.require_shape("targets", wanted, (rows,))
    found = np.zeros(rows, library.DIVERGENCE_ROW)
    status = library.load().zp_divergence(
        p.ctypes.data,
        words,
        q.ctypes.data,
        words,
        wanted.ctypes.data,
        rows,
        words,
        found.ctypes.data,
        default_threads() if threads is None else threads,
    )
    library.check(status)
    # rounding may leave -1e-7
    kl = np.maximum(found["divergence"], 0.0)
    return Divergence(kl, found["p_loss"].copy(), found["q_loss"].copy(), found["agrees"] != 0)


def plain(reference: Logits, candidate: Logits, targets: Tokens) -> Divergence:
    """The same in float64, by the definition."""
    rows = len(targets)
    found = Divergence(np.empty(rows), np.empty(rows), np.empty(rows), np.empty(rows, np.bool_))
    for start in range(0, rows, _ROWS):
        part = slice(start, min(start + _ROWS, rows))
        at = (np.arange(part.stop - start), targets[part])
        log_p, log_q = log_softmax(reference[part]), log_softmax(candidate[part])
        p = np.exp(log_p)
        # A word the model masks has p = 0 and ln p = -inf; its term is 0 by continuity.
        with np.errstate(invalid="ignore"):
            difference = log_p - log_q
        terms = np.multiply(p, difference, where=p > 0, out=np.zeros_like(p))
        found.kl[part] = np.maximum(terms.sum(axis=1), 0.0)
        found.reference_nll[part], found.nll[part] = -log_p[at], -log_q[at]
        found.agrees[part] = log_p.argmax(axis=1) == log_q.argmax(axis=1)
    return found


def log_softmax(logits: Logits) -> Floats:
    """Log probabilities of each row, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
