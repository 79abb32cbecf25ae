"""Settings of speed measurements, with checked ranges."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from zeropoint.errors import UsageError
from zeropoint.evaluate.speed.measure import MIN_REPEATS
from zeropoint.machine.cores import default_threads


@dataclass(frozen=True, slots=True)
class SpeedSettings:
    """Settings of a speed measurement: `prompt_tokens` of prefill and `new_tokens` of decode per sequence of a batch.

    Raises `UsageError` if a setting is out of range.
    """

    prompt_tokens: int = 512
    new_tokens: int = 128
    threads: int = field(default_factory=default_threads)
    batch: int = 1
    repeats: int = 5

    def __post_init__(self) -> None:
        if min(self.prompt_tokens, self.new_tokens, self.threads, self.batch) < 1:
            raise UsageError("prompt tokens, new tokens, threads and batch must be at least 1")
        if self.repeats < MIN_REPEATS:
            raise UsageError(f"speed needs at least {MIN_REPEATS} repeats for a spread, not {self.repeats}")

    def within(self, context: int | None) -> SpeedSettings:
        """Return the settings, shortened to a model's context length (None: unlimited)."""
        if context is None or self.prompt_tokens + self.new_tokens <= context:
            return self
        new = min(self.new_tokens, max(context // 4, 1))
        return SpeedSettings(
            max(min(self.prompt_tokens, context - new), 1), new, self.threads, self.batch, self.repeats
        )

    def prefill_where(self, engine: str) -> str:
        """Return the conditions of the prefill measurement in words."""
        return f"{engine} engine, {self.prompt_tokens}-token prompt, {self._load()}"

    def decode_where(self, engine: str) -> str:
        """Return the conditions of the decode measurement in words."""
        return f"{engine} engine, {self.new_tokens} tokens after {self.prompt_tokens}, {self._load()}"

    def _load(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{threads}, batch {self.batch}, median of {self.repeats}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
