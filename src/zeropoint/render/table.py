"""The comparison as rows of text, shared by the terminal and the markdown table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zeropoint.render import numbers
from zeropoint.render.summary import Candidate, candidates, change, format_of, ordered_models
from zeropoint.values.report import Measurement, Report


@dataclass(frozen=True, slots=True)
class Cell:
    """`main` is the value, `note` what it means beside it (a ratio, an interval); both may be empty."""

    main: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    cell: Callable[[Report, str, Candidate | None], Cell]
    metric: str


def _value(metric: str, show: Callable[[float], str]) -> Callable[[Report, str], Cell]:
    def cell(report: Report, name: str) -> Cell:
        found = report.find(name, metric)
        return Cell(numbers.MISSING if found is None else show(found.value))

    return cell


def _with_gain(
    metric: str,
    show: Callable[[float], str],
    gain: Callable[[Candidate], float | None],
    words: tuple[str, str],
) -> Callable[[Report, str, Candidate | None], Cell]:
    plain = _value(metric, show)

    def cell(report: Report, name: str, each: Candidate | None) -> Cell:
        ratio = gain(each) if each is not None else None
        if ratio is None:
            return plain(report, name)
        return Cell(plain(report, name).main, change(ratio, *words, "the same"))

    return cell


def _with_interval(
    metric: str, show: Callable[[float], str]
) -> Callable[[Report, str, Candidate | None], Cell]:
    def cell(report: Report, name: str, _: Candidate | None) -> Cell:
        found = report.find(name, metric)
        if found is None:
            return Cell(numbers.MISSING)
        return Cell(show(found.value), spread(found, show))

    return cell


def spread(found: Measurement, show: Callable[[float], str]) -> str:
    """The interval in words with its unit once, or "" for an exact number."""
    if found.low == found.high:
        return ""
    (low, low_unit), (high, high_unit) = (show(v).partition(" ")[::2] for v in (found.low, found.high))
    first = low if low_unit == high_unit else f"{low} {low_unit}"
    return f"{first} to {high} {high_unit}".rstrip()


COLUMNS = (
    Column(
        "Size",
        _with_gain("weights_bytes", numbers.size, lambda c: c.smaller, ("smaller", "larger")),
        "weights_bytes",
    ),
    Column(
        "Memory",
        _with_gain("resident_bytes", numbers.size, lambda c: c.leaner, ("less", "more")),
        "resident_bytes",
    ),
    Column(
        "Load",
        _with_gain("load_seconds", numbers.seconds, lambda c: c.load, ("faster", "slower")),
        "load_seconds",
    ),
    Column(
        "Prefill",
        _with_gain("prefill_tokens_per_second", numbers.rate, lambda c: c.prefill, ("faster", "slower")),
        "prefill_tokens_per_second",
    ),
    Column(
        "Decode",
        _with_gain("decode_tokens_per_second", numbers.rate, lambda c: c.decode, ("faster", "slower")),
        "decode_tokens_per_second",
    ),
    Column("Perplexity", _with_interval("perplexity", numbers.plain), "perplexity"),
    Column("KL mean", _with_interval("kl_divergence", numbers.nats), "kl_divergence"),
    Column("KL p99", _with_interval("kl_p99", numbers.nats), "kl_p99"),
    Column("Top-1", _with_interval("top1_agreement", numbers.percent), "top1_agreement"),
)


@dataclass(frozen=True, slots=True)
class Table:
    """`header` has one title a column; `rows` are (model's name and format, one cell a column)."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, tuple[Cell, ...]], ...]


def table(report: Report) -> Table:
    """Rows of all models, the reference first; columns that nobody measured are left out."""
    measured = {m.metric for m in report.measurements}
    columns = [c for c in COLUMNS if c.metric in measured]
    by_name = {c.name: c for c in candidates(report)}
    rows = []
    for name in ordered_models(report):
        label = format_of(report, name)
        head = Cell(name, label if label.lower() != name.lower() else "")
        rows.append((head, tuple(c.cell(report, name, by_name.get(name)) for c in columns)))
    return Table(tuple(c.title for c in columns), tuple(rows))
