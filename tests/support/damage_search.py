"""A longer fuzzing run than the test suite's, over all kinds of files:
`python -m tests.support.damage_search 1000 --seed 7`."""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

from tests.support import damage_subjects as subjects
from tests.support.damage import Trial, limited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, help="number of mutants of each file")
    parser.add_argument("--seed", type=int, default=1, help="seed of the mutants (default: 1)")
    parser.add_argument("--only", default="", help="try only files with this text in their name")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for kind in subjects.KINDS:
        with tempfile.TemporaryDirectory() as folder:
            for subject in kind(Path(folder)):
                if options.only in subject.name:
                    with limited():
                        trial = Trial(subject)
                        outcomes, failures = trial.search(options.count, options.seed)
                    print(f"{subject.name}: {outcomes}", *failures, sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
