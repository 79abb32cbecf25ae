"""The chat page at `/`, its files at `/page/`, and the routes of its compare view: `/compare/models`, `/compare/score`
and `/compare/summary`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import combinations
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from zeropoint.serve import compare
from zeropoint.serve.http.answers import client_of
from zeropoint.serve.http.body import read_json
from zeropoint.serve.http.errors import ApiError, as_api_error
from zeropoint.serve.http.fields import (
    boolean,
    listing,
    mapping,
    number,
    parse,
    record,
    required,
    string,
    token_list,
)
from zeropoint.serve.http.prompts import in_thread
from zeropoint.serve.http.sse import STREAM_HEADERS
from zeropoint.serve.http.state import state_of
from zeropoint.serve.request import Model

#: Most models of a comparison, most tokens of a scored answer, and most scores of a session (one for each token and
#: model).
MOST_MODELS, MOST_ANSWER_TOKENS, MOST_SESSION_TOKENS = 4, 8192, 50_000

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

#: The Content-Security-Policy: the page runs only its own scripts and connects only to its own server. With Trusted
#: Types, only DOMPurify may turn text into HTML.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)

_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # the browser asks each time whether its copy is current, so that an old page never talks to an updated server
    "Cache-Control": "no-cache",
}


def routes() -> list[Route]:
    """Return the page's routes. Its files hold no secret and need no API key; the routes below `/compare/` need it."""
    return [
        Route("/", _file, methods=["GET"]),
        Route("/page/{name:path}", _file, methods=["GET"]),
        Route("/compare/models", _models, methods=["GET"]),
        Route("/compare/score", _score, methods=["POST"]),
        Route("/compare/summary", _summary, methods=["POST"]),
    ]


# -- files ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    type: str
    tag: str


@cache
def _files() -> Mapping[str, _File]:
    """Return the page's files by their names below `/page/`. Only these are served: a name is never used as a path."""
    served = {}
    for name, entry in _walk(files("zeropoint.serve") / "page"):
        kind = _TYPES.get(name[name.rfind(".") :])
        if kind is not None:
            content = entry.read_bytes()
            served[name] = _File(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return served


def _walk(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    """Yield the files of a folder and its subfolders, with their names relative to the folder."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry


async def _file(request: Request) -> Response:
    """Answer with a file of the page, or with 304 if the browser has it already."""
    file = _files().get(request.path_params.get("name", "index.html"))
    if file is None:
        raise ApiError(404, "The page has no such file.")
    headers = {**_HEADERS, "ETag": file.tag}
    tags = request.headers.get("if-none-match", "").split(",")
    if file.tag in [tag.strip().removeprefix("W/") for tag in tags]:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.type)


# -- models ---------------------------------------------------------------------------------------


async def _models(request: Request) -> Response:
    """Answer with the facts that the page shows about each model."""
    models = state_of(request).models.by_name.values()
    return JSONResponse({"object": "list", "data": [_description(model) for model in models]})


def _description(model: Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "format": model.format,
        "weights_bytes": model.weights_bytes,
        "loaded": model.loaded,
        "memory_bytes": model.memory_bytes,
        "max_model_len": model.max_positions,
    }


# -- scores ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """The body of `/compare/score`. Both token lists come from a chat stream with `return_token_ids`."""

    models: tuple[str, ...] = required(
        listing(string(empty=False), 2, MOST_MODELS),
        "the reference model, then the models to compare with it",
    )
    prompt_tokens: tuple[int, ...] = required(token_list(), "the tokens before the answer")
    answer_tokens: tuple[int, ...] = required(token_list(), "the tokens to score")


async def _score(request: Request) -> Response:
    """Answer with one line of JSON for each part of the scored answer, as soon as the part is scored."""
    body = parse(ScoreRequest, await read_json(request))
    state = state_of(request)
    models = [state.model(name) for name in body.models]
    await in_thread(_check, body, models)
    parts = compare.score(models, body.prompt_tokens, body.answer_tokens, client=client_of(request))
    texts = compare.token_texts(models[0].tokenizer, body.answer_tokens)
    lines = _lines(body, models, parts, texts)
    return StreamingResponse(lines, headers=STREAM_HEADERS, media_type="application/x-ndjson")


def _check(body: ScoreRequest, models: list[Model]) -> None:
    """Raise `ApiError` or `UsageError` if these tokens cannot be scored by these models."""
    if len(body.answer_tokens) > MOST_ANSWER_TOKENS:
        raise ApiError(400, f"At most {MOST_ANSWER_TOKENS} tokens are scored at once.", param="answer_tokens")
    shortest = min(model.max_positions for model in models)
    if len(body.prompt_tokens) + len(body.answer_tokens) > shortest:
        raise ApiError(
            400,
            f"Prompt and answer are longer than {shortest} tokens, the shortest context of these models.",
            param="answer_tokens",
            code="context_length_exceeded",
        )
    if max(*body.prompt_tokens, *body.answer_tokens) >= models[0].vocab_size:
        raise ApiError(
            400, f"Token ids end at {models[0].vocab_size - 1}.", param="answer_tokens", code="invalid_value"
        )
    compare.check_models(models, models[0].tokenizer.decode(body.answer_tokens))


async def _lines(
    body: ScoreRequest,
    models: list[Model],
    parts: AsyncGenerator[compare.ScoredTokens, None],
    texts: list[str],
) -> AsyncIterator[str]:
    """Yield the response's lines. After an error, the last line is OpenAI's error object."""
    try:
        async with aclosing(parts):
            async for part in parts:
                yield json.dumps(_line(body, models, part, texts), allow_nan=False) + "\n"
    except Exception as cause:
        error = as_api_error(cause)
        line = error.openai()
        line["error"]["status"] = error.status
        yield json.dumps(line) + "\n"


def _line(
    body: ScoreRequest, models: list[Model], part: compare.ScoredTokens, texts: list[str]
) -> dict[str, Any]:
    """Return one part as JSON: the tokens' ids and texts, and each model's scores with its choices as texts."""
    tokenizer = models[0].tokenizer
    previous = [*body.prompt_tokens[-1:], *body.answer_tokens]  # the token before each token of the answer

    def scores(each: compare.Scores) -> dict[str, Any]:
        choices = [
            None if choice is None else compare.text_after(tokenizer, previous[part.start + row], choice)
            for row, choice in enumerate(each.choices)
        ]
        return {"kl": each.kl, "nll": each.nll, "agrees": each.agrees, "choices": choices}

    return {
        "start": part.start,
        "ids": part.tokens,
        "texts": texts[part.start : part.start + len(part.tokens)],
        "reference": scores(part.reference),
        "others": [scores(each) for each in part.others],
    }


# -- the session's statistics -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerScores:
    """The scores of one answer by one model."""

    kl: tuple[float, ...] = required(listing(number(0), 1), "KL divergence of each token, in nats")
    agrees: tuple[bool, ...] = required(listing(boolean(), 1), "whether the most likely tokens are the same")


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRequest:
    """The body of `/compare/summary`."""

    scores: Mapping[str, tuple[AnswerScores, ...]] = required(
        mapping(listing(record(AnswerScores), 1)), "for each model, the scores of each answer"
    )


async def _summary(request: Request) -> Response:
    """Answer with each model's mean KL divergence and share of flips, and with the paired differences of the models."""
    body = await read_json(request)
    return JSONResponse(await in_thread(_summarize, body))


def _summarize(value: Any) -> dict[str, Any]:
    """Return the statistics of a session. Raises `ApiError` if the body is not a `SummaryRequest` within the limits."""
    body = parse(SummaryRequest, value)
    if len(body.scores) > MOST_MODELS:
        raise ApiError(400, f"At most {MOST_MODELS} models are compared.", param="scores")
    if sum(len(answer.kl) for answers in body.scores.values() for answer in answers) > MOST_SESSION_TOKENS:
        raise ApiError(400, f"A session holds at most {MOST_SESSION_TOKENS} scores.", param="scores")
    kl, flips, models = {}, {}, {}
    for name, answers in body.scores.items():
        if any(len(answer.kl) != len(answer.agrees) for answer in answers):
            raise ApiError(
                400, "Each token needs a value in 'kl' and in 'agrees'.", param=f"scores.{name[:60]}"
            )
        kl[name] = [np.array(answer.kl) for answer in answers]
        flips[name] = [1.0 - np.array(answer.agrees) for answer in answers]
        mean, share = compare.intervals(kl[name], flips[name])
        models[name] = {"kl": asdict(mean), "flips": asdict(share), "tokens": sum(map(len, kl[name]))}
    differences = [
        {
            "models": [first, second],
            "kl": asdict(compare.paired_interval(kl[first], kl[second])),
            "flips": asdict(compare.paired_interval(flips[first], flips[second])),
        }
        for first, second in combinations(kl, 2)
        if list(map(len, kl[first])) == list(map(len, kl[second]))
    ]
    return {"models": models, "differences": differences}
