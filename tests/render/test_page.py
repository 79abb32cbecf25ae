from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from zeropoint.errors import UsageError
from zeropoint.render.colours import colour_classes
from zeropoint.render.page import embed, page, write_page
from zeropoint.values.report import Report

from .conftest import NASTY, VALUES, build

VOID = {"meta", "br", "line", "rect", "circle", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects elements, attributes and the text of each element; checks that tags close."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[tuple[str, str]] = []
        self.feed(source)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID or tag in ("rect", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.words.append((self.open[-1], data))

    def text(self, tag: str) -> list[str]:
        return [words for element, words in self.words if element == tag]


def test_nothing_is_loaded_from_anywhere(report: Report) -> None:
    source = page(report)
    parsed = Page(source)
    for tag, attributes in parsed.tags:
        assert tag not in {"link", "iframe", "img", "object", "embed", "base"}
        assert not {"src", "href", "xlink:href", "action"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "http://" not in source
    assert "https://" not in source
    assert not re.search(r"@import|url\(", source)
    policy = next(a for t, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy["content"] or "")


def test_model_text_cannot_leave_its_place(report: Report) -> None:
    parsed = Page(page(report))
    scripts = [a for t, a in parsed.tags if t == "script"]
    assert len(scripts) == 2
    assert not any(t == "b" and "<b>" in str(a) for t, a in parsed.tags)
    data = json.loads(next(w for t, w in parsed.words if t == "script" and w.startswith("{")))
    assert data["answers"][0]["prompt"] == f"Say {NASTY}"
    assert data == json.loads(report.dumps())
    assert any(NASTY in words for words in parsed.text("h3"))


def test_the_first_different_token_is_marked(report: Report) -> None:
    parsed = Page(page(report))
    assert parsed.text("mark") == ["isn't"]
    notes = "".join(parsed.text("p"))
    assert "the same, all 7 tokens" in notes
    assert "differs from token 2 of 7" in notes


def test_every_section_is_there(report: Report) -> None:
    parsed = Page(page(report))
    assert parsed.text("h1") == [
        "int4 is 3.0× smaller and decodes 2.5× faster; it changes 1 in 3 top tokens."
    ]
    assert parsed.text("h2") == [
        "Cost of each model",
        "Change of the predictions",
        "Where the error sits",
        "Answers of each model",
        "What was quantized",
        "All numbers",
        "How it was measured",
    ]
    words = " ".join(w for _, w in parsed.words)
    assert "gate passed" in words
    assert "gate failed" in words
    assert "zeropoint compare ref int8 int4" in words
    assert any("model.layers.11.mlp.up_proj: 19.0 %" in w for w in parsed.text("title"))


@pytest.mark.parametrize("missing", [*VALUES, None])
def test_renders_whatever_is_missing(missing: str | None) -> None:
    values = {metric: rows for metric, rows in VALUES.items() if metric != missing}
    Page(page(build(values)))


def test_renders_the_odd_ones() -> None:
    assert "Nothing was measured" in page(Report(()))
    single = build({"weights_bytes": {"m": (89e6,) * 3}, "decode_tokens_per_second": {"m": (40, 39, 41)}})
    assert Page(page(single)).text("h1") == ["m takes 89.0 MB and decodes 40.0 tokens a second."]
    infinite = {**VALUES, "kl_divergence": {"ref": (0, 0, 0), "int4": (float("inf"),) * 3}}
    infinite["perplexity"] = {"ref": (20, 19, 21), "int4": (float("inf"),) * 3}
    Page(page(build(infinite)))
    many = {f"model-with-a-very-long-name-{i}": (1e6 * (i + 1),) * 3 for i in range(9)}
    Page(page(build({"weights_bytes": many, "kl_divergence": dict.fromkeys(many, (0.1, 0.1, 0.1))})))


def test_embedded_json_has_no_markup_and_no_nan() -> None:
    data: dict[str, Any] = {"a": NASTY, "b": [float("nan"), {"c": float("-inf")}], "d": "\u2028"}
    text = embed(data)
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == {"a": NASTY, "b": [None, {"c": None}], "d": "\u2028"}


def test_each_model_keeps_one_colour(report: Report) -> None:
    assert colour_classes(report) == {"ref": "c-ref", "int8": "c-blue", "int4": "c-orange"}
    many = build({"weights_bytes": {n: (1, 1, 1) for n in ("ref", "int4-a", "int4-b", "x", "y")}})
    assert len(set(colour_classes(many).values())) == 5


def test_write_page(report: Report, tmp_path: Path) -> None:
    write_page(report, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page(report)
    with pytest.raises(UsageError, match="cannot write"):
        write_page(report, tmp_path / "none" / "page.html")
