"""Budgets of every kind, each met or refused by `zeropoint fit`, then measured again by others: did it tell the truth?

    python benchmarks/budgets.py build/reference-model --text examples/data/eval.txt --results budgets.json \\
        --markdown benchmarks/results/budgets.md

Every third document of the text is set aside: `fit` plans on some of the others and gates by the rest. An artifact that
met its budget is measured in fresh processes on the documents set aside, and on the built-in text, which is of another
kind. A refusal is put to the test by every uniform plan and 200 random ones: it holds if none of them meets the
budget. Finished budgets are kept in `--results` and not run again; `--only N` runs one, so that a busy machine can be
had for a minute at a time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import levels
import numpy as np
import pages

from zeropoint import artifact
from zeropoint.checkpoint import open_checkpoint
from zeropoint.evaluate import bench, check
from zeropoint.files import documents
from zeropoint.fitting import Settings, default_folder, fit
from zeropoint.fitting.planner import Planner
from zeropoint.machine.cores import default_threads
from zeropoint.values.budget import Budget

BUDGETS = (
    Budget(max_memory=60_000_000),
    Budget(max_memory=80_000_000),
    Budget(max_memory=95_000_000, max_kl=0.1),
    Budget(max_memory=110_000_000, min_decode=250),
    Budget(max_memory=120_000_000, max_kl=0.002),
    Budget(max_memory=140_000_000, max_kl=0.006),
    Budget(max_memory=200_000_000),
    Budget(max_kl=0.02),
    Budget(max_kl=0.1, min_decode=300),
    Budget(max_kl=0.01, min_decode=400),
    Budget(max_perplexity_increase=0.03, min_prefill=2000),
    Budget(min_decode=1000),
)
RANDOM_PLANS = 200


def words(budget: Budget) -> str:
    said = {
        "max_memory": "{:.0f} MB",
        "max_kl": "KL {:g}",
        "max_perplexity_increase": "perplexity +{:.0%}",
        "min_decode": "decode {:g} tok/s",
        "min_prefill": "prefill {:g} tok/s",
    }
    scale = {"max_memory": 1e-6}
    bounds = {name: value for name, value in asdict(budget).items() if value is not None}
    return ", ".join(said[name].format(value * scale.get(name, 1)) for name, value in bounds.items())


def set_aside(text: Path, folder: Path) -> tuple[Path, Path]:
    """The text without every third document, and those documents."""
    found = documents.split(text.read_text(encoding="utf-8"))
    kept, aside = folder / text.name, folder / f"{text.stem}-aside{text.suffix}"
    kept.write_text(documents.join(d for i, d in enumerate(found) if i % 3 != 2), encoding="utf-8")
    aside.write_text(documents.join(found[2::3]), encoding="utf-8")
    return kept, aside


def run(model: str, budget: Budget, settings: Settings, aside: Path) -> dict[str, Any]:
    """`fit`, and what others say of the outcome."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "fitted"
        found = fit(model, out, budget, settings, lambda *_: None)
        answer = {"budget": words(budget), "met": found.met, "refusal": found.refusal}
        if found.refusal is not None:
            return answer | refuted(model, budget, settings)
        assert found.predicted is not None
        again, elsewhere = (
            check(str(out), model, max_kl=1.0, text=text, tokens=6144, threads=settings.threads)
            for text in (str(aside), None)
        )
        speeds = [rates(str(out), settings.threads) for _ in range(3)]
        return answer | {
            "predicted": found.predicted.to_json(),
            "gate_kl": None if found.verdict is None else found.verdict.bounds[0].value,
            "kl": again.bounds[0].value,
            "kl_low": again.bounds[0].low,
            "kl_high": again.bounds[0].high,
            "perplexity_increase": again.quality["perplexity_ratio"]["value"] - 1,
            "decode": median(decode for decode, _ in speeds),
            "prefill": median(prefill for _, prefill in speeds),
            "other_kind_kl": elsewhere.bounds[0].value,
            "weights_bytes": artifact.open(out).nbytes,
        }


def rates(artifact: str, threads: int) -> tuple[float, float]:
    """Tokens a second decoded and read, in a fresh process."""
    found = {m.metric: m.value for m in bench(artifact, threads=threads).measurements}
    return found["decode_tokens_per_second"], found["prefill_tokens_per_second"]


def refuted(model: str, budget: Budget, settings: Settings) -> dict[str, Any]:
    """How many of all uniform and of many random plans meet a budget that was refused."""
    planner = Planner(open_checkpoint(model), replace(budget, max_memory=None), settings, lambda *_: None)
    table, rng = planner.table, np.random.default_rng(0)
    plans = [table.uniform(format) for format in table.formats]
    for _ in range(RANDOM_PLANS):  # some mostly narrow, some mostly wide
        share = rng.dirichlet(np.ones(len(table.formats)))
        plans.append(rng.choice(len(table.formats), len(table.groups), p=share))
    meeting = 0
    for picks in plans:
        cheap = (
            table.total("nbytes", picks) <= (budget.max_memory or np.inf)
            and 1 / table.total("decode", picks) >= (budget.min_decode or 0)
            and 1 / table.total("prefill", picks) >= (budget.min_prefill or 0)
        )
        if cheap:
            loss = planner.search.measure(picks).loss
            meeting += loss.kl <= (budget.max_kl or np.inf) and loss.perplexity_increase <= (
                budget.max_perplexity_increase or np.inf
            )
    planner.keep()
    return {"plans_tried": len(plans), "plans_meeting": int(meeting)}


def part(results: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Return the lines of this machine's part of the page."""
    lines = [
        f"- command: `python benchmarks/budgets.py {Path(options.model).name} --text {options.text} ...`, "
        f"{options.threads} threads",
        "- two documents of three were planned on and gated by; measured again in fresh processes on the third, and "
        "on a text of another kind (Python's language reference); speeds are the median of three processes",
        "- a refusal is tried against every uniform plan and 200 random ones",
        pages.machine_line(),
        *levels.notes(),
        "",
        "| budget | answer | bytes: predicted, written | decode: predicted, measured "
        "| KL: predicted, gate, documents set aside | other kind | holds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results.values():
        if row["refusal"] is not None:
            tried = f"{row['plans_meeting']} of {row['plans_tried']} other plans meet it"
            lines.append(f"| {row['budget']} | refused: {row['refusal']} | | | | | {tried} |")
            continue
        predicted = row["predicted"]
        lines.append(
            f"| {row['budget']} | {'met' if row['met'] else 'gate failed'} "
            f"| {predicted['weights_bytes']:,.0f}, {row['weights_bytes']:,} "
            f"| {predicted['decode_tokens_per_second']:.0f}, {row['decode']:.0f} tok/s "
            f"({row['decode'] / predicted['decode_tokens_per_second'] - 1:+.0%}) "
            f"| {predicted['kl']:.4f}, {row['gate_kl']:.4f}, {row['kl']:.4f} "
            f"({row['kl'] / predicted['kl'] - 1:+.0%}) | {row['other_kind_kl']:.4f} | {row['holds']} |"
        )
    return lines


def holds(budget: Budget, row: dict[str, Any]) -> str:
    """Which bounds the second measurement breaks."""
    broken = [
        name
        for name, bad in (
            ("size", row["weights_bytes"] > (budget.max_memory or np.inf)),
            ("KL", row["kl_low"] > (budget.max_kl or np.inf)),
            ("perplexity", row["perplexity_increase"] > (budget.max_perplexity_increase or np.inf)),
            ("decode", row["decode"] < (budget.min_decode or 0)),
            ("prefill", row["prefill"] < (budget.min_prefill or 0)),
        )
        if bad
    ]
    return "no: " + ", ".join(broken) if broken else "yes"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path("budgets.json"))
    parser.add_argument(
        "--only", type=int, nargs="+", metavar="N", help=f"some of the {len(BUDGETS)} budgets, from 0"
    )
    parser.add_argument(
        "--limit", type=float, default=np.inf, metavar="SECONDS", help="begin no budget later than this"
    )
    parser.add_argument("--cache", type=Path, default=default_folder())
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--markdown", type=Path, help="the page to write this model's part into (pages.py)")
    parser.add_argument("--part", help="title of this model's part of the page (default: the folder's name)")
    options = parser.parse_args()

    begin = time.perf_counter()
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        text, aside = set_aside(options.text, Path(folder))
        settings = Settings(text=str(text), threads=options.threads, cache=options.cache, anyway=True)
        for number in range(len(BUDGETS)) if options.only is None else options.only:
            if str(number) not in results and time.perf_counter() - begin < options.limit:
                row = run(options.model, BUDGETS[number], settings, aside)
                if row["refusal"] is None:
                    row["holds"] = holds(BUDGETS[number], row)
                results[str(number)] = row
                print(json.dumps(row, indent=1), flush=True)
                options.results.write_text(json.dumps(results, indent=1))
    results = dict(sorted(results.items(), key=lambda item: int(item[0])))
    if options.markdown:
        name = options.part or Path(options.model).resolve().name
        pages.write(
            options.markdown, "Budgets, met or refused, and measured again", name, part(results, options)
        )


if __name__ == "__main__":
    main()
