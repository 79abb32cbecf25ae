"""The figure of a fit: names stand beside their dots, and none over another."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import pytest

from zeropoint.render import frontier, svg
from zeropoint.values.report import Report


def point(name: str, megabytes: float, decode: float, kl: float) -> dict[str, Any]:
    return {
        "name": name,
        "weights_bytes": megabytes * 1e6,
        "decode_tokens_per_second": decode,
        "prefill_tokens_per_second": 4000.0,
        "kl": kl,
    }


UNIFORM = [
    point("16-bit", 269, 96, 0.0),
    point("int8", 135, 294, 0.0049),
    point("int5", 92.5, 372, 0.13),
    point("int4", 75.7, 476, 0.42),
]


def names(report: Report) -> list[tuple[str, float, float, float, float]]:
    """Each panel's names, and the boxes they take: left, top, right, bottom."""
    section = frontier.section(report)
    assert section is not None
    found = []
    for number, panel in enumerate(section["panels"]):
        pattern = r'<text x="([\d.]+)" y="([\d.]+)" class="name" text-anchor="(\w+)">([^<]+)<'
        for x, y, anchor, words in re.findall(pattern, panel["svg"]):
            width = svg.text_width(words, 13)
            left, top = float(x) - (width if anchor == "end" else 0), float(y) - 12 + 1000 * number
            found.append((words, left, top, left + width, top + 15))
    return found


@pytest.mark.parametrize("size", [76, 90, 92.5, 94, 100, 134, 140, 260])
@pytest.mark.parametrize("kl", [0.004, 0.1, 0.13, 0.15, 0.4])
def test_no_name_stands_over_another(size: float, kl: float) -> None:
    chosen = point("fit", size, 374, kl)
    found = {
        "budget": {"max_memory": 110e6},
        "refusal": None,
        "formats": {"int5": 1},
        "uniform": UNIFORM,
        "front": UNIFORM,
        "predicted": chosen,
    }
    boxes = names(Report((), {}, {"fit": found}))
    assert sorted(words for words, *_ in boxes) == sorted(2 * ["16-bit", "int8", "int5", "int4", "fit"])
    for (one, a, b, c, d), (other, e, f, g, h) in combinations(boxes, 2):
        assert c <= e or g <= a or d <= f or h <= b, f"{one} over {other}"
