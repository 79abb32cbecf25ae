"""`make_app`: the routes of all APIs, as one ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from zeropoint.errors import ZeropointError
from zeropoint.serve.grammar import Grammars
from zeropoint.serve.http import listing, page
from zeropoint.serve.http.chat import chat_completions
from zeropoint.serve.http.completions import completions
from zeropoint.serve.http.errors import ApiError, on_error
from zeropoint.serve.http.guard import Guard
from zeropoint.serve.http.messages import count_tokens, messages
from zeropoint.serve.http.metrics import Metrics
from zeropoint.serve.http.openapi import openapi
from zeropoint.serve.http.responses import responses
from zeropoint.serve.http.run import Mailbox
from zeropoint.serve.http.state import Settings, State
from zeropoint.serve.http.tokenizing import detokenize, tokenize
from zeropoint.serve.request import Models
from zeropoint.serve.templates import Templates

#: Threads that prepare requests. More of them gain nothing, because Python runs one at a time, and the heap keeps free
#: memory for each thread: with anyio's 40, a server that has been busy holds 60 MB more.
_THREADS = 4


def make_app(models: Models, settings: Settings) -> Starlette:
    """Return the application that serves `models`. While the application runs, its `state.zeropoint` is the `State`."""
    templates = Templates()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = _THREADS
        mailbox = Mailbox(asyncio.get_running_loop())
        templates.start()
        app.state.zeropoint = State(models, settings, templates, Metrics(models), Grammars(), mailbox)
        try:
            yield
        finally:
            templates.close()

    routes = [
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/responses", responses, methods=["POST"]),
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
        Route("/v1/embeddings", listing.embeddings, methods=["POST"]),
        Route("/openapi.json", openapi),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/v1/models", listing.models),
        Route("/v1/models/{model:path}", listing.model),
        Route("/health", listing.health),
        Route("/version", listing.version),
        Route("/metrics", listing.metrics),
        *page.routes(),
    ]
    middleware = [Middleware(Guard, settings=settings)]
    if settings.origins:
        cors = {"allow_origins": settings.origins, "allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
        middleware.insert(0, Middleware(CORSMiddleware, **cors))  # type: ignore[arg-type]
    handlers = {error: on_error for error in (HTTPException, ApiError, ZeropointError)}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)
