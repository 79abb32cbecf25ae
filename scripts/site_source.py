"""Copy the repository's markdown pages, with their paths, to the folder that the documentation site is built from."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("*.md", "docs/site.css", "docs/**/*.md", "benchmarks/*.md", "benchmarks/results/*.md")


def main() -> None:
    """Replace the folder `--out` by a fresh copy of the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    for pattern in PAGES:
        for page in sorted(ROOT.glob(pattern)):
            copy = out / page.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page, copy)


if __name__ == "__main__":
    main()
