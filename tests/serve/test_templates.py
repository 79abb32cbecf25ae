"""Chat templates in their own process, and the limits of that process."""

from __future__ import annotations

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


def test_a_long_conversation(templates: Templates) -> None:
    long = [{"role": "user", "content": "é" * 99_000}]
    assert templates.render("{{ messages[0].content }}", long, {}) == "é" * 99_000
