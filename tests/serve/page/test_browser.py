"""The page in headless Chromium: a chat, its versions and errors, history, a comparison, a phone.

Needs Python's `playwright` and a `chromium` on the path (`CHROMIUM` names another); without them the tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from tests.serve.http.fake import FakeModels, wait_until
from tests.serve.page.scoring import ScoringModel, make_models
from zeropoint.serve.http.app import make_app
from zeropoint.serve.http.state import Settings

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

#: The answer of the fake models: Markdown, code, and HTML and a link that must not run.
ANSWER = (
    "A **bold** word.\n\n```python\nprint(1)\n```\n\n<img src=x onerror=alert(1)> [bad](javascript:alert(1))"
)


@dataclass
class Server:
    """A server with fake models, in a thread of its own."""

    url: str
    models: list[ScoringModel]


@pytest.fixture(scope="module")
def served(fake_folder: Path) -> Iterator[Callable[..., Server]]:
    """Yield a function that starts a server with the given settings."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(**settings: Any) -> Server:
        models = make_models(fake_folder, answer=ANSWER)
        app = make_app(FakeModels({model.name: model for model in models}), Settings(**settings))  # type: ignore[arg-type]
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        return Server(f"http://127.0.0.1:{port}/", models)

    yield start
    for server, thread in running:
        server.should_exit = server.force_exit = True
        thread.join(5)


@pytest.fixture(scope="module")
def server(served: Callable[..., Server]) -> Server:
    """Start a server without API keys."""
    return served()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Yield headless Chromium."""
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Yield a function that opens the page in a fresh profile. At the end, assert that no script failed or broke the
    Content-Security-Policy.
    """
    problems: list[str] = []
    contexts = []

    def start(server: Server, view: str = "", **options: Any) -> Any:
        for model in server.models:
            model.answer, model.answers, model.delay, model.busy, model.fails_after = (
                ANSWER,
                [],
                0.0,
                False,
                None,
            )
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console", lambda message: problems.append(message.text) if "Policy" in message.text else None
        )
        page.goto(server.url + view)
        return page

    yield start
    for context in contexts:
        context.close()
    assert problems == []


def ask(page: Any, text: str) -> None:
    page.fill("#input", text)
    page.keyboard.press("Enter")


def test_chat_markdown_versions_and_history(server: Server, opened: Callable[..., Any]) -> None:
    page = opened(server)
    page.wait_for_selector("#model:not([disabled])")
    ask(page, "Hello")
    page.wait_for_selector(".stats")
    text = page.locator(".assistant .text")
    assert text.locator("strong").inner_text() == "bold"
    assert text.locator("pre code").inner_text().strip() == "print(1)"
    assert "<img" in text.inner_text()
    assert text.locator("img, a[href], script").count() == 0
    assert "fp16" in page.inner_text(".stats")
    prompt = server.models[0].tokenizer.decode(server.models[0].requests[-1].prompt)
    assert prompt == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"

    page.locator(".assistant").hover()
    page.get_by_label("Answer again").click()
    page.wait_for_selector("text=2 / 2")
    page.get_by_label("Previous version").click()
    page.wait_for_selector("text=1 / 2")
    page.locator(".user").hover()
    page.get_by_label("Edit", exact=True).click()
    page.get_by_label("Edit the message").fill("Hello again")
    page.keyboard.press("Enter")
    page.wait_for_selector(".user .versions")
    page.wait_for_selector(".stats")

    page.reload()
    assert page.inner_text(".user .text") == "Hello again"
    page.get_by_label("Rename Hello").click()
    page.keyboard.type("Greeting")
    page.keyboard.press("Enter")
    assert page.inner_text("#chats a") == "Greeting"
    page.get_by_label("Delete Greeting").click()
    assert page.locator("#chats a").count() == 0
    page.get_by_role("button", name="Undo").click()
    assert page.inner_text("#chats a") == "Greeting"


def test_stop(server: Server, opened: Callable[..., Any]) -> None:
    page = opened(server)
    server.models[0].answer, server.models[0].delay = "word " * 500, 0.02
    page.wait_for_selector("#model:not([disabled])")
    ask(page, "Go on and on")
    page.locator(".assistant .text", has_text="word word word word").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_selector("text=Stopped.")
    wait_until(lambda: server.models[0].running == 0)
    assert page.get_by_label("Send", exact=True).count() == 1


def test_settings_reach_the_engine(server: Server, opened: Callable[..., Any]) -> None:
    page = opened(server)
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.25")
    page.get_by_label("Most tokens").fill("5")
    page.get_by_label("Seed").fill("7")
    page.get_by_role("button", name="Save").click()
    page.select_option("#model", "int8")
    ask(page, "Hello")
    page.wait_for_selector("text=reached the most tokens")
    request = server.models[1].requests[-1]
    assert (request.sampling.temperature, request.sampling.seed, request.max_new_tokens) == (0.25, 7, 5)
    assert "system\nBe brief." in server.models[1].tokenizer.decode(request.prompt)


def test_errors(server: Server, opened: Callable[..., Any]) -> None:
    page = opened(server)
    page.wait_for_selector("#model:not([disabled])")
    server.models[0].busy = True
    ask(page, "Hello")
    page.wait_for_selector("text=Trying again in")
    server.models[0].busy, server.models[0].fails_after = False, 3
    page.get_by_role("button", name="Try now").click()
    page.wait_for_selector("text=failed to answer")
    server.models[0].fails_after = None
    page.get_by_role("button", name="Answer again").last.click()
    page.wait_for_selector(".stats")
    ask(page, "x" * 5000)
    page.get_by_role("button", name="Send without the oldest messages").click()
    page.wait_for_selector("text=Messages above this line")
    page.get_by_role("button", name="Send without the oldest messages").click()
    page.wait_for_selector("text=This message alone is too long")
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.get_by_role("button", name="New chat").first.click()
    ask(page, "Anyone there?")
    page.wait_for_selector("text=The server does not answer")


def test_key(served: Callable[..., Server], opened: Callable[..., Any]) -> None:
    server = served(api_keys=("secret",))
    page = opened(server)
    for key in ("wrong", "secret"):
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Continue").click()
        if key == "wrong":
            page.wait_for_selector("text=does not accept")
    page.wait_for_selector("#model:not([disabled])")
    ask(page, "Hello")
    page.wait_for_selector(".stats")


def test_compare(server: Server, opened: Callable[..., Any]) -> None:
    page = opened(server, "#compare")
    page.wait_for_selector(".column")
    server.models[1].answer = ANSWER.replace("word", "work")
    for model in server.models:
        model.delay = 0.001  # each token comes alone
    page.fill("#compare-input", "Hello")
    page.keyboard.press("Enter")
    page.wait_for_selector("#session:not([hidden])")
    notes = [note.inner_text() for note in page.locator(".column-note").all()]
    assert notes[1] == "Differs from token 15 on"
    assert notes[2].startswith("The same ")
    assert page.inner_text(".first-difference") == "k"
    cards = page.locator(".score-card")
    assert cards.count() == 2
    assert "".join(cards.first.locator(".tokens span").all_inner_texts()).startswith("A **bold** word.")
    cards.first.locator(".tokens").focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert "KL" in cards.first.locator(".detail").inner_text()
    rows = page.locator("#session-rows th").all_inner_texts()
    assert rows == ["int8", "int4", "int4 − int8"]
    assert "to" in page.locator("#session-rows td").nth(1).inner_text()


def test_the_session_shows_the_error_of_its_first_answer(server: Server, opened: Callable[..., Any]) -> None:
    page = opened(server, "#compare")
    page.wait_for_selector(".column")
    error = {"error": {"message": "No statistics today.", "type": "server_error"}}
    page.route("**/compare/summary", lambda route: route.fulfill(status=500, json=error))
    page.fill("#compare-input", "Hello")
    page.keyboard.press("Enter")
    page.wait_for_selector("#session:not([hidden])")
    assert "No statistics today." in page.inner_text("#session-note")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(server: Server, opened: Callable[..., Any], scheme: str) -> None:
    size = {"width": 390, "height": 844}
    page = opened(server, viewport=size, has_touch=True, is_mobile=True, color_scheme=scheme)
    page.wait_for_selector("#model:not([disabled])")
    page.fill("#input", "Hello")
    page.get_by_label("Send", exact=True).tap()
    page.wait_for_selector(".stats")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.get_by_label("Open the list of chats").tap()
    page.wait_for_selector("#close-sidebar:focus")
    page.keyboard.press("Escape")
    assert page.get_by_label("Open the list of chats").get_attribute("aria-expanded") == "false"
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (colour == "rgb(20, 22, 26)") == (scheme == "dark")


def test_every_control_in_use_has_a_name(server: Server, opened: Callable[..., Any]) -> None:
    page = opened(server)
    page.wait_for_selector("#model:not([disabled])")
    ask(page, "Hello")
    page.wait_for_selector(".stats")
    names = """[...document.querySelectorAll("button, a, input, select, textarea, [role=region], [role=listbox]")]
        .filter((one) => !(one.ariaLabel || one.innerText?.trim() || one.labels?.length || one.title))
        .map((one) => one.outerHTML)"""
    assert page.evaluate(names) == []
    page.goto(server.url + "#compare")
    page.fill("#compare-input", "Hello")
    page.keyboard.press("Enter")
    page.wait_for_selector("#session:not([hidden])")
    assert page.evaluate(names) == []
