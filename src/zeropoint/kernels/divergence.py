"""Two models' logits compared row by row: KL divergence, losses and argmax agreement.

The C++ kernel computes in float32 on differences from the row's largest logit, and adds the sums of 512 logits each in
float64. It agrees to 1e-6 nats with `plain`, which computes in float64 and is used where the native library is missing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zeropoint.kernels import library
from zeropoint.machine.cores import default_threads
from zeropoint.values.arrays import Doubles, Logits, Tokens

# Rows that `plain` converts to float64 at once: 64 rows of 50,000 logits are 26 MB.
_ROWS = 64


class Divergence(NamedTuple):
    """Arrays `[rows]`: KL(reference || candidate) in nats, both losses -ln p[target] in nats, and whether both have the
    same argmax token (ties: lowest id)."""

    kl: Doubles
    reference_nll: Doubles
    nll: Doubles
    agrees: NDArray[np.bool_]


def divergence(
    reference: Logits, candidate: Logits, targets: Tokens, *, threads: int | None = None
) -> Divergence:
    """Compare two models' logits `[rows, vocabulary]`; `targets` `[rows]` are the token ids that followed.

    Logits may be -inf (a masked token), but not NaN. Raises `SchemeError` if shapes differ or a target is no token id.
    """
    if library.missing() is not None or not np.isfinite(candidate).all():
        return plain(reference, candidate, targets)
    p, q = (np.ascontiguousarray(logits, np.float32) for logits in (reference, candidate))
    token_ids = np.ascontiguousarray(targets, np.int64)
    rows, words = p.shape
    library.require_shape("candidate", q, (rows, words))
    library.require_shape("targets", token_ids, (rows,))
    result = np.zeros(rows, library.DIVERGENCE_ROW)
    status = library.load().zp_divergence(
        p.ctypes.data,
        words,
        q.ctypes.data,
        words,
        token_ids.ctypes.data,
        rows,
        words,
        result.ctypes.data,
        default_threads() if threads is None else threads,
    )
    library.check(status)
    kl = np.maximum(result["divergence"], 0.0)  # rounding may leave -1e-7
    return Divergence(kl, result["p_loss"].copy(), result["q_loss"].copy(), result["agrees"] != 0)


def plain(reference: Logits, candidate: Logits, targets: Tokens) -> Divergence:
    """Compute `divergence` in float64, by the definition."""
    rows = len(targets)
    result = Divergence(np.empty(rows), np.empty(rows), np.empty(rows), np.empty(rows, np.bool_))
    for start in range(0, rows, _ROWS):
        part = slice(start, min(start + _ROWS, rows))
        at = (np.arange(part.stop - start), targets[part])
        log_p, log_q = log_softmax(reference[part]), log_softmax(candidate[part])
        p = np.exp(log_p)
        # A token that the reference masks has p = 0 and ln p = -inf; its term is 0 by continuity.
        with np.errstate(invalid="ignore"):
            difference = log_p - log_q
        terms = np.multiply(p, difference, where=p > 0, out=np.zeros_like(p))
        result.kl[part] = np.maximum(terms.sum(axis=1), 0.0)
        result.reference_nll[part], result.nll[part] = -log_p[at], -log_q[at]
        result.agrees[part] = log_p.argmax(axis=1) == log_q.argmax(axis=1)
    return result


def log_softmax(logits: Logits) -> Doubles:
    """Return the log probabilities of each row, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
