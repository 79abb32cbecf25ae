"""What a user asks of a quantized model, in the units people write: `80MB`, `1%`, `100tok/s`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from zeropoint.errors import UsageError

_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds; None is no bound, and what is not bounded is made as good as the others allow.

    - `max_memory`: bytes of all weights, in the artifact and so in memory;
    - `max_kl`: mean KL divergence from the 16-bit model, nats a token;
    - `max_perplexity_increase`: relative, 0.01 is 1 %;
    - `max_accuracy_drop`: the fall of accuracy on each task, 0.02 is two more wrong answers in 100;
    - `min_decode`, `min_prefill`: tokens a second of one sequence on this machine, generated and read.
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

    @classmethod
    def parse(
        cls,
        *,
        max_memory: str | None = None,
        max_kl: str | None = None,
        max_perplexity_increase: str | None = None,
        min_decode: str | None = None,
        min_prefill: str | None = None,
        max_accuracy_drop: float | None = None,
    ) -> Budget:
        """From human units. Raises `UsageError` for what cannot be read."""
        return cls(
            None if max_memory is None else parse_bytes(max_memory),
            None if max_kl is None else parse_share(max_kl),
            None if max_perplexity_increase is None else parse_share(max_perplexity_increase),
            None if min_decode is None else parse_rate(min_decode),
            None if min_prefill is None else parse_rate(min_prefill),
            max_accuracy_drop,
        )

    @property
    def bounds_loss(self) -> bool:
        return self.max_kl is not None or self.max_perplexity_increase is not None

    @property
    def is_empty(self) -> bool:
        """Nothing to plan by: accuracy alone is only known when a plan has been carried out."""
        return all(value is None for name, value in asdict(self).items() if name != "max_accuracy_drop")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Budget:
        """Raises `UsageError` for fields it does not know."""
        try:
            return cls(**data)
        except TypeError as cause:
            raise UsageError(f"this is not a budget: {cause}") from None


def parse_bytes(text: str) -> int:
    """`80MB`, `1.5 GiB`, `90000000`."""
    found = re.fullmatch(rf"\s*{_NUMBER}\s*([kmg]?i?b?)\s*", text.lower())
    if found is None or found[2] not in _BYTES:
        raise UsageError(f"{text!r} is not an amount of memory: write 80MB or 1.5GB")
    return round(float(found[1]) * _BYTES[found[2]])


def parse_share(text: str) -> float:
    """`1%`, `0.01`; nats are written plainly."""
    found = re.fullmatch(rf"\s*{_NUMBER}\s*(%?)\s*", text.lower())
    if found is None:
        raise UsageError(f"{text!r} is neither a number nor a percentage")
    return float(found[1]) / (100 if found[2] else 1)


def parse_rate(text: str) -> float:
    """`100tok/s`, `100 tokens/s`, `100`."""
    found = re.fullmatch(rf"\s*{_NUMBER}\s*(tok(en)?s?/s)?\s*", text.lower())
    if found is None:
        raise UsageError(f"{text!r} is not a speed: write 100tok/s")
    return float(found[1])
