"""The same scheme for every layer, with the exceptions a model needs, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zeropoint.checkpoint import Checkpoint
from zeropoint.plan import Plan
from zeropoint.scheme import Scheme


def uniform_plan(
    checkpoint: Checkpoint,
    scheme_or_format: Scheme | str,
    *,
    embedding: Scheme | str | None = None,
    lm_head: Scheme | str | None = None,
    keep: Sequence[str] = (),
    algorithm: str = "rtn",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Plan:
    raise NotImplementedError
