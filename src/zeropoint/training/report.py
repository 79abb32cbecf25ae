"""What training recovered: the loss of the trained artifact beside that of the one it started from, on other text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeropoint.evaluate.quality.token_scores import LogitsSource, score_windows
from zeropoint.evaluate.quality.windows import EvaluationText, make_windows
from zeropoint.evaluate.statistics import Estimate, estimate_mean, estimate_ratio, resampler
from zeropoint.progress import Progress, silent
from zeropoint.runtime import open_runner


@dataclass(frozen=True, slots=True)
class Recovery:
    """KL divergence (nats a token) from the float model before and after training, and the share of it recovered.

    `share` is 1 - after / before, with the 95 % interval of paired resamples of documents (`units` of `unit_kind`).
    """

    before: Estimate
    after: Estimate
    share: Estimate
    text: str
    text_digest: str
    scored_tokens: int
    units: int
    unit_kind: str

    @property
    def sentence(self) -> str:
        """Return the result in one sentence."""
        reach = 100 * (self.share.high - self.share.low) / 2
        return (
            f"recovers {100 * self.share.value:.0f} % ± {reach:.0f} of the loss of quantization: "
            f"KL {self.before.value:.4g} before, {self.after.value:.4g} after, on {self.scored_tokens} tokens of "
            f"{self.text}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the card."""
        return {
            "kl_before": self.before.to_json(),
            "kl_after": self.after.to_json(),
            "recovered": self.share.to_json(),
            "text": self.text,
            "text_digest": self.text_digest,
            "scored_tokens": self.scored_tokens,
            "units": self.units,
            "unit_kind": self.unit_kind,
        }


def measure_recovery(
    model: str | Path,
    before: Path,
    after: Path,
    text: EvaluationText,
    *,
    tokens: int,
    context: int,
    threads: int,
    seed: int = 0,
    progress: Progress = silent,
) -> Recovery:
    """Measure two artifacts of the float model `model` on `tokens` tokens of a text, each in its engine.

    The text is read in windows of `context` tokens."""
    reference = open_runner(model, threads=threads)
    runners: Mapping[str, LogitsSource] = {
        "before": open_runner(before, threads=threads),
        "after": open_runner(after, threads=threads),
    }
    windows = make_windows(text, reference, tokens=tokens, context=context)
    what = "measuring what was recovered"
    _, scores = score_windows(reference, runners, windows, lambda done: progress(what, done, 1))
    first, last = scores["before"].kl, scores["after"].kl
    draws = resampler(windows.documents[:, 1:].ravel(), seed=seed)
    ratio = estimate_ratio(last, first, draws)
    share = Estimate(
        1 - ratio.value, 1 - ratio.high, 1 - ratio.low, ratio.standard_error, ratio.n, ratio.detectable
    )
    return Recovery(
        estimate_mean(first, draws),
        estimate_mean(last, draws),
        share,
        text.source,
        text.digest,
        windows.scored_tokens,
        draws.units,
        draws.kind,
    )
