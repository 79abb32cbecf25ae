"""Measurement of quality on a text.

`windows.py` cuts the text into windows of tokens, `token_scores.py` compares each token's prediction with the original
model's, and `greedy_answers.py` lets models answer prompts for people to read.
"""

from zeropoint.evaluate.quality.token_scores import (
    LogitsSource,
    Quality,
    QualityRun,
    TokenScores,
    measure_quality,
    score_window,
    summarize,
)

__all__ = [
    "LogitsSource",
    "Quality",
    "QualityRun",
    "TokenScores",
    "measure_quality",
    "score_window",
    "summarize",
]
