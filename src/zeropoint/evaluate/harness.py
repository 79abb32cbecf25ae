"""lm-evaluation-harness on any runner: `lm_eval.simple_evaluate(model=harness.adapter(runner), tasks=[...])`.

lm-eval is imported when the adapter is made, and not needed otherwise. Scoring follows its HFLM: contexts are cut
on the left, trailing spaces of a context belong to the continuation, an empty context is the end-of-text token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from zeropoint.errors import UsageError
from zeropoint.runtime.model import generate_text
from zeropoint.runtime.protocol import Message, Runner
from zeropoint.runtime.sampling import Sampling

DEFAULT_LENGTH = 2048
DEFAULT_NEW_TOKENS = 256


class Request(Protocol):
    """An lm-eval `Instance`: `args` holds the texts."""

    args: tuple[Any, ...]


class Scorer:
    """What a harness asks of a model, on a runner, without the harness."""

    def __init__(self, runner: Runner, *, max_length: int | None = None) -> None:
        self.runner = runner
        self.max_length = max_length or int(getattr(runner, "max_positions", DEFAULT_LENGTH))
        self._start = min(runner.stop_tokens, default=0)

    def loglikelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        """Log probability of the continuation, and whether greedy decoding gives it."""
        cut = len(context) - len(context.rstrip())
        if cut and context.rstrip():
            context, continuation = context[:-cut], context[-cut:] + continuation
        before = self.runner.encode(context) if context else [self._start]
        whole = self.runner.encode(context + continuation)
        after = whole[len(before) :] if context else whole
        if not after:
            raise UsageError("the continuation adds no token to its context")
        return self.score(before, after)

    def score(self, before: Sequence[int], after: Sequence[int]) -> tuple[float, bool]:
        """The same for token ids."""
        tokens = np.asarray([*before, *after][-(self.max_length + 1) :], np.int64)
        rows = self.runner.logits(tokens[:-1])[-len(after) :].astype(np.float64)
        targets = tokens[-len(rows) :]
        rows -= rows.max(1, keepdims=True)
        chosen = rows[np.arange(len(rows)), targets] - np.log(np.exp(rows).sum(1))
        return float(chosen.sum()), bool((rows.argmax(1) == targets).all())

    def rolling(self, text: str) -> float:
        """Log probability of a whole text, each token scored once, in windows of the model's length."""
        tokens, total = self.runner.encode(text), 0.0
        for start in range(0, len(tokens), self.max_length):
            window = tokens[start : start + self.max_length]
            context = tokens[start - 1] if start else self._start
            total += self.score([context], window)[0]
        return total

    def generate_until(self, context: str, options: Mapping[str, Any]) -> str:
        """The continuation up to the first of `options["until"]`."""
        until = options.get("until") or []
        new_tokens = int(options.get("max_gen_toks", DEFAULT_NEW_TOKENS))
        temperature = float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
        tokens = self.runner.encode(context)[-max(self.max_length - new_tokens, 1) :]
        parts: list[str] = []
        generate_text(
            self.runner,
            tokens or [self._start],
            parts.append,
            max_new_tokens=new_tokens,
            stop=[until] if isinstance(until, str) else list(until),
            sampling=Sampling(temperature=temperature, top_p=float(options.get("top_p", 1.0))),
        )
        return "".join(parts)


def adapter(runner: Runner, *, max_length: int | None = None) -> Any:
    """An `lm_eval.api.model.LM` on a runner. Raises `UsageError` when lm-eval is not installed."""
    try:
        from lm_eval.api.model import LM
    except ModuleNotFoundError as cause:
        raise UsageError("lm-eval is not installed: pip install lm-eval") from cause
    scorer = Scorer(runner, max_length=max_length)

    class Adapter(LM):  # type: ignore[misc,unused-ignore]
        tokenizer_name = runner.name

        def loglikelihood(
            self, requests: Sequence[Request], disable_tqdm: bool = False
        ) -> list[tuple[float, bool]]:
            return [scorer.loglikelihood(*request.args) for request in requests]

        def loglikelihood_rolling(
            self, requests: Sequence[Request], disable_tqdm: bool = False
        ) -> list[float]:
            return [scorer.rolling(*request.args) for request in requests]

        def generate_until(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[str]:
            return [scorer.generate_until(*request.args) for request in requests]

        def apply_chat_template(
            self, chat_history: Sequence[Message], add_generation_prompt: bool = True
        ) -> str:
            return runner.decode(runner.chat_tokens(chat_history))

    return Adapter()
