"""Results pages: a section for each class of processors, and in it a part for each run. A run replaces only its part.

    # The native engine against its peers        the title, written when the page is made
    ## AMX                                       the section of a class of processors
    ### SmolLM2-135M                             a part that a run of a benchmark writes
    ### What it says                             a part that people write; no run changes it
    ## AVX2
    ### SmolLM2-135M

So one page has the results of several machines, and each part names its machine.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from zeropoint.kernels import active_isa
from zeropoint.machine.detect import Machine

#: The class of processors by our kernels' instruction set level, in the order of a page.
CLASSES = {
    "amx": "AMX",
    "avx512": "AVX-512 VNNI",
    "avxvnni": "AVX-VNNI",
    "avx2": "AVX2",
    "i8mm": "ARM i8mm",
    "dotprod": "ARM dot product",
    "neon": "ARM NEON",
    "scalar": "Scalar",
}


def write(page: Path, title: str, part: str, lines: Sequence[str], *, level: str | None = None) -> None:
    """Write the part titled `part` into the section of `level` (None: the active one); make a page that is missing."""
    text = page.read_text(encoding="utf-8") if page.exists() else f"# {title}\n"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(with_part(text, level or active_isa(), part, lines), encoding="utf-8")


def with_part(text: str, level: str, part: str, lines: Sequence[str]) -> str:
    """Return the page with the part of this level replaced or added, and every other line unchanged.

    Raises `ValueError` if `lines` hold a heading that would end the part.
    """
    body = "\n".join(lines).strip("\n").split("\n")
    if shallow := [body[at] for at, depth, _ in headings(body) if depth < 4]:
        raise ValueError(f"a part of a page has headings of four # and more, not {shallow[0]!r}")
    old = text.rstrip("\n").split("\n")
    found = _section(old, level)
    if found is None:
        place = _place(old, level)
        return _joined(old[:place], [f"## {CLASSES[level]}", "", f"### {part}", "", *body], old[place:])
    start, end = found
    inner = [(at, depth, name) for at, depth, name in headings(old) if start < at < end]
    first = next((at for at, depth, name in inner if depth == 3 and name == part), end)
    last = next((at for at, depth, _ in inner if depth <= 3 and at > first), end)
    return _joined(old[:first], [f"### {part}", "", *body], old[last:])


def sections(text: str) -> list[str]:
    """Return the lines of the sections of processor classes, in the page's order."""
    lines = text.rstrip("\n").split("\n")
    found = sorted(place for level in CLASSES if (place := _section(lines, level)) is not None)
    return [line for start, end in found for line in ["", *_stripped(lines[start:end])]]


def machine_line(*more: str) -> str:
    """Return the line of a part that names the machine."""
    machine = Machine.detect()
    facts = [
        machine.processor,
        f"{machine.cores} cores",
        f"kernels {active_isa()}",
        f"Python {platform.python_version()}",
    ]
    return "- machine: " + "; ".join([", ".join(facts), *more])


def headings(lines: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yield (line number, depth, words) of each heading outside fenced code."""
    fence = ""
    for number, line in enumerate(lines):
        if match := re.match(r" {0,3}(```+|~~~+)", line):
            if not fence:
                fence = match[1]
            elif match[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif not fence and (match := re.match(r"(#{1,6}) +(.*?) *$", line)):
            yield number, len(match[1]), match[2]


def _section(lines: Sequence[str], level: str) -> tuple[int, int] | None:
    """Return the number of the section's first line, and of the line after its last; None if there is no section."""
    starts = [at for at, depth, _ in headings(lines) if depth <= 2]
    ranges = pairwise([*starts, len(lines)])
    return next(((start, end) for start, end in ranges if _is_class(lines[start], level)), None)


def _is_class(line: str, level: str) -> bool:
    return re.fullmatch(rf"## +{re.escape(CLASSES[level])} *(:.*)?", line) is not None


def _place(lines: Sequence[str], level: str) -> int:
    """Return the line before which a new section of the level goes, so that sections have the order of `CLASSES`."""
    order = list(CLASSES)
    mine = order.index(level)
    before = [found[1] for other in order[:mine] if (found := _section(lines, other)) is not None]
    after = [found[0] for other in order[mine + 1 :] if (found := _section(lines, other)) is not None]
    return before[-1] if before else after[0] if after else len(lines)


def _joined(before: Sequence[str], body: Sequence[str], after: Sequence[str]) -> str:
    parts = [_stripped(lines) for lines in (before, body, after)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def _stripped(lines: Sequence[str]) -> list[str]:
    return "\n".join(lines).strip("\n").split("\n") if any(lines) else []
