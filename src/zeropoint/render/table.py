"""The comparison as rows of text, for the terminal table and the Markdown table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zeropoint.render import numbers
from zeropoint.render.summary import Candidate, candidates, change, format_of, ordered_models
from zeropoint.values.report import Measurement, Report


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell: `main` is the value, `note` a ratio, an interval or a format; both may be empty."""

    main: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, its metric, and the function that makes its cells."""

    title: str
    cell: Callable[[Report, str, Candidate | None], Cell]
    metric: str


def _value(metric: str, show: Callable[[float], str]) -> Callable[[Report, str], Cell]:
    """Return a function that makes cells with the value only."""

    def cell(report: Report, name: str) -> Cell:
        measurement = report.find(name, metric)
        return Cell(numbers.MISSING if measurement is None else show(measurement.value))

    return cell


def _with_gain(
    metric: str,
    show: Callable[[float], str],
    gain: Callable[[Candidate], float | None],
    words: tuple[str, str],
) -> Callable[[Report, str, Candidate | None], Cell]:
    """Return a function that makes cells with the value, and for candidates the gain in words."""
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
    """Return a function that makes cells with the value and its interval."""

    def cell(report: Report, name: str, _: Candidate | None) -> Cell:
        measurement = report.find(name, metric)
        if measurement is None:
            return Cell(numbers.MISSING)
        return Cell(show(measurement.value), spread(measurement, show))

    return cell


def spread(measurement: Measurement, show: Callable[[float], str]) -> str:
    """Return the interval in words with one unit, or "" for an exact number."""
    if measurement.low == measurement.high:
        return ""
    (low, low_unit), (high, high_unit) = (
        show(v).partition(" ")[::2] for v in (measurement.low, measurement.high)
    )
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
    """A table: one title per column in `header`; each row is a head (model name and format) and one cell per column."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, tuple[Cell, ...]], ...]


def table(report: Report) -> Table:
    """Return the table of all models, the reference model first; columns without measurements are left out."""
    measured = {m.metric for m in report.measurements}
    columns = [c for c in COLUMNS if c.metric in measured]
    by_name = {c.name: c for c in candidates(report)}
    rows = []
    for name in ordered_models(report):
        label = format_of(report, name)
        head = Cell(name, label if label.lower() != name.lower() else "")
        rows.append((head, tuple(c.cell(report, name, by_name.get(name)) for c in columns)))
    return Table(tuple(c.title for c in columns), tuple(rows))
