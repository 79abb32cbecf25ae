"""Quality: the divergence of candidates' predictions from a reference model's, paired token by token.

All models read the same windows in turn, so memory holds one window's logits per model. For a token with reference
distribution p and candidate distribution q:

    KL(p || q) = sum_v p_v (ln p_v - ln q_v)      nats
    top-1      = argmax p == argmax q
    NLL        = -ln q[next token];  perplexity = exp(mean NLL)

`zeropoint.kernels.divergence` computes all three with an error of 1e-6 nats. That precision is needed, because a KL of
1e-4 is the difference of numbers near 10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import ArtifactError, UsageError
from zeropoint.evaluate.quality.windows import Windows
from zeropoint.evaluate.statistics.bootstrap import (
    RESAMPLES,
    Estimate,
    Resampler,
    estimate_exponential_of_mean,
    estimate_mean,
    estimate_quantile,
    estimate_share,
    resampler,
)
from zeropoint.kernels.divergence import divergence
from zeropoint.values.arrays import Doubles

_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)


class LogitsSource(Protocol):
    """A source of logits: the part of a runner that quality needs."""

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logits of token ids `[T]`, float32 `[T, vocabulary]`."""
        ...


@dataclass(frozen=True, slots=True)
class TokenScores:
    """A model's scores per token `[n]`: KL from the reference model and own negative log likelihood, both in nats, and
    whether both models have the same argmax token."""

    kl: Doubles
    nll: Doubles
    agrees: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Quality:
    """The quality of one model against the reference model, over all scored tokens."""

    perplexity: Estimate
    perplexity_ratio: Estimate
    kl_mean: Estimate
    kl_p99: Estimate
    kl_max: Estimate
    top1_agreement: Estimate
    kl_percentiles: Mapping[str, float]

    @property
    def detectable_kl(self) -> float:
        """The smallest true change of mean KL that a text like this one detects in 80 % of cases."""
        return self.kl_mean.detectable

    @property
    def detectable_perplexity_ratio(self) -> float:
        """The smallest true change of the perplexity ratio that a text like this one detects in 80 % of cases."""
        return self.perplexity_ratio.detectable

    def to_json(self) -> dict[str, Any]:
        return {
            "perplexity": self.perplexity.to_json(),
            "perplexity_ratio": self.perplexity_ratio.to_json(),
            "kl_divergence": self.kl_mean.to_json(),
            "kl_p99": self.kl_p99.to_json(),
            "kl_max": self.kl_max.to_json(),
            "top1_agreement": self.top1_agreement.to_json(),
            "kl_percentiles": dict(self.kl_percentiles),
            "detectable_kl": self.detectable_kl,
            "detectable_perplexity_ratio": self.detectable_perplexity_ratio,
        }


@dataclass(frozen=True, slots=True)
class QualityRun:
    """The result of `measure_quality`, with the number of scored tokens and of resampled units."""

    reference_perplexity: Estimate
    candidates: Mapping[str, Quality]
    scored_tokens: int
    units: int
    unit_kind: str


def measure_quality(
    reference: LogitsSource,
    candidates: Mapping[str, LogitsSource],
    *,
    windows: Windows,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: Callable[[float], None] | None = None,
) -> QualityRun:
    """Return the quality of every candidate against the reference model on the same windows.

    `progress` gets the finished fraction. Raises `UsageError` if vocabularies differ, `ArtifactError` if a model's
    logits are not finite.
    """
    nll, scores = score_windows(reference, candidates, windows, progress)
    draws = resampler(windows.documents[:, 1:].ravel(), seed=seed, resamples=resamples)
    return QualityRun(
        estimate_exponential_of_mean(nll, draws),
        {name: summarize(each, nll, draws) for name, each in scores.items()},
        windows.scored_tokens,
        draws.units,
        draws.kind,
    )


def score_windows(
    reference: LogitsSource,
    candidates: Mapping[str, LogitsSource],
    windows: Windows,
    progress: Callable[[float], None] | None = None,
) -> tuple[Doubles, dict[str, TokenScores]]:
    """Return the reference model's negative log likelihoods and each candidate's scores, over all windows.

    Raises the errors of `measure_quality`.
    """
    reference_nll: list[Doubles] = []
    scores: dict[str, list[TokenScores]] = {name: [] for name in candidates}
    for index, tokens in enumerate(windows.tokens):
        logits = {name: _logits(model, tokens, name) for name, model in candidates.items()}
        nll, window_scores = score_window(_logits(reference, tokens, "the reference"), logits, tokens[1:])
        reference_nll.append(nll)
        for name, score in window_scores.items():
            scores[name].append(score)
        if progress is not None:
            progress((index + 1) / len(windows.tokens))
    return np.concatenate(reference_nll), {name: _join(parts) for name, parts in scores.items()}


def score_window(
    reference: NDArray[np.float32], candidates: Mapping[str, NDArray[np.float32]], targets: NDArray[np.int64]
) -> tuple[Doubles, dict[str, TokenScores]]:
    """Score one window: logits, float32 `[T, vocabulary]` each, and the next tokens `targets` `[T - 1]`.

    Return the reference model's negative log likelihoods `[T - 1]` and each candidate's scores.
    """
    count = targets.size
    scores, reference_nll = {}, np.empty(count)
    for name, logits in candidates.items():
        if logits.shape != reference.shape:
            raise UsageError(
                f"{name} gives logits of shape {logits.shape} and the reference {reference.shape}: "
                "they are not the same model"
            )
        kl, reference_nll, nll, agrees = divergence(reference[:count], logits[:count], targets)
        scores[name] = TokenScores(kl, nll, agrees)
    return reference_nll, scores


def _logits(model: LogitsSource, tokens: NDArray[np.int64], name: str) -> NDArray[np.float32]:
    """Return the logits of one window. Raises `ArtifactError` if one is not finite."""
    logits = model.logits(tokens)
    if not logits.max() < np.inf:  # one pass finds infinity and NaN, because NaN < inf is false
        raise ArtifactError(f"{name} gives logits that are not finite: it is damaged or overflows")
    return logits


def _join(parts: list[TokenScores]) -> TokenScores:
    return TokenScores(
        np.concatenate([p.kl for p in parts]),
        np.concatenate([p.nll for p in parts]),
        np.concatenate([p.agrees for p in parts]),
    )


def summarize(scores: TokenScores, reference_nll: Doubles, draws: Resampler) -> Quality:
    """Return means, tails and bootstrap intervals of per-token scores `[n]`.

    The perplexity ratio is paired: both models are resampled with the same documents.
    """
    kl = scores.kl
    return Quality(
        perplexity=estimate_exponential_of_mean(scores.nll, draws),
        perplexity_ratio=estimate_exponential_of_mean(scores.nll - reference_nll, draws),
        kl_mean=estimate_mean(kl, draws),
        kl_p99=estimate_quantile(kl, 0.99, draws),
        kl_max=Estimate.exact(float(kl.max()), kl.size),
        top1_agreement=estimate_share(scores.agrees.astype(np.float64), draws),
        kl_percentiles={str(q): float(np.percentile(kl, q)) for q in _PERCENTILES},
    )
