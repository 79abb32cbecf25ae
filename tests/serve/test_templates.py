"""Chat templates in their own process, and the limits of that process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from zeropoint.errors import UsageError
from zeropoint.serve.templates import Templates

HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def templates() -> Iterator[Templates]:
    made = Templates(seconds=1.0, max_characters=100_000)
    yield made
    made.close()


def test_a_template_gets_everything(templates: Templates) -> None:
    text = templates.render(
        "{{ bos_token }}{{ messages[0].content }}{{ tools[0].name }}{{ mood }}{{ add_generation_prompt }}",
        HELLO,
        {"bos_token": "<s>"},
        tools=[{"name": "f"}],
        options={"mood": "glad", "messages": "mine"},
        add_generation_prompt=False,
    )
    assert text == "<s>HifgladFalse"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "seconds"),
        (
            "{% set n = namespace(x='ab') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "takes|MemoryError",
        ),
        ("{{ 'ab' * 100000 }}", "characters"),
        ("{{ raise_exception('no system message') }}", "no system message"),
        ("{{ messages.__class__.__mro__ }}{{ ''.__class__.__subclasses__() }}", "refuses"),
        ("{% for %}", "not valid"),
    ],
)
def test_a_bad_template_is_refused_and_the_next_one_works(
    templates: Templates, template: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        templates.render(template, HELLO, {})
    assert templates.render("{{ messages[0].content }}", HELLO, {}) == "Hi"


def test_a_template_is_not_blamed_while_its_process_waits_for_a_core(templates: Templates) -> None:
    templates.start()
    process = templates._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    timer = threading.Timer(
        1.5, process.send_signal, [signal.SIGCONT]
    )  # longer than the template's own second
    timer.start()
    assert templates.render("{{ messages[0].content }}", HELLO, {}) == "Hi"
    assert templates._process is process
    timer.join()


def test_a_long_conversation(templates: Templates) -> None:
    long = [{"role": "user", "content": "é" * 99_000}]
    assert templates.render("{{ messages[0].content }}", long, {}) == "é" * 99_000
