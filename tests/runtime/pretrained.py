"""What the tests of the one-line API share: families, tokens, loading, logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zeropoint import AutoModelForCausalLM

Checkpoints = Callable[[str], Path]
TOKENS = torch.tensor([[1, 5, 9, 2, 33, 7, 7, 11, 60, 3, 21, 14]])
#: Model families that differ in what `from_pretrained` must handle: tied and untied output heads, Conv1D layers, a
#: scaled embedding, stacked experts, biases, learned position embeddings.
FAMILIES = ("llama_tied", "llama_untied", "gpt2", "gemma2", "mixtral", "opt")
WEIGHTS_ONLY = "int8:channel:sym:bf16"


def logits(model: Any, ids: torch.Tensor = TOKENS) -> np.ndarray:
    with torch.inference_mode():
        return model(input_ids=ids).logits.float().numpy()  # type: ignore[no-any-return]


def load(path: Path, format: str = "int8", **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, format=format, **options)
