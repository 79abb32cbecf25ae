"""`Budget`: a user's bounds on memory, loss and speed, and parsers of their units: `80MB`, `1%`, `100tok/s`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from zeropoint.errors import UsageError

_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
#: A number below this needs a unit: no model is that small, so "110" is a forgotten "MB".
SMALLEST_BYTES = 10**6
_NUMBER = r"((?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)"


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds on a quantized model; None means no bound. `fit` optimizes quantities without a bound within the others.

    - `max_memory`: bytes of all weights in the artifact;
    - `max_kl`: mean KL divergence from the 16-bit model, nats per token;
    - `max_perplexity_increase`: relative to the 16-bit model, 0.01 is 1 %;
    - `max_accuracy_drop`: absolute fall of the accuracy on each task, 0.02 is two more wrong answers in 100;
    - `min_decode`, `min_prefill`: tokens per second of one sequence, generated and read.

    Raises `UsageError` for a bound that is not above zero.
    """

    max_memory: int | None = None
    max_kl: float | None = None
    max_perplexity_increase: float | None = None
    min_decode: float | None = None
    min_prefill: float | None = None
    max_accuracy_drop: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value > 0:
                raise UsageError(f"the budget's {name} must be above zero, not {value}")

    @property
    def bounds_loss(self) -> bool:
        """Return whether KL divergence or perplexity has a bound."""
        return self.max_kl is not None or self.max_perplexity_increase is not None

    @property
    def is_empty(self) -> bool:
        """Return whether no bound can guide a plan.

        Accuracy does not count: only quantizing shows the accuracy.
        """
        return all(value is None for name, value in asdict(self).items() if name != "max_accuracy_drop")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Budget:
        """Return the budget that `to_json` wrote. Raises `UsageError` for unknown fields."""
        try:
            return cls(**data)
        except TypeError as cause:
            raise UsageError(f"this is not a budget: {cause}") from None


def parse_bytes(text: str) -> int:
    """Return the bytes that `80MB`, `1.5 GiB` or `90000000` names.

    Raises `UsageError` for other texts, and for a number without a unit that is too small to be meant as bytes.
    """
    match = re.fullmatch(rf"\s*{_NUMBER}\s*([kmg]?i?b?)\s*", text.lower())
    if match is None or match[2] not in _BYTES:
        raise UsageError(f"{text!r} is not an amount of memory: write 80MB or 1.5GB")
    size = round(float(match[1]) * _BYTES[match[2]])
    if not match[2] and size < SMALLEST_BYTES:
        raise UsageError(f"{text!r} needs a unit: write {match[1]}MB or {match[1]}GB")
    return size


def parse_share(text: str) -> float:
    """Return the number that `1%` or `0.01` names (nats have no unit). Raises `UsageError` for other texts."""
    match = re.fullmatch(rf"\s*{_NUMBER}\s*(%?)\s*", text.lower())
    if match is None:
        raise UsageError(f"{text!r} is neither a number nor a percentage")
    return float(match[1]) / (100 if match[2] else 1)


def parse_rate(text: str) -> float:
    """Return the tokens per second of `100tok/s`, `100 tokens/s` or `100`. Raises `UsageError` for other texts."""
    match = re.fullmatch(rf"\s*{_NUMBER}\s*(tok(en)?s?/s)?\s*", text.lower())
    if match is None:
        raise UsageError(f"{text!r} is not a speed: write 100tok/s")
    return float(match[1])
