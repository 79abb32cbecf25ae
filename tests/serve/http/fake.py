"""`FakeModel` has no weights and answers every prompt with a given text; `client_of` makes a client of its server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers

from zeropoint.errors import BusyError
from zeropoint.serve.http.app import make_app
from zeropoint.serve.http.state import Settings
from zeropoint.serve.request import (
    CANCELLED,
    FAILED,
    LENGTH,
    STOP,
    EngineStats,
    Event,
    Finished,
    Listener,
    NewToken,
    PromptRead,
    Request,
    TokenScore,
)
from zeropoint.tokenizer import Tokenizer

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% if tools %}TOOLS <tool_call> {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if mood %}[{{ mood }}]{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> None:
    """Write a byte-level tokenizer whose tokens are single bytes, and special tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Fast(models.BPE(vocab={symbol: place for place, symbol in enumerate(alphabet)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(list(SPECIAL))
    fast.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [257, 259]}))


@dataclass
class FakeModel:
    """A `zeropoint.serve.request.Model`. It answers each request in a new thread, as engines answer in theirs.

    `answer`: the text of every answer. `delay`: seconds before each token. `busy`: refuse every request.
    `fails_after`: number of tokens after which the engine fails. `answers`: texts of the next answers; once they are
    used up, `answer` follows.
    """

    folder: Path
    name: str = "tiny"
    answer: str = "Hello, world!"
    delay: float = 0.0
    prompt_delay: float = 0.0
    busy: bool = False
    fails_after: int | None = None
    answers: list[str] = field(default_factory=list)
    max_positions: int = 4096
    vocab_size: int = 260
    format: str = "float32"
    weights_bytes: int = 1000
    memory_bytes: int = 2000
    loaded: bool = True
    requests: list[Request] = field(default_factory=list)
    tickets: list[FakeTicket] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)
    cancelled: int = 0
    running: int = 0

    def __post_init__(self) -> None:
        self.tokenizer = Tokenizer(self.folder)

    def load(self) -> None:
        self.loaded = True

    def submit(self, request: Request, listener: Listener, *, client: str = "") -> FakeTicket:
        if self.busy:
            raise BusyError("the queue is full")
        self.loaded = True
        self.requests.append(request)
        self.clients.append(client)
        text = self.answers.pop(0) if self.answers else self.answer
        ticket = FakeTicket(self)
        self.tickets.append(ticket)
        self.running += 1
        threading.Thread(target=self._answer, args=(request, text, listener, ticket), daemon=True).start()
        return ticket

    def stats(self) -> EngineStats:
        return EngineStats(running=self.running, pages=8, free_pages=6, prefix_queries=10, prefix_hits=4)

    def _answer(self, request: Request, text: str, listener: Listener, ticket: FakeTicket) -> None:
        ticket.event.wait(self.prompt_delay)
        scores: tuple[TokenScore, ...] = ()
        if request.prompt_logprobs is not None:
            scores = tuple(self._score(each, request.prompt_logprobs) for each in request.prompt[1:])
        events: list[Event] = [PromptRead(min(3, len(request.prompt) - 1), scores)]
        reason, error = STOP, ""
        tokens = [*self.tokenizer.encode(text), self.tokenizer.token_id("<|im_end|>")]
        for number, token in enumerate(tokens):
            if number == request.max_new_tokens:
                reason = LENGTH
                break
            if number == self.fails_after:
                reason, error = FAILED, "/secret/path is damaged"
                break
            if self.delay:
                listener(events)
                events = []
            if ticket.event.wait(self.delay) if self.delay else ticket.event.is_set():
                reason = CANCELLED
                break
            assert token is not None
            if request.constraint is not None:
                mask = request.constraint.mask()
                assert mask is not None
                allowed = bool(int(mask[token // 32]) >> (token % 32) & 1)
                if not allowed:
                    reason, error = FAILED, f"token {token} is not allowed"
                    break
                request.constraint.accept(token)
            score = None if request.logprobs is None else self._score(token, request.logprobs)
            events.append(NewToken(token, score))
            if token in request.stop_tokens:
                break
        listener([*events, Finished(reason, error)])
        self.running -= 1

    def _score(self, token: int, top: int) -> TokenScore:
        others = [each for each in range(40, 40 + top) if each != token]
        alternatives = [(token, -0.5), *((each, -1.0 - each) for each in others)][:top]
        return TokenScore(-0.5, tuple(alternatives))


class FakeTicket:
    """The ticket of a request to a fake model."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model
        self.event = threading.Event()

    def cancel(self) -> None:
        if not self.event.is_set():
            self._model.cancelled += 1
        self.event.set()


@dataclass
class FakeModels:
    """`zeropoint.serve.request.Models`."""

    by_name: dict[str, FakeModel]
    drained: float | None = None

    def drain(self, seconds: float) -> None:
        self.drained = seconds
        for model in self.by_name.values():
            for ticket in model.tickets:
                ticket.event.set()


@contextmanager
def client_of(*models: FakeModel, **settings: Any) -> Iterator[TestClient]:
    """Yield a client of a server with these models."""
    app = make_app(FakeModels({each.name: each for each in models}), Settings(**settings))
    with TestClient(app, raise_server_exceptions=True) as client:
        yield client


def events(text: str) -> list[Any]:
    """Return the JSON data of a stream's events; keep "[DONE]" as text, and leave comments out."""
    data = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


def text_of(chunks: Sequence[Any], index: int = 0) -> str:
    """Return the text that the chunks of a chat's stream hold for one choice."""
    choices = [
        each for chunk in chunks if chunk != "[DONE]" for each in chunk["choices"] if each["index"] == index
    ]
    return "".join(each["delta"].get("content") or "" for each in choices)


def wait_until(done: Any, seconds: float = 5) -> None:
    """Wait until `done()` is true. Raises `AssertionError` after `seconds`."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)
