"""A report as one self-contained HTML page: it loads nothing from the network and needs no JavaScript.

All text from models and file names is escaped: the template engine escapes text, `svg` escapes labels, and the embedded
JSON has no character that could end its script element.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from zeropoint.files import atomic
from zeropoint.render import charts, fragility, frontier, numbers, summary
from zeropoint.render.colours import colour_classes
from zeropoint.render.sections import answers, cards, costs, coverage, full_table, heat_maps, methods, points
from zeropoint.values.report import Report
from zeropoint.values.sensitivity import Sensitivity

_TEMPLATE = "report.html.j2"
_WIDE, _NARROW = 660.0, 360.0


def page(report: Report) -> str:
    """Return the page as a string. A section without measurements is left out."""
    classes = colour_classes(report)
    sensitivity = fragility.table_of(report)
    reference = summary.reference_name(report) or (
        sensitivity.model if sensitivity else report.extra.get("model")
    )
    fitted = frontier.section(report)
    dots = points(report, classes)
    floor = report.find(reference or "", "noise_floor_kl")
    floor_value = floor.value if floor else None
    return _template().render(
        title=f"{reference or 'Nothing'}: {'compared' if len(report.models()) > 1 else 'measured'}",
        reference=reference,
        headline=_headline(report, sensitivity, fitted),
        sentences=summary.other_sentences(report),
        warnings=summary.warnings(report),
        noise=summary.footnotes(report),
        legend=[(n, classes[n], summary.format_of(report, n)) for n in summary.ordered_models(report)],
        cards=cards(report, classes),
        costs=costs(report, classes),
        scatter_wide=Markup(charts.scatter(dots, floor_value, width=_WIDE)) if dots else None,
        scatter_narrow=Markup(charts.scatter(dots, floor_value, width=_NARROW, height=380)) if dots else None,
        heat_maps=heat_maps(report, classes),
        fragility=fragility.maps(sensitivity),
        fit=fitted,
        answers=answers(report, classes),
        coverage=coverage(report, classes),
        table=full_table(report),
        methods=methods(report),
        machine=_machine(report),
        command=report.extra.get("command"),
        versions=report.extra.get("versions", {}),
        data=Markup(embed(report.to_json())),
    )


def _headline(report: Report, table: Sensitivity | None, fitted: Mapping[str, Any] | None) -> str:
    """Return the page's headline, one sentence."""
    if fitted is not None:
        return str(fitted["headline"])
    if table is not None and not report.models():
        return fragility.headline(table)
    return summary.headline(report)


def write_page(report: Report, path: str | Path) -> None:
    """Write the page to `path`. Raises `UsageError` if the file cannot be written."""
    atomic.write_text(Path(path), page(report))


def embed(data: Mapping[str, Any]) -> str:
    """Return JSON that is safe inside a script element.

    `<`, `>`, `&` and the line separators U+2028 and U+2029 become escapes; infinity and NaN become null.
    """
    text = json.dumps(_finite(data), ensure_ascii=False, allow_nan=False, default=str)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def _machine(report: Report) -> list[str]:
    machine = report.machine
    parts = [str(machine[key]) for key in ("processor", "system") if machine.get(key)]
    if machine.get("cores"):
        parts.append(f"{machine['cores']} cores")
    if machine.get("ram_total_bytes"):
        parts.append(f"{numbers.size(machine['ram_total_bytes'])} memory")
    return parts


@cache
def _template() -> Template:
    source = files("zeropoint.render").joinpath("templates", _TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source)
