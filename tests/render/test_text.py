"""Terminal, markdown, sentences and numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from zeropoint.render import markdown, numbers, page, terminal
from zeropoint.render.layers import heat_map, parse
from zeropoint.render.summary import candidates, headline, other_sentences, sentence, warnings
from zeropoint.render.svg import decades, nice_ticks, shorten
from zeropoint.render.terminal import plain_text
from zeropoint.values.report import Report

from .conftest import VALUES, build


def test_plain_table_is_whole_and_colourless(report: Report) -> None:
    text = plain_text(report)
    assert "\x1b" not in text
    lines = text.splitlines()
    header = next(line for line in lines if "Model" in line)
    titles = ["Size", "Memory", "Load", "Prefill", "Decode", "Perplexity", "KL mean", "KL p99", "Top-1"]
    assert [t for t in titles if t in header] == titles
    models = [line.split()[0] for line in lines if line.split()[:1] in (["ref"], ["int8"], ["int4"])]
    assert models == ["ref", "int8", "int4"]
    assert "3.0× smaller" in text
    assert "0.35 to 0.39" in text
    assert "67.0 to 70.0 %" in text
    assert "…" not in text
    assert "Noise floor: mean KL 0.0012" in text


def test_a_narrow_terminal_gets_models_as_columns(report: Report) -> None:
    text = plain_text(report, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert text.split()[:3] == ["ref", "int8", "int4"]
    for words in ("3.0× smaller", "0.35 to 0.39", "KL p99"):
        assert words in text


def test_bad_news_is_said_plainly(report: Report) -> None:
    lines = warnings(report)
    assert "int4 is not faster at prefill here: 1,300 tok/s against 1,500 tok/s of ref." in lines
    assert "int4 does not take less memory here: 700 MB against 690 MB of ref." in lines
    assert (
        "int4 decodes no faster than int8 here: 101 tok/s against 100 tok/s of int8. Its gain is size."
        in lines
    )
    assert "int4 raises perplexity by 33 %: expect visibly worse text." in lines
    assert "int4 failed its quality gate." in lines
    assert not any(line.startswith("int8") for line in lines)
    advice = [line for line in lines if "zeropoint doctor" in line]
    assert len(advice) == 1
    assert "fastest at prefill on this machine; `zeropoint fit --min-prefill RATE`" in advice[0]


def test_without_slow_formats_there_is_no_advice() -> None:
    fast = {metric: {m: v for m, v in rows.items() if m != "int4"} for metric, rows in VALUES.items()}
    assert not any("zeropoint doctor" in line for line in warnings(build(fast)))


def test_two_of_one_size_gain_nothing_on_each_other() -> None:
    twins = {metric: {**rows, "twin": rows["int4"]} for metric, rows in VALUES.items() if "int4" in rows}
    said = [line for line in warnings(build(twins)) if "Its gain is size" in line]
    assert len(said) == 1
    assert "against 100 tok/s of int8" in said[0]


def test_speed_beside_another_load_is_not_trusted() -> None:
    noisy = build({**VALUES, "other_load_cores": {"ref": (1.6,) * 3, "int4": (0.1,) * 3}})
    words = (
        "Other programs were running while speed was measured: ref (1.6 cores). Do not trust these speeds."
    )
    assert warnings(noisy)[0] == words
    assert headline(noisy) == "int4 is 3.0× smaller; it changes 1 in 3 top tokens."


def test_colour_on_a_terminal(report: Report) -> None:
    console = Console(force_terminal=True, width=200, color_system="standard")
    with console.capture() as capture:
        console.print(terminal(report))
    assert "\x1b[" in capture.get()


def test_markdown_table(report: Report) -> None:
    text = markdown(report)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 5
    assert len({row.count(" |") for row in rows}) == 1
    assert rows[2].startswith("| ref<br><sub>BF16</sub> | 269 MB |")
    assert "```\nzeropoint compare ref int8 int4\n```" in text
    evil = build({"weights_bytes": {"a|b<i>": (1e6, 1e6, 1e6)}})
    assert r"a\|b\<i\>" in markdown(evil)


def test_sentences(report: Report) -> None:
    assert headline(report).startswith("int4 is 3.0× smaller")
    assert other_sentences(report) == [
        "int8 is 2.0× smaller and decodes 2.5× faster; it changes 1 in 20 top tokens."
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decode_tokens_per_second": {"ref": (40, 40, 40), "int4": (41, 41, 41)}}, "decodes no faster"),
        ({"decode_tokens_per_second": {"ref": (40, 40, 40), "int4": (20, 20, 20)}}, "decodes 2.0× slower"),
        ({"weights_bytes": {"ref": (1e6,) * 3, "int4": (2e6,) * 3}}, "is 2.0× larger"),
        ({"kl_divergence": {"ref": (0.001,) * 3, "int4": (0.0014, 0.001, 0.002)}}, "rounding noise"),
        ({"top1_agreement": {"ref": (1, 1, 1), "int4": (0.3, 0.3, 0.3)}}, "changes 7 in 10 top tokens"),
        ({"top1_agreement": {}}, "quality was not measured"),
    ],
)
def test_sentence_is_honest(changes: dict[str, dict[str, tuple[float, float, float]]], words: str) -> None:
    (found,) = (c for c in candidates(build({**VALUES, **changes})) if c.name == "int4")
    assert words in sentence(found)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (numbers.size(89e6), "89.0 MB"),
        (numbers.size(1.2534e9), "1.25 GB"),
        (numbers.size(12), "12 B"),
        (numbers.seconds(0.35), "350 ms"),
        (numbers.seconds(12.34), "12.3 s"),
        (numbers.plain(0.00015, 2), "0.00015"),
        (numbers.plain(1320), "1,320"),
        (numbers.plain(0), "0"),
        (numbers.plain(float("inf")), "infinite"),
        (numbers.percent(0.676), "67.6 %"),
        (numbers.percent(0.9992), "99.92 %"),
        (numbers.times(2.04), "2.0×"),
        (numbers.times(41.2), "41×"),
        (numbers.one_in(0.24), "1 in 4"),
        (numbers.one_in(0.0001), "fewer than 1 in 1000"),
        (numbers.one_in(0.65), "2 in 3"),
        (numbers.one_in(0), "none"),
    ],
)
def test_numbers(shown: str, expected: str) -> None:
    assert shown == expected


def test_ticks() -> None:
    assert nice_ticks(290) == [0, 100, 200, 300]
    assert nice_ticks(0) == [0, 1]
    assert nice_ticks(1.0)[-1] >= 1.0
    assert decades(0.0012, 2.3) == [-4, -3, -2, -1, 0, 1]
    assert shorten("a very long name", 40, 10).endswith("…")


def test_layers_of_other_shapes() -> None:
    rows = [
        {"name": "transformer.h.3.attn.c_attn.weight", "relative_error": 0.1},
        {"name": "lm_head.weight", "relative_error": 0.2},
        {"name": "broken", "relative_error": None},
    ]
    errors = parse(rows)
    assert [(e.block, e.kind) for e in errors] == [(3, "c_attn"), (None, "lm_head")]
    assert heat_map(errors[1:], css="c-ref") == ""
    assert heat_map(errors, css="c-ref").count("<rect") == 1 + 8  # one cell and the legend


def test_engines_are_named_and_a_slow_one_says_why(report: Report) -> None:
    reason = "config.json has is_causal = False, which the native engine does not cover"
    engines = {
        "ref": {"engine": "transformers", "reason": ""},
        "int8": {"engine": "native", "reason": ""},
        "int4": {"engine": "universal", "reason": reason},
    }
    report = replace(report, extra={**report.extra, "engines": engines})
    text = plain_text(report, width=400)
    assert f"int4 ran in torch, slower and in more memory than natively: {reason}." in text
    assert "Run by the native engine: int8." in text
    assert "Run by transformers (torch): ref." in text
    assert "native engine" in page(report)
    assert "is_causal = False" in page(report).split("application/json")[0]
    assert "Run by the native engine: int8." in markdown(report).replace("\\", "")
