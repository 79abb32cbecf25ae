"""The page's sections as plain values for the template."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from zeropoint.render import charts, layers, numbers
from zeropoint.render.summary import Candidate, candidates, ordered_models, reference_name
from zeropoint.render.table import COLUMNS, spread
from zeropoint.values.report import Measurement, Report

Classes = Mapping[str, str]

# metric, title, direction of improvement, number format
_COSTS: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
    ("weights_bytes", "Size on disk", "shorter is better", numbers.size),
    ("resident_bytes", "Memory after load", "shorter is better", numbers.size),
    ("ready_seconds", "Load to first step", "shorter is better", numbers.seconds),
    ("prefill_tokens_per_second", "Prefill speed", "longer is better", numbers.rate),
    ("decode_tokens_per_second", "Decode speed", "longer is better", numbers.rate),
    ("perplexity", "Perplexity", "shorter is better", numbers.plain),
)

_TITLES = {
    "packed_bytes": "Weights in memory",
    "resident_increase_bytes": "Memory above the libraries'",
    "resident_anonymous_bytes": "Memory, allocated share",
    "resident_file_bytes": "Memory, mapped files' share",
    "resident_at_load_bytes": "Memory before the first step",
    "baseline_bytes": "Memory of the libraries alone",
    "load_peak_bytes": "Memory at the peak of loading",
    "peak_bytes": "Memory at the peak of running",
    "ready_seconds": "Load to first step",
    "other_load_cores": "Cores busy with other programs",
    "perplexity_ratio": "Perplexity ratio to float32",
    "kl_max": "KL max",
    "noise_floor_kl": "Noise floor, KL mean",
    "noise_floor_top1": "Noise floor, top-1",
    "minimal_detectable_kl": "Smallest KL change this text shows",
}

_METHODS = {
    "weights_bytes": "Size on disk: the tensors in the model's safetensors files, headers left out.",
    "resident_bytes": (
        "Memory: resident bytes of a fresh process after load and one step of 8 tokens, as Linux accounts "
        "them, the libraries' own share included; the full table lists that share and the peak."
    ),
    "ready_seconds": (
        "Load to first step: one load in a fresh process, with the file cache as it was found, and one step "
        "of 8 tokens, because a loader that only maps files has not read them yet."
    ),
    "prefill_tokens_per_second": (
        "Speed: each model alone in a fresh process, one run to warm up, then the median of the repeats; "
        "whiskers are the slowest and the fastest."
    ),
    "kl_divergence": (
        "KL divergence: how far the next-token distribution moved from the same weights computed in "
        "float32, token by token over the same text; 0 is identical. Intervals are 95 % bootstraps over "
        "documents."
    ),
    "top1_agreement": "Top-1: the share of tokens whose most likely next token stayed the same.",
    "perplexity": (
        "Perplexity depends on the text and the tokenizer; only compare within this page. Windows do "
        "not overlap; each begins with a BOS token if the model's tokenizer puts one before a text."
    ),
    "noise_floor_kl": (
        "Noise floor: the divergence of the same weights computed in 16 bits. A format at the floor "
        "cannot be told from the model itself."
    ),
}


def cards(report: Report, classes: Classes) -> list[dict[str, Any]]:
    """Return one card per artifact: its figures and the gate's verdict."""
    return [_card(report, each, classes[each.name]) for each in candidates(report)]


def _card(report: Report, each: Candidate, css: str) -> dict[str, Any]:
    """Return the card of one artifact for the template."""
    figures = []

    def add(
        label: str, metric: str, show: Callable[[float], str], ratio: float | None, words: tuple[str, str]
    ) -> None:
        measurement = report.find(each.name, metric)
        if measurement is None:
            return
        if ratio is None:
            figures.append((show(measurement.value), label, spread(measurement, show), False))
        else:
            word = words[0] if ratio >= 1 else words[1]
            figures.append(
                (numbers.times(max(ratio, 1 / ratio)), word, f"{show(measurement.value)} {label}", ratio < 1)
            )

    add("on disk", "weights_bytes", numbers.size, each.smaller, ("smaller", "larger"))
    add("resident", "resident_bytes", numbers.size, each.leaner, ("less memory", "more memory"))
    add("decode", "decode_tokens_per_second", numbers.rate, each.decode, ("faster decode", "slower decode"))
    add(
        "prefill",
        "prefill_tokens_per_second",
        numbers.rate,
        each.prefill,
        ("faster prefill", "slower prefill"),
    )
    add("mean KL, nats", "kl_divergence", numbers.nats, None, ("", ""))
    add("same top token", "top1_agreement", numbers.percent, None, ("", ""))
    label = each.format if each.format.lower() != each.name.lower() else ""
    engine = report.extra.get("engines", {}).get(each.name, {}).get("engine", "")
    return {
        "name": each.name,
        "format": label,
        "engine": f"{engine} engine" if engine else "",
        "css": css,
        "figures": figures,
        "passed": each.passed,
    }


def costs(report: Report, classes: Classes) -> list[dict[str, Any]]:
    """Return a bar chart for every measured metric of `_COSTS`."""
    reference = reference_name(report)
    plots = []
    for metric, title, good, show in _COSTS:
        rows = [m for n in ordered_models(report) if (m := report.find(n, metric)) is not None]
        if not rows:
            continue
        base = report.find(reference or "", metric)
        drawn = [
            charts.Bar(
                m.model,
                classes[m.model],
                m.value,
                m.low,
                m.high,
                _against(m, base),
                f"{m.model}: {show(m.value)}" + (f" ({spread(m, show)})" if spread(m, show) else ""),
            )
            for m in rows
        ]
        label = f"{title}: " + ", ".join(f"{m.model} {show(m.value)}" for m in rows)
        plots.append(
            {
                "title": title,
                "good": good,
                "where": rows[0].where,
                "svg": Markup(charts.bars(drawn, show, label=label)),
            }
        )
    return plots


def _against(mine: Measurement, base: Measurement | None) -> str:
    if base is None or base.model == mine.model or base.value <= 0 or not math.isfinite(mine.value):
        return ""
    return f"{mine.value / base.value:.2f}×"


def points(report: Report, classes: Classes) -> list[charts.Point]:
    """Return a scatter point for each model with both a size and a finite divergence."""
    dots = []
    for name in ordered_models(report):
        size, kl = report.find(name, "weights_bytes"), report.find(name, "kl_divergence")
        if size is None or kl is None or not math.isfinite(kl.value):
            continue
        tail = report.find(name, "kl_p99")
        dots.append(
            charts.Point(
                name, classes[name], size.value, kl.value, kl.low, kl.high, tail.value if tail else None
            )
        )
    return dots


def heat_maps(report: Report, classes: Classes) -> list[dict[str, Any]]:
    """Return a wide and a narrow heat map for each artifact with layer errors in its card."""
    maps = []
    for name, rows in report.extra.get("layer_errors", {}).items():
        errors = layers.parse(rows)
        css = classes.get(name, "c-ref")
        wide = layers.heat_map(errors, css=css)
        worst = layers.worst(errors)
        if not wide or worst is None:
            continue
        middle = sorted(e.error for e in errors)[len(errors) // 2]
        outside = [e.words() for e in errors if e.block is None]
        maps.append(
            {
                "name": name,
                "css": css,
                "wide": Markup(wide),
                "narrow": Markup(layers.heat_map(errors, css=css, width=360)),
                "worst": f"{worst.name}, {layers.percent(worst.error)}",
                "median": layers.percent(middle),
                "outside": outside,
            }
        )
    return maps


def answers(report: Report, classes: Classes) -> list[dict[str, Any]]:
    """Return each prompt with every model's answer, cut at the first differing token."""
    return [
        {
            "prompt": str(each.get("prompt", "")),
            "answers": [_answer(a, classes) for a in each.get("answers", ())],
        }
        for each in report.extra.get("answers", ())
    ]


def _answer(entry: Mapping[str, Any], classes: Classes) -> dict[str, Any]:
    """Return one answer for the template, with visible marks if the differing token is empty or whitespace."""
    name = str(entry.get("model", "?"))
    index, count = entry.get("first_difference"), entry.get("token_count", 0)
    css = classes.get(name, "c-ref")
    first = str(entry.get("first", ""))
    if css == "c-ref":
        note = f"reference, {count} tokens"
    elif index is None:
        note = f"the same, all {count} tokens"
    else:
        note = f"differs from token {index + 1} of {count}"
    same, shown = str(entry.get("same", "")), first
    if first.strip():  # move the space before the differing word out of the marked text
        shown = first.lstrip()
        same += first[: len(first) - len(shown)]
    elif index is not None:
        shown = "∎" if not first else first.replace(" ", "␣").replace("\n", "↵\n")
    return {
        "model": name,
        "css": css,
        "same": same,
        "first": shown,
        "rest": str(entry.get("rest", "")),
        "differs": index is not None,
        "note": note,
    }


def coverage(report: Report, classes: Classes) -> list[dict[str, Any]]:
    """Return for each artifact the weights per number format, and the unquantized weights by reason."""
    entries = []
    for name, entry in report.extra.get("coverage", {}).items():
        reasons: dict[str, list[str]] = {}
        for weight in entry.get("kept", ()):
            reasons.setdefault(weight.get("reason") or "no reason given", []).append(weight["name"])
        schemes = sorted(entry.get("schemes", {}).items(), key=lambda item: -item[1])
        entries.append(
            {
                "name": name,
                "css": classes.get(name, "c-ref"),
                "weights": entry.get("weights", 0),
                "schemes": schemes,
                "kept": sorted(reasons.items(), key=lambda item: -len(item[1])),
            }
        )
    return entries


def full_table(report: Report) -> dict[str, Any]:
    """Return every metric of every model with its interval, for reading and copying."""
    titles = {c.metric: c.title for c in COLUMNS}
    metrics = list(dict.fromkeys(m.metric for m in report.measurements))
    names = ordered_models(report)
    rows = []
    for metric in metrics:
        cells = [_table_cell(report.find(name, metric)) for name in names]
        rows.append(
            {
                "metric": metric,
                "title": titles.get(metric) or _TITLES.get(metric) or metric.replace("_", " "),
                "cells": cells,
            }
        )
    return {"names": names, "rows": rows}


def _table_cell(measurement: Measurement | None) -> tuple[str, str]:
    """Return value and interval as text, in the format of the measurement's unit."""
    if measurement is None:
        return numbers.MISSING, ""
    show: Callable[[float], str] = {
        "bytes": numbers.size,
        "seconds": numbers.seconds,
        "tokens/s": numbers.rate,
        "fraction": numbers.percent,
        "nats/token": numbers.nats,
        "cores": lambda value: numbers.plain(value, 2),
    }.get(measurement.unit, lambda value: numbers.plain(value, 4))
    return show(measurement.value), spread(measurement, show)


def methods(report: Report) -> list[str]:
    """Return one sentence per metric on the page about how the metric was measured."""
    measured = {m.metric for m in report.measurements}
    lines = [text for metric, text in _METHODS.items() if metric in measured]
    for metric in ("decode_tokens_per_second", "prefill_tokens_per_second", "perplexity"):
        where = next((m.where for m in report.measurements if m.metric == metric), None)
        if where:
            lines.append(f"{metric.replace('_', ' ').capitalize()}: {where}.")
    return lines
