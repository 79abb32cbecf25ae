"""A report in sentences: headline, gains and losses of each artifact, warnings, engines, noise floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from zeropoint import runtime
from zeropoint.machine.load import NOTABLE_CORES
from zeropoint.render import numbers
from zeropoint.values.report import Measurement, Report

# Two values whose ratio is smaller than this count as equal, because measurements are noisy.
TIE = 1.05
_NOTABLE_P99 = 1.0
_NOTABLE_RISE = 1.10


@dataclass(frozen=True, slots=True)
class Candidate:
    """One artifact compared with the reference model. Ratios above 1 are gains; None if a measurement is missing."""

    name: str
    format: str
    smaller: float | None
    leaner: float | None
    decode: float | None
    prefill: float | None
    load: float | None
    changed: float | None
    """The share of tokens with another most likely next token."""
    is_quiet: bool
    """Whether no other load ran while the speed of this artifact and of the reference model was measured."""
    kl: Measurement | None
    at_noise: bool
    """Whether the interval of the mean KL reaches down to the noise floor."""
    passed: bool | None
    """Whether the gate passed, by the artifact's card; None without a verdict."""


def reference_name(report: Report) -> str | None:
    """Return the name of the reference model, else of the first model; None for an empty report."""
    models: Mapping[str, Any] = report.extra.get("models", {})
    names = report.models()
    marked = [n for n in names if isinstance(models.get(n), dict) and models[n].get("is_reference")]
    return next(iter(marked or names), None)


def ordered_models(report: Report) -> list[str]:
    """Return the names of all models, the reference model first."""
    first = reference_name(report)
    return [n for n in report.models() if n == first] + [n for n in report.models() if n != first]


def format_of(report: Report, name: str) -> str:
    """Return a model's number format in words, "" if unknown."""
    entry = report.extra.get("models", {}).get(name, {})
    return str(entry.get("format", "")) if isinstance(entry, dict) else ""


def candidates(report: Report) -> list[Candidate]:
    """Return all models but the reference model, in the report's order."""
    reference = reference_name(report)
    if reference is None:
        return []
    return [_candidate(report, reference, name) for name in ordered_models(report)[1:]]


def _candidate(report: Report, reference: str, name: str) -> Candidate:
    """Return the comparison of one artifact with the reference model."""

    def gain(metric: str, more_is_better: bool) -> float | None:
        """Return the ratio of the two models' values, above 1 for a gain; None if a value is missing."""

        mine, its = report.find(name, metric), report.find(reference, metric)
        if mine is None or its is None or mine.value <= 0 or its.value <= 0:
            return None
        return mine.value / its.value if more_is_better else its.value / mine.value

    top1 = report.find(name, "top1_agreement")
    kl, floor = report.find(name, "kl_divergence"), report.find(reference, "noise_floor_kl")
    verdict = report.extra.get("verdicts", {}).get(name)
    return Candidate(
        name=name,
        format=format_of(report, name),
        smaller=gain("weights_bytes", False),
        leaner=gain("resident_bytes", False),
        decode=gain("decode_tokens_per_second", True),
        prefill=gain("prefill_tokens_per_second", True),
        load=gain("load_seconds", False),
        changed=None if top1 is None else 1 - top1.value,
        is_quiet=not {m.model for m in _disturbed(report)} & {name, reference},
        kl=kl,
        at_noise=kl is not None and floor is not None and kl.low <= floor.high,
        passed=verdict.get("passed") if isinstance(verdict, dict) else None,
    )


def sentence(each: Candidate) -> str:
    """Return one sentence on a candidate: its size, speed and loss of quality."""
    gains = []
    if each.smaller is not None:
        gains.append(f"is {change(each.smaller, 'smaller', 'larger', 'the same size')}")
    if each.decode is not None and each.is_quiet:
        gains.append(f"decodes {change(each.decode, 'faster', 'slower', 'no faster')}")
    if each.at_noise:
        loss = "its predictions cannot be told from rounding noise"
    elif each.changed is not None:
        loss = f"it changes {numbers.one_in(each.changed)} top tokens"
    else:
        loss = "its quality was not measured"
    return f"{each.name} {' and '.join(gains) or 'was measured'}; {loss}."


def change(ratio: float, better: str, worse: str, same: str) -> str:
    """Return a ratio in words: above 1 as a gain, below 1 as a loss, near 1 as `same`."""
    if ratio >= TIE:
        return f"{numbers.times(ratio)} {better}"
    return f"{numbers.times(1 / ratio)} {worse}" if ratio <= 1 / TIE else same


def headline(report: Report) -> str:
    """Return the sentence on the smallest artifact; for a single model its size and speed."""
    artifacts = candidates(report)
    if artifacts:
        return sentence(max(artifacts, key=lambda c: c.smaller or 0))
    name = reference_name(report)
    if name is None:
        return "Nothing was measured."
    parts = []
    if weights := report.find(name, "weights_bytes"):
        parts.append(f"takes {numbers.size(weights.value)}")
    if decode := report.find(name, "decode_tokens_per_second"):
        parts.append(f"decodes {numbers.plain(decode.value)} tokens a second")
    return f"{name} {' and '.join(parts) or 'was measured'}."


def other_sentences(report: Report) -> list[str]:
    """Return the sentences on the candidates that are not in the headline."""
    first = headline(report)
    return [s for s in map(sentence, candidates(report)) if s != first]


def warnings(report: Report) -> list[str]:
    """Return warnings for a reader who chooses between artifacts."""
    reference = reference_name(report)
    artifacts = candidates(report)
    lines = _disturbed_lines(report) + _engine_reasons(report)
    lines += [line for each in artifacts for line in _warnings_of(report, reference or "", each)]
    lines += _slow_formats(artifacts)
    lines += _between(report, artifacts)
    quality = report.extra.get("quality", {})
    if quality and quality.get("unit_kind") != "documents":
        lines.append("The text has few documents: intervals come from runs of tokens and are too narrow.")
    return lines


def _warnings_of(report: Report, reference: str, each: Candidate) -> list[str]:
    """Return the warnings on one artifact: no gain of speed or memory, worse text, a failed gate."""
    lines = []
    for kind, ratio in (("decode", each.decode), ("prefill", each.prefill)):
        if ratio is not None and ratio < TIE:
            pair = _pair(report, each.name, reference, f"{kind}_tokens_per_second", numbers.rate)
            lines.append(f"{each.name} is not faster at {kind} here: {pair}.")
    if each.leaner is not None and each.leaner < TIE:
        pair = _pair(report, each.name, reference, "resident_bytes", numbers.size)
        lines.append(f"{each.name} does not take less memory here: {pair}.")
    worse, tail = report.find(each.name, "perplexity_ratio"), report.find(each.name, "kl_p99")
    if worse is not None and worse.low > _NOTABLE_RISE:
        rise = f"{100 * (worse.value - 1):.0f} %"
        lines.append(f"{each.name} raises perplexity by {rise}: expect visibly worse text.")
    if tail is not None and tail.value > _NOTABLE_P99:
        value = numbers.nats(tail.value)
        lines.append(f"{each.name}: 1 token in 100 diverges by more than {value} nats.")
    if each.passed is False:
        lines.append(f"{each.name} failed its quality gate.")
    return lines


def _slow_formats(artifacts: list[Candidate]) -> list[str]:
    """Return a line that says how to find a faster format, if an artifact is no faster than the reference."""
    ratios = {kind: [getattr(each, kind) for each in artifacts] for kind in ("decode", "prefill")}
    slow = [kind for kind, all_of in ratios.items() if any(r is not None and r < TIE for r in all_of)]
    if not slow:
        return []
    bounds = " or ".join(f"`zeropoint fit --min-{kind} RATE`" for kind in slow)
    return [
        f"`zeropoint doctor` measures which format is fastest at {' and at '.join(slow)} on this machine; "
        f"{bounds} finds a model that is fast enough."
    ]


def _disturbed(report: Report) -> list[Measurement]:
    """Return the load measurements of models whose speed was measured beside another load."""
    return [m for m in report.measurements if m.metric == "other_load_cores" and m.value > NOTABLE_CORES]


def _disturbed_lines(report: Report) -> list[str]:
    loads = _disturbed(report)
    if not loads:
        return []
    names = ", ".join(f"{m.model} ({m.value:.1f} cores)" for m in loads)
    return [f"Other programs were running while speed was measured: {names}. Do not trust these speeds."]


def _between(report: Report, artifacts: list[Candidate]) -> list[str]:
    """Return a warning for each artifact that decodes no faster than the next larger one.

    Of several artifacts of about the same size, only the fastest counts.
    """
    by_size = {
        round(c.smaller, 1): c
        for c in sorted(artifacts, key=lambda c: c.decode or 0)
        if c.smaller and c.decode
    }
    lines = []
    for (_, larger), (_, smaller) in pairwise(sorted(by_size.items())):
        if (smaller.decode or 0) < TIE * (larger.decode or 0):
            pair = _pair(report, smaller.name, larger.name, "decode_tokens_per_second", numbers.rate)
            lines.append(
                f"{smaller.name} decodes no faster than {larger.name} here: {pair}. Its gain is size."
            )
    return lines


def _pair(report: Report, mine: str, other: str, metric: str, show: Callable[[float], str]) -> str:
    a, b = report.find(mine, metric), report.find(other, metric)
    return f"{show(a.value) if a else '?'} against {show(b.value) if b else '?'} of {other}"


def _engine_reasons(report: Report) -> list[str]:
    """Return a warning for each model that did not run in the preferred engine, with the reason."""
    engines: Mapping[str, Mapping[str, str]] = report.extra.get("engines", {})
    places = {name: each.FALLBACK for each in runtime.engines() for name in each.LABELS}
    return [
        f"{name} ran {places.get(ran['engine'], 'in ' + ran['engine'])}: {ran['reason']}."
        for name, ran in engines.items()
        if ran.get("reason")
    ]


def footnotes(report: Report) -> list[str]:
    """Return the lines for below a table: what was not measured, the engines, and the noise floor."""
    return _unmeasured_lines(report) + engine_lines(report) + noise_lines(report)


def _unmeasured_lines(report: Report) -> list[str]:
    """Return a line if models were compared without measuring their speed."""
    has_speed = any(m.metric == "decode_tokens_per_second" for m in report.measurements)
    return (
        [] if has_speed or report.extra.get("kind") != "compare" else ["Speed and memory were not measured."]
    )


def engine_lines(report: Report) -> list[str]:
    """Return lines for below a table: the models of each engine."""
    engines: Mapping[str, Mapping[str, str]] = report.extra.get("engines", {})
    labels = {name: label for each in runtime.engines() for name, label in each.LABELS.items()}
    by_engine: dict[str, list[str]] = {}
    for name, ran in engines.items():
        by_engine.setdefault(labels.get(ran["engine"], ran["engine"]), []).append(name)
    return [f"Run by {engine}: {', '.join(names)}." for engine, names in by_engine.items()]


def noise_lines(report: Report) -> list[str]:
    """Return lines for below a table: the noise floor and the text of the quality measurement."""
    reference = reference_name(report)
    floor = report.find(reference or "", "noise_floor_kl")
    if floor is None:
        return []
    lines = [
        f"Noise floor: mean KL {numbers.nats(floor.value)} ({reference} in 16 bits against itself in float32)."
    ]
    quality = report.extra.get("quality", {})
    if quality:
        lines.append(
            f"Quality on {quality['scored_tokens']} tokens of {quality['text']}, "
            f"95 % intervals over {quality['units']} {quality['unit_kind']}."
        )
    return lines
