"""`POST /v1/completions`: OpenAI's API that continues a text."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from zeropoint.serve.http.answers import client_of, new_id, stop_reason, usage_of
from zeropoint.serve.http.body import read
from zeropoint.serve.http.errors import ApiError
from zeropoint.serve.http.fields import (
    boolean,
    either,
    listing,
    option,
    required,
    string,
    token_list,
    whole,
)
from zeropoint.serve.http.options import MAX_LOGPROBS, SamplingOptions, text_options
from zeropoint.serve.http.prompts import in_thread, requests_of
from zeropoint.serve.http.run import Run, Submission
from zeropoint.serve.http.scores import TextLogprobs
from zeropoint.serve.http.sse import DONE, KEEP_ALIVE, data, respond
from zeropoint.serve.http.state import State
from zeropoint.serve.request import Model, PromptRead
from zeropoint.serve.text import Piece

MAX_PROMPTS = 1024
_DEFAULT_TOKENS = 16  # OpenAI's


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest(SamplingOptions):
    """The body of `/v1/completions`."""

    prompt: Any = required(
        either(string(), token_list(), listing(either(string(), token_list()), 1, MAX_PROMPTS)),
        "text, token ids, or a list of these",
    )
    max_tokens: int | None = option(whole(0), f"most tokens of the answer; default: {_DEFAULT_TOKENS}")
    echo: bool | None = option(boolean(), "begin the answer with the prompt")
    logprobs: int | None = option(
        whole(0, MAX_LOGPROBS), "return the log-probability of each token and of this many alternatives"
    )
    suffix: str | None = option(string(), "not supported")


async def completions(request: Request) -> Response:
    """Answer `/v1/completions`."""
    body, state, model = await read(CompletionRequest, request)
    if body.suffix:
        raise ApiError(400, "suffix is not supported.", param="suffix", code="unsupported_parameter")
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens 0 needs echo.", param="max_tokens", code="invalid_value")
    submission, prompts = await in_thread(_prepare, state, model, body)
    run = await Run.start(state, submission, client_of(request))
    answer = _Answer(body, model, run, prompts)
    return await respond(request, run, answer, stream=bool(body.stream))


def _prepare(state: State, model: Model, body: CompletionRequest) -> tuple[Submission, list[str]]:
    """Return the engine requests, and for each answer the text of its prompt (empty without `echo`)."""
    single = isinstance(body.prompt, str) or isinstance(body.prompt[0], int)
    entries = (body.prompt,) if single else body.prompt
    tokenizer = model.tokenizer
    prompts = [tuple(tokenizer.encode_prompt(each)) if isinstance(each, str) else each for each in entries]
    max_tokens = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    text_of = text_options(body, model)
    scored = bool(body.echo) and body.logprobs is not None
    requests = requests_of(
        state,
        model,
        prompts,
        body,
        text_of,
        max_tokens=max_tokens,
        logprobs=body.logprobs,
        # the engine accepts a request for 0 new tokens only if it asks for log-probabilities of the prompt
        prompt_logprobs=body.logprobs if scored else 0 if max_tokens == 0 else None,
    )
    texts = [
        (each if isinstance(each, str) else tokenizer.decode(each)) if body.echo else ""
        for each in entries
        for _ in range(body.answers)
    ]
    return Submission(model, requests, text_of), texts


class _Answer:
    """Builds the response to a request, whole or in chunks."""

    def __init__(self, body: CompletionRequest, model: Model, run: Run, prompts: list[str]) -> None:
        self._body, self._model, self._run = body, model, run
        self._prompts = prompts
        self._base = {
            "id": new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
        }
        self._logprobs = [TextLogprobs(model.tokenizer, body.logprobs or 0) for _ in prompts]
        self._begun = [False] * len(prompts)

    async def whole(self) -> dict[str, Any]:
        """Return the whole response."""
        choices = [self._choice(index) for index in range(len(self._prompts))]
        async for piece in self._run.pieces():
            if piece is None:
                continue
            choice, new = choices[piece.index], self._piece(piece)
            choice["text"] += new["text"]
            for key, values in (new["logprobs"] or {}).items():
                choice["logprobs"] = choice["logprobs"] or {}
                choice["logprobs"].setdefault(key, []).extend(values)
            choice["finish_reason"] = new["finish_reason"]
            choice["stop_reason"] = new["stop_reason"]
            for key in ("token_ids", "prompt_token_ids"):
                if key in new:
                    choice[key] = choice.get(key, []) + new[key]
        return {**self._base, "choices": choices, "usage": usage_of(self._run)}

    async def events(self, seconds: float) -> AsyncIterator[str]:
        """Yield the events of a stream."""
        async for piece in self._run.pieces(tick_seconds=seconds):
            if piece is None:
                yield KEEP_ALIVE
                continue
            choice = self._piece(piece)
            if choice["text"] or choice["logprobs"] or choice.get("token_ids") or choice["finish_reason"]:
                yield data({**self._base, "choices": [choice]})
        if self._body.include_usage:
            yield data({**self._base, "choices": [], "usage": usage_of(self._run)})
        yield DONE

    def failed(self, error: ApiError) -> str:
        """Return the events that end a stream after an error."""
        return data(error.openai()) + DONE

    def _choice(self, index: int, text: str = "") -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None, "stop_reason": None}

    def _piece(self, piece: Piece) -> dict[str, Any]:
        """Return a piece as a choice of the response. The first piece of an answer also has the prompt, with `echo`."""
        index = piece.index
        choice = self._choice(index, piece.text)
        # with the stop token, as in vLLM: lm-eval asks for one token after the text that it scores, and drops its score
        scored = [(token.id, token.score) for token in piece.tokens]
        if piece.prompt is not None and not self._begun[index]:
            self._begun[index] = True
            choice["text"] = self._prompts[index] + choice["text"]
            scored = [*self._prompt_scores(index, piece.prompt), *scored]
            if self._body.return_token_ids:
                choice["prompt_token_ids"] = list(self._run.submission.requests[index].prompt)
        if self._body.logprobs is not None and scored:
            choice["logprobs"] = self._logprobs[index].of(scored)
        if self._body.return_token_ids:
            choice["token_ids"] = [token.id for token in piece.tokens]
        choice["finish_reason"] = piece.finish
        choice["stop_reason"] = stop_reason(self._model, piece)
        return choice

    def _prompt_scores(self, index: int, read: PromptRead) -> list[tuple[int, Any]]:
        """Return the prompt's tokens with their scores (none for the first); nothing unless `echo` and `logprobs`."""
        if not self._body.echo or self._body.logprobs is None:
            return []
        return list(zip(self._run.submission.requests[index].prompt, (None, *read.scores), strict=True))
