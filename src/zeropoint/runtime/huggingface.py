"""A runner that is called like a `transformers` causal LM, for code that was written for those.

torch tensors in give torch tensors out, numpy arrays give numpy arrays; torch is never imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from zeropoint.errors import UsageError
from zeropoint.runtime.protocol import Runner
from zeropoint.runtime.sampling import Sampling


class HuggingFaceModel:
    """`model(input_ids).logits` and `model.generate(input_ids, ...)`, in inference only."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.device = "cpu"
        self.config = SimpleNamespace(
            vocab_size=runner.vocab_size,
            eos_token_id=sorted(runner.stop_tokens),
            max_position_embeddings=getattr(runner, "max_positions", None),
        )

    def __call__(self, input_ids: Any, attention_mask: Any = None, **_: Any) -> SimpleNamespace:
        """Logits `[B, T, vocab]` for ids `[B, T]`; padding on the right is computed and means nothing.

        Raises `UsageError` for padding on the left, which would shift positions.
        """
        ids = _batch(input_ids)
        _refuse_left_padding(attention_mask)
        return SimpleNamespace(logits=_like(input_ids, self.runner.logits(ids)), past_key_values=None)

    def generate(
        self,
        input_ids: Any,
        *,
        max_new_tokens: int = 20,
        attention_mask: Any = None,
        do_sample: bool = False,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        **options: Any,
    ) -> Any:
        """Ids `[B, T + new]`, shorter rows padded. `options`: temperature, top_k, top_p, min_p,
        repetition_penalty, seed."""
        ids = _batch(input_ids)
        _refuse_left_padding(attention_mask)
        stop = self.runner.stop_tokens if eos_token_id is None else set(np.atleast_1d(eos_token_id).tolist())
        if not do_sample:
            options.pop("temperature", None)
        elif "temperature" not in options:
            options["temperature"] = 1.0
        rows = []
        for row in ids.tolist():
            new = self.runner.generate(
                row, max_new_tokens=max_new_tokens, stop=stop, sampling=Sampling(**options)
            )
            rows.append([*row, *new])
        width = max(map(len, rows))
        pad = min(stop, default=0) if pad_token_id is None else pad_token_id
        return _like(input_ids, np.array([[*row, *[pad] * (width - len(row))] for row in rows], np.int64))

    def eval(self) -> HuggingFaceModel:
        return self

    def to(self, *_: Any, **__: Any) -> HuggingFaceModel:
        return self


def _batch(ids: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    array = np.asarray(ids, np.int64)
    if array.ndim != 2:
        raise UsageError(f"input_ids must be [batch, tokens], not of shape {array.shape}")
    return array


def _refuse_left_padding(mask: Any) -> None:
    if mask is not None and not np.asarray(mask)[:, 0].all():
        raise UsageError("padding on the left is not supported: pad on the right, or run each text alone")


def _like(given: Any, array: np.ndarray[Any, Any]) -> Any:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(given, torch.Tensor):
        return torch.from_numpy(array)
    return array
