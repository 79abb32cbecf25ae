"""Quality on a text: the text and its token windows (`windows.py`), scores per token against the reference model
(`token_scores.py`), and answers for people to read (`greedy_answers.py`)."""

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
