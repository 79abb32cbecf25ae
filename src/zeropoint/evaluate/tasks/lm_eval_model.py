"""lm-evaluation-harness on any runner: `lm_eval.simple_evaluate(model=harness.adapter(runner), tasks=[...])`.

Only `adapter` imports lm-eval. Scores compare with published ones, because scoring follows lm-eval's own Hugging Face
model class (HFLM):

- A text begins with BOS if the tokenizer adds BOS and the text does not begin with BOS already.
- Long contexts are cut on the left.
- Trailing spaces of a context move to the continuation.
- An empty context becomes BOS, or EOS for a model without BOS.
- The score of a whole text starts from the same BOS or EOS. So a BOS that the tokenizer adds is predicted too.
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
# Maximum number of tokens of a batch. All their logits are held at once: 128 x 150,000 float32 are 77 MB.
_BATCH_TOKENS = 128
DEFAULT_NEW_TOKENS = 256


class Request(Protocol):
    """An lm-eval `Instance`; `args` holds its texts."""

    args: tuple[Any, ...]


class Scorer:
    """The scoring that lm-eval asks of a model, on a runner, without an import of lm-eval."""

    def __init__(self, runner: Runner, *, max_length: int | None = None) -> None:
        self.runner = runner
        self.max_length = max_length or int(getattr(runner, "max_positions", DEFAULT_LENGTH))
        bos = runner.start_token
        self._start = min(runner.stop_tokens, default=0) if bos is None else bos

    def loglikelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        """Return the log probability of the continuation (nats), and whether greedy decoding gives the continuation."""
        return self.score(*self.tokens(context, continuation))

    def loglikelihoods(
        self, pairs: Sequence[tuple[str, str]], progress: Callable[[float], None] | None = None
    ) -> list[tuple[float, bool]]:
        """Return `loglikelihood` of each (context, continuation) pair.

        Choices of a question share the question's context. A pair needs no forward pass of its own if its input tokens
        are a prefix of another pair's sequence. The remaining sequences run in batches. `progress` gets the finished
        fraction.
        """
        encoded = [self.tokens(*pair) for pair in pairs]
        windows = [self._window(before, after) for before, after in encoded]
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        finished = 0
        for batch in _batches(windows):
            # Padding on the right does not change the logits before it in a causal model.
            longest = max(len(windows[served[0]]) for served in batch) - 1
            inputs = np.zeros((len(batch), longest), np.int64)
            for row, served in enumerate(batch):
                tokens = windows[served[0]][:-1]
                inputs[row, : len(tokens)] = tokens
            for logits, served in zip(self.runner.logits(inputs), batch, strict=True):
                for index in served:
                    rows = logits[: len(windows[index]) - 1][-len(encoded[index][1]) :]
                    scores[index] = _chances(rows, windows[index])
                finished += len(served)
            if progress is not None:
                progress(finished / len(pairs))
        return scores

    def tokens(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return context and continuation as token ids. Raises `UsageError` if the continuation adds no token."""
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
        """Return the log probability of the tokens `after`, and whether `after` is the greedy continuation."""
        tokens = self._window(before, after)
        rows = self.runner.logits(np.asarray(tokens[:-1], np.int64))
        return _chances(rows[-len(after) :], tokens)

    def _window(self, before: Sequence[int], after: Sequence[int]) -> list[int]:
        """Return the last `max_length + 1` tokens of both; the last token is only predicted, not read."""
        return [*before, *after][-(self.max_length + 1) :]

    def rolling(self, text: str) -> float:
        """Return the log probability of a whole text, in windows of `max_length` tokens; each token is scored once.

        Every window after the first reads as many earlier tokens as fit beside its own.
        """
        tokens, total = self.runner.encode_prompt(text), 0.0
        for start in range(0, len(tokens), self.max_length):
            scored = tokens[start : start + self.max_length]
            end = start + len(scored)
            context = tokens[end - self.max_length - 1 : start] if start else [self._start]
            total += self.score(context, scored)[0]
        return total

    def generate_until(self, context: str, options: Mapping[str, Any]) -> str:
        """Return the generated continuation up to the first of the stop strings `options["until"]`."""
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
    """Yield batches of groups of window indices.

    One forward pass serves a group: the input of the group's first window begins with the inputs of the others.
    """
    # In descending order, a prefix comes right after the sequences that begin with the prefix.
    groups: list[list[int]] = []
    for index in sorted(range(len(windows)), key=lambda i: windows[i][:-1], reverse=True):
        inputs = windows[index][:-1]
        if (
            groups
            and windows[groups[-1][0]][: len(inputs)] == inputs
            and len(windows[groups[-1][0]]) > len(inputs)
        ):
            groups[-1].append(index)
        else:
            groups.append([index])
    # Similar lengths in a batch need little padding.
    groups.sort(key=lambda served: len(windows[served[0]]))
    batch: list[list[int]] = []
    for served in groups:
        if batch and (len(batch) + 1) * len(windows[served[0]]) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(served)
    if batch:
        yield batch


def _chances(rows: NDArray[np.float32], tokens: Sequence[int]) -> tuple[float, bool]:
    """Return the log probability of the last `count` tokens, and whether each is the argmax.

    `rows`, float32 `[count, vocabulary]`: the logits that predict each of them.
    """
    targets = np.asarray(tokens[-len(rows) :])
    logits = rows.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    chosen = logits[np.arange(len(rows)), targets] - np.log(np.exp(logits).sum(1))
    return float(chosen.sum()), bool((logits.argmax(1) == targets).all())


def adapter(
    runner: Runner, *, max_length: int | None = None, progress: Callable[[float], None] | None = None
) -> Any:
    """Return an `lm_eval.api.model.LM` on a runner; `progress` gets the finished fraction of each kind of request.

    Raises `UsageError` if lm-eval is not installed.
    """
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
            prompt = runner.chat_text(chat_history, add_generation_prompt=add_generation_prompt)
            if prompt is None:
                raise UsageError(f"{runner.name} has no chat template: run the tasks without one")
            return prompt

    return Adapter()


def _each(
    requests: Sequence[Request],
    answer: Callable[[tuple[Any, ...]], T],
    progress: Callable[[float], None] | None,
) -> list[T]:
    """Return the answer to each request, and report progress after each."""
    answers = []
    for index, request in enumerate(requests):
        answers.append(answer(request.args))
        if progress is not None:
            progress((index + 1) / len(requests))
    return answers
