"""Fitted plans against uniform formats, the mixes that other programs use, and random plans of the same size.

    python benchmarks/fit.py build/reference-model --markdown benchmarks/results/fit.md

The fitted plans are found on `fit`'s planning documents; all are measured on its gate's documents, which no search has
seen. At each size a rule is filled up to the limit, so that no plan is larger than the fitted one's bound:

- `edges wider`: whole blocks in the wider format, from both ends inwards;
- `every third down`: llama.cpp's Q4_K_M widens `down` and the values in the first and last eighth of the blocks and in
  every third between; groups of this program hold query, key and value together, so `qkv` stands for the values;
- `random`: the best of many plans drawn at random within the limit.

What a rule leaves of the limit goes to nothing: the sizes are shown. For each uniform format, and for each with the
widest quantized one for the embedding, as the presets have it, a plan is fitted to the loss that this one has.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np

from zeropoint.checkpoint import open_checkpoint
from zeropoint.evaluate.quality.windows import make_windows
from zeropoint.fitting import FORMATS, Settings, default_folder
from zeropoint.fitting.loss import LossMeter
from zeropoint.fitting.planner import WINDOW, Planner
from zeropoint.machine.cores import default_threads
from zeropoint.planning.solver import Picks
from zeropoint.tokenizer import load_tokenizer
from zeropoint.values.budget import Budget


@dataclass(frozen=True)
class Row:
    limit: float
    name: str
    nbytes: float
    kl: float
    error: float


def fill(planner: Planner, order: Iterable[int], limit: float, widths: Iterable[int] = repeat(1)) -> Picks:
    """The narrowest plan with groups widened in this order, to the widest quantized format or those given, as long as
    they fit."""
    table = planner.table
    picks = table.uniform(table.formats[-1])
    for group, width in zip(order, widths, strict=False):
        wider = picks.copy()
        wider[group] = width
        if table.total("nbytes", wider) <= limit:
            picks = wider
    return picks


def edges(planner: Planner) -> list[int]:
    """The embedding first, as every program has it wider, then blocks from both ends."""
    groups = planner.candidates.groups
    last = max(group.layer for group in groups)
    return sorted(range(len(groups)), key=lambda i: min(groups[i].layer, last - groups[i].layer))


def every_third(planner: Planner) -> list[int]:
    groups = planner.candidates.groups
    blocks = max(group.layer for group in groups) + 1

    def chosen(layer: int) -> bool:
        return layer < blocks // 8 or layer >= 7 * blocks // 8 or (layer - blocks // 8) % 3 == 2

    wide = [i for i, g in enumerate(groups) if g.layer < 0]
    return wide + [
        i for i, g in enumerate(groups) if g.kind in ("qkv", "down") and g.layer >= 0 and chosen(g.layer)
    ]


def with_head(planner: Planner, format: str) -> Picks:
    """A uniform plan with the widest quantized format for what belongs to no block: the embedding, also the head."""
    picks = planner.table.uniform(format)
    picks[[group.layer < 0 for group in planner.candidates.groups]] = 1
    return picks


def table_of(rows: list[Row], limits: str) -> list[str]:
    """Markdown: rows of one limit beside its fitted plan."""
    fitted = {row.limit: row.kl for row in rows if row.name == "fit"}
    lines = [f"| {limits} | plan | size | mean KL | times the fitted |", "|---|---|---|---|---|"]
    for row in rows:
        times = f"{row.kl / fitted[row.limit]:.2f}" if row.limit in fitted else ""
        shown = f"{row.limit / 1e6:.0f}" if row.limit > 1 else f"{row.limit:.4f}"
        lines.append(
            f"| {shown} | {row.name} | {row.nbytes / 1e6:.1f} | {row.kl:.4f} ± {row.error:.4f} | {times} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--sizes", type=float, nargs="+", default=[82, 90, 93, 102, 110, 120], metavar="MB")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), metavar="F")
    parser.add_argument("--cache", type=Path, default=default_folder())
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokens", type=int, default=4096, help="of the half that plans are measured on")
    parser.add_argument("--random", type=int, default=40, metavar="N", help="random plans at each size")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()

    settings = Settings(
        text=None if options.text is None else str(options.text),
        formats=tuple(options.formats),
        threads=options.threads,
        cache=options.cache,
    )
    checkpoint = open_checkpoint(options.model)
    planner = Planner(checkpoint, Budget(max_memory=10**12), settings, lambda *_: None)
    reader = load_tokenizer(checkpoint.path)
    windows = make_windows(planner.gate_text, reader, tokens=options.tokens, context=WINDOW)
    reference = planner.candidates.decoder(np.zeros(len(planner.candidates.groups), np.int64))
    meter = LossMeter(reference, windows.tokens, threads=options.threads)
    table, rng = planner.table, np.random.default_rng(0)
    groups = len(table.groups)
    rows: list[Row] = []
    equals: list[Row] = []

    def add(rows: list[Row], limit: float, name: str, picks: Picks) -> None:
        found = meter.measure(planner.candidates.decoder(picks))
        rows.append(Row(limit, name, table.total("nbytes", picks), found.kl, found.standard_error))
        print(rows[-1], flush=True)

    uniform = {f"uniform {f}": table.uniform(f) for f in table.formats[1:]}
    uniform |= {f"{f}, embedding {table.formats[1]}": with_head(planner, f) for f in table.formats[2:]}
    for name, picks in uniform.items():
        loss = planner.search.measure(picks).loss.kl
        add(equals, loss, name, picks)
        best = planner.search.best(
            Budget(max_kl=loss), {"nbytes": 1.0}, loss, evaluations=planner.settings.evaluations
        )
        assert best is not None
        add(equals, loss, "fit", best.picks)
    below = 0.0
    for limit in sorted(size * 1e6 for size in options.sizes):
        best = planner.search.best(
            Budget(max_memory=int(limit)), {"loss": 1.0}, None, evaluations=planner.settings.evaluations
        )
        assert best is not None
        add(rows, limit, "fit", best.picks)
        for name, picks in uniform.items():
            if below < table.total("nbytes", picks) <= limit:
                add(rows, limit, name, picks)
        add(rows, limit, "edges wider", fill(planner, edges(planner), limit))
        add(rows, limit, "every third down", fill(planner, every_third(planner), limit))
        drawn = [
            fill(planner, rng.permutation(groups), limit, rng.integers(1, len(table.formats), groups))
            for _ in range(options.random)
        ]
        quick = [planner.search.measure(picks) for picks in drawn]
        add(rows, limit, f"random, best of {options.random}", min(quick, key=lambda p: p.loss.kl).picks)
        below = limit

    tokens, source = meter.windows.size - len(meter.windows), planner.gate_text.source
    lines = [
        "# Fitted plans and others of the same size",
        "",
        f"- command: `python benchmarks/fit.py {' '.join(sys.argv[1:])}`",
        f"- mean KL on {tokens} tokens of {source}, that no search saw, ± its standard error; sizes in MB",
        "- losses do not depend on the processor: kernels of all levels agree bit for bit",
        "",
        *table_of(rows, "limit"),
        "",
        "Fitted to the loss of each uniform format, as measured on the text that plans are made on:",
        "",
        *table_of(equals, "loss"),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
