"""Results pages: a run replaces its own part of its processor class, and nothing else."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.scripts import script

PAGES = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("*.md"))
PAGE = """# A benchmark

How it was measured.

## AMX

### Model

old

#### Inner

old too

### What it says

by hand

## AVX2: AMD EPYC (Zen 3)

### Model

theirs

## What they say

- all
"""


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    return script("pages")


def test_a_part_is_replaced_and_the_rest_stays(pages: ModuleType) -> None:
    new = pages.with_part(PAGE, "amx", "Model", ["new", "", "#### Inner", "", "more"])
    assert new == PAGE.replace("old\n\n#### Inner\n\nold too", "new\n\n#### Inner\n\nmore")
    assert pages.with_part(new, "amx", "Model", ["new", "", "#### Inner", "", "more"]) == new
    new = pages.with_part(PAGE, "avx2", "Model", ["ours"])
    assert new == PAGE.replace("theirs", "ours")


def test_parts_and_sections_are_added_in_order(pages: ModuleType) -> None:
    assert "theirs\n\n### Other\n\nnew\n\n## What they say" in pages.with_part(PAGE, "avx2", "Other", ["new"])
    middle = pages.with_part(PAGE, "avx512", "Model", ["new"])
    assert "by hand\n\n## AVX-512 VNNI\n\n### Model\n\nnew\n\n## AVX2: AMD" in middle
    last = pages.with_part(middle, "scalar", "Model", ["new"])
    assert "theirs\n\n## Scalar\n\n### Model\n\nnew\n\n## What they say" in last
    assert pages.with_part("# T\n", "avx2", "M", ["x"]) == "# T\n\n## AVX2\n\n### M\n\nx\n"
    first = pages.with_part("# T\n\n## AVX2\n\n### M\n\nx\n", "amx", "M", ["y"])
    assert first == "# T\n\n## AMX\n\n### M\n\ny\n\n## AVX2\n\n### M\n\nx\n"


def test_headings_in_code_are_no_headings(pages: ModuleType) -> None:
    code = "# T\n\n```sh\n## AVX2\n### M\n```\n"
    new = pages.with_part(code, "avx2", "M", ["```", "# a comment", "```"])
    assert new == code + "\n## AVX2\n\n### M\n\n```\n# a comment\n```\n"
    assert pages.with_part(new, "avx2", "M", ["x"]) == code + "\n## AVX2\n\n### M\n\nx\n"


def test_a_part_cannot_end_itself(pages: ModuleType) -> None:
    with pytest.raises(ValueError, match="### Tables"):
        pages.with_part(PAGE, "amx", "Model", ["### Tables"])


def test_sections_are_those_of_processors(pages: ModuleType) -> None:
    text = "\n".join(pages.sections(PAGE))
    assert text.startswith("\n## AMX\n\n### Model\n")
    assert text.endswith("\n\n## AVX2: AMD EPYC (Zen 3)\n\n### Model\n\ntheirs")
    assert "What they say" not in text


LINE = st.sampled_from(
    ["", "text", "# T", "## AMX", "## AVX2", "## AVX2: some", "## other", "### M", "### N", "#### x"]
)


@given(st.lists(LINE, max_size=14), st.sampled_from(["amx", "avx512", "avx2"]), st.sampled_from(["M", "N"]))
def test_writing_twice_writes_once(lines: list[str], level: str, part: str) -> None:
    pages = script("pages")
    once = pages.with_part("\n".join(lines), level, part, ["a body"])
    assert pages.with_part(once, level, part, ["a body"]) == once
    kept = [line for line in lines if line not in ("", "text", f"### {part}", "#### x")]
    left = [line for line in once.split("\n") if line]
    for line in set(kept):  # no heading of anybody else is lost
        assert left.count(line) >= kept.count(line)


def test_write_makes_a_page(pages: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "results" / "new.md"
    pages.write(page, "Title", "Model", [pages.machine_line("more")], level="avx512")
    text = page.read_text()
    assert text.startswith("# Title\n\n## AVX-512 VNNI\n\n### Model\n\n- machine: ")
    assert ", kernels " in text
    assert text.endswith("; more\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_part_of_the_pages_names_its_processor(pages: ModuleType, page: Path) -> None:
    lines = page.read_text(encoding="utf-8").split("\n")
    inside = pages.sections("\n".join(lines))
    starts = [at for at, depth, _ in pages.headings(inside) if depth == 3]
    by_hand = ("### What it says", "### Tables")
    for start, end in pairwise([*starts, len(inside)]):
        if inside[start] not in by_hand:
            assert any(line.startswith("- machine: ") for line in inside[start:end]), inside[start]
