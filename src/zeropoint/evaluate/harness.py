"""lm-evaluation-harness on any runner: `lm_eval.simple_evaluate(model=harness.adapter(runner), tasks=[...])`.

lm-eval is imported when the adapter is made, and not needed otherwise. Scoring follows its own Hugging Face runner
(HFLM), so that numbers compare with published ones: a text begins with BOS where the model's tokenizer puts one and
the text does not begin with it already; contexts are cut on the left; trailing spaces of a context belong to the
continuation; an empty context is BOS, or EOS for a model without. A whole text is scored from that same token on, so a
BOS that the tokenizer puts before it is predicted too, as HFLM does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UsageError
from zeropoint.runtime.model import generate_text
from zeropoint.runtime.protocol import Runner
from zeropoint.runtime.sampling import Sampling
from zeropoint.tokenizer import Message

T = TypeVar("T")

MISSING = "lm-eval is not installed: pip install lm-eval"
DEFAULT_LENGTH = 2048
# Their logits are held at once: 128 x 150,000 words are 77 MB.
_BATCH_TOKENS = 128
DEFAULT_NEW_TOKENS = 256


class Request(Protocol):
    """An lm-eval `Instance`: `args` holds the texts."""

    args: tuple[Any, ...]


class Scorer:
    """What a harness asks of a model, on a runner, without the harness."""

    def __init__(self, runner: Runner, *, max_length: int | None = None) -> None:
        self.runner = runner
        self.max_length = max_length or int(getattr(runner, "max_positions", DEFAULT_LENGTH))
        found = runner.start_token
        self._start = min(runner.stop_tokens, default=0) if found is None else found

    def loglikelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        """Log probability of the continuation, and whether greedy decoding gives it."""
        return self.score(*self.tokens(context, continuation))

    def loglikelihoods(
        self, pairs: Sequence[tuple[str, str]], progress: Callable[[float], None] | None = None
    ) -> list[tuple[float, bool]]:
        """The same for many. The choices of a question share its context, and a choice of one token feeds the model
        nothing more: one sequence serves every pair whose tokens begin it, and sequences go through the model some
        at a time. `progress` gets the finished fraction."""
        encoded = [self.tokens(*pair) for pair in pairs]
        windows = [self._window(before, after) for before, after in encoded]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        done = 0
        for batch in _batches(windows):
            # Padded on the right, where a causal model does not look.
            longest = max(len(windows[served[0]]) for served in batch) - 1
            fed = np.zeros((len(batch), longest), np.int64)
            for row, served in enumerate(batch):
                tokens = windows[served[0]][:-1]
                fed[row, : len(tokens)] = tokens
            for logits, served in zip(self.runner.logits(fed), batch, strict=True):
                for index in served:
                    rows = logits[: len(windows[index]) - 1][-len(encoded[index][1]) :]
                    found[index] = _chances(rows, windows[index])
                done += len(served)
            if progress is not None:
                progress(done / len(pairs))
        return found

    def tokens(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Both texts as token ids. Raises `UsageError` for a continuation without a token of its own."""
        if not context:
            after = self.runner.encode(continuation)
            before, after = (after[:1], after[1:]) if after[:1] == [self._start] else ([self._start], after)
        else:
            cut = len(context) - len(context.rstrip())
            if cut and context.rstrip():
                context, continuation = context[:-cut], context[-cut:] + continuation
            before = self.runner.encode_prompt(context)
            after = self.runner.encode_prompt(context + continuation)[len(before) :]
        if not after:
            raise UsageError("the continuation adds no token to its context")
        return before, after

    def score(self, before: Sequence[int], after: Sequence[int]) -> tuple[float, bool]:
        """Log probability of `after`, and whether it is the greedy continuation, for token ids."""
        tokens = self._window(before, after)
        rows = self.runner.logits(np.asarray(tokens[:-1], np.int64))
        return _chances(rows[-len(after) :], tokens)

    def _window(self, before: Sequence[int], after: Sequence[int]) -> list[int]:
        """What the model takes of both: the end, and one token more, which is only predicted."""
        return [*before, *after][-(self.max_length + 1) :]

    def rolling(self, text: str) -> float:
        """Log probability of a whole text, each token scored once, in windows of the model's length. The last window
        sees as many tokens before its own as fit."""
        tokens, total = self.runner.encode_prompt(text), 0.0
        for start in range(0, len(tokens), self.max_length):
            scored = tokens[start : start + self.max_length]
            end = start + len(scored)
            context = tokens[end - self.max_length - 1 : start] if start else [self._start]
            total += self.score(context, scored)[0]
        return total

    def generate_until(self, context: str, options: Mapping[str, Any]) -> str:
        """The continuation up to the first of `options["until"]`."""
        until = options.get("until") or []
        new_tokens = int(options.get("max_gen_toks", DEFAULT_NEW_TOKENS))
        temperature = float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
        tokens = self.runner.encode_prompt(context)[-max(self.max_length - new_tokens, 1) :]
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


def _batches(windows: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Groups of indices of sequences, the first of each beginning with what the others feed; some groups at a time."""
    # In falling order a sequence comes right after those that it begins.
    groups: list[list[int]] = []
    for index in sorted(range(len(windows)), key=lambda i: windows[i][:-1], reverse=True):
        fed = windows[index][:-1]
        if groups and windows[groups[-1][0]][: len(fed)] == fed and len(windows[groups[-1][0]]) > len(fed):
            groups[-1].append(index)
        else:
            groups.append([index])
    groups.sort(key=lambda served: len(windows[served[0]]))  # alike in length, so that little is padding
    batch: list[list[int]] = []
    for served in groups:
        if batch and (len(batch) + 1) * len(windows[served[0]]) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(served)
    if batch:
        yield batch


def _chances(rows: NDArray[np.float32], tokens: Sequence[int]) -> tuple[float, bool]:
    """Log probability of the last tokens by the logits `[count, vocabulary]` before each; whether all are likeliest."""
    targets = np.asarray(tokens[-len(rows) :])
    logits = rows.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    chosen = logits[np.arange(len(rows)), targets] - np.log(np.exp(logits).sum(1))
    return float(chosen.sum()), bool((logits.argmax(1) == targets).all())


def adapter(
    runner: Runner, *, max_length: int | None = None, progress: Callable[[float], None] | None = None
) -> Any:
    """An `lm_eval.api.model.LM` on a runner; `progress` gets the finished fraction of each kind of request.
    Raises `UsageError` when lm-eval is not installed."""
    try:
        from lm_eval.api.model import LM
    except ModuleNotFoundError as cause:
        raise UsageError(MISSING) from cause
    scorer = Scorer(runner, max_length=max_length)

    class Adapter(LM):  # type: ignore[misc,unused-ignore]
        tokenizer_name = runner.name

        def loglikelihood(
            self, requests: Sequence[Request], disable_tqdm: bool = False
        ) -> list[tuple[float, bool]]:
            return scorer.loglikelihoods([request.args for request in requests], progress)

        def loglikelihood_rolling(
            self, requests: Sequence[Request], disable_tqdm: bool = False
        ) -> list[float]:
            return _each(requests, lambda args: scorer.rolling(*args), progress)

        def generate_until(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[str]:
            return _each(requests, lambda args: scorer.generate_until(*args), progress)

        def apply_chat_template(
            self, chat_history: Sequence[Message], add_generation_prompt: bool = True
        ) -> str:
            written = runner.chat_text(chat_history, add_generation_prompt=add_generation_prompt)
            if written is None:
                raise UsageError(f"{runner.name} has no chat template: run the tasks without one")
            return written

    return Adapter()


def _each(
    requests: Sequence[Request],
    answer: Callable[[tuple[Any, ...]], T],
    progress: Callable[[float], None] | None,
) -> list[T]:
    found = []
    for index, request in enumerate(requests):
        found.append(answer(request.args))
        if progress is not None:
            progress((index + 1) / len(requests))
    return found
