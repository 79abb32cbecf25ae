"""The native engine against its peers: one model, one prompt, as many threads, in turns in one run.

    python benchmarks/peers/install.py                       # once: each peer into build/peers/<name>
    python benchmarks/engine.py build/reference-model --markdown benchmarks/results/engine.md --json engine.json

Each contestant is a `peer:format` in its own environment and long-lived process (`contestant.py`). A round asks each
once, one after the other, and rounds repeat, so that a slow second on a shared machine hurts all alike. Contestants
wait idle while another one is asked; the report names those that used the processor while they waited. Models are
converted once and kept under `build/bench`. A peer that is not installed or does not load is reported as skipped, with
the reason. `--markdown` writes this model's part of the page, in the section of this machine's class of processors
(`pages.py`). `levels.py` runs this benchmark, peers included, at a lower instruction set level.

- load: from starting the process to the first token after a prompt of 16, files in the page cache
- prefill 512: tokens/s of the prompt; decode: greedy tokens/s after a prompt of 16, and after one of 512
- batch-8, batch-32: total tokens/s when 8 or 32 sequences are decoded together, after prompts of 16
- of limit: bytes of the weights that a decode step reads x tokens/s / measured read bandwidth
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import contestant_base
import levels
import pages
from contestant_base import OURS, SkippedError, find, last_line, options_parser

from zeropoint.kernels import library

BATCHES = (8, 32)
METRICS = ("load s", "prefill 512", "decode", "decode after 512", *(f"batch-{n} decode" for n in BATCHES))
LOWER_IS_BETTER = ("load s",)
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Contestant(contestant_base.Contestant):
    process: subprocess.Popen[str] | None = None
    values: dict[str, list[float]] = field(default_factory=lambda: {metric: [] for metric in METRICS})
    rss_bytes: int = 0
    read_bytes: int = 0
    idle_cpu_seconds: float = 0.0
    _cpu_at_rest: float | None = None

    def prepare(self, model: Path) -> None:
        """Convert the model, unless an earlier run did, and measure its size."""
        super().prepare(model)
        self.read_bytes = int(self.run_logged("measure", self.command("size", self.path)))

    def start(self) -> None:
        """Start a fresh process, and record its time to the first token as the load time."""
        self.stop()
        begin = time.perf_counter()
        with self.log.open("a") as errors:
            self.process = subprocess.Popen(
                self.command("serve", self.path, self.fmt, str(self.threads)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.ask(1, 16, 0)
        self.values["load s"].append(time.perf_counter() - begin)

    def stop(self) -> None:
        if self.process:
            self.process.communicate()
        self.process = self._cpu_at_rest = None

    def ask(self, batch: int, length: int, new_tokens: int) -> tuple[float, float]:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if self._cpu_at_rest is not None:
            self.idle_cpu_seconds += self.cpu_seconds() - self._cpu_at_rest
        request = {"batch": batch, "prompt": length, "new": new_tokens}
        with suppress(BrokenPipeError):  # its end shows in the missing answer
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SkippedError(f"{self.name} stopped (status {self.process.wait()}): {last_line(self.log)}")
        answer = json.loads(line)
        self.rss_bytes = answer["rss_bytes"]
        time.sleep(0.1)  # until its threads have stopped spinning
        self._cpu_at_rest = self.cpu_seconds()
        return answer["prefill_seconds"], answer["decode_seconds"]

    def cpu_seconds(self) -> float:
        assert self.process
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def play_round(self, new_tokens: int) -> None:
        prefill, decode = self.ask(1, 512, new_tokens)
        self.values["prefill 512"].append(512 / prefill)
        self.values["decode after 512"].append(new_tokens / decode)
        _, decode = self.ask(1, 16, new_tokens)
        self.values["decode"].append(new_tokens / decode)
        for batch in BATCHES:
            steps = max(2, 2 * new_tokens // batch)
            _, decode = self.ask(batch, 16, steps)
            self.values[f"batch-{batch} decode"].append(batch * steps / decode)


def enter(options: argparse.Namespace) -> tuple[list[Contestant], dict[str, str]]:
    """Convert the model for each contestant and start it once.

    Return the contestants that load, and a dict from the name of each other one to the reason why it does not.
    """
    contestants, skipped = [], {}
    for contestant in find(Contestant, "FORMATS", options, options.skip):
        try:
            contestant.prepare(options.model)
            contestant.start()
        except SkippedError as why:
            skipped[contestant.name] = str(why)
            continue
        contestants.append(contestant)
        print(f"{contestant.name} loaded", file=sys.stderr, flush=True)
    return contestants, skipped


def measure(
    contestants: list[Contestant], skipped: dict[str, str], rounds: int, new_tokens: int, limit: float
) -> None:
    """Play the rounds. No round begins that would end later than `limit` seconds after the start.

    A contestant that stops answering moves from `contestants` to `skipped`.
    """
    begin = time.perf_counter()

    def ask_each(question: Callable[[Contestant], object]) -> None:
        for contestant in list(contestants):
            try:
                question(contestant)
            except SkippedError as why:
                contestants.remove(contestant)
                skipped[contestant.name] = str(why)

    for contestant in contestants:
        # not counted: at the start in `enter`, the files were not yet in the page cache
        contestant.values["load s"].clear()
    for _ in range(rounds):
        ask_each(Contestant.start)
    ask_each(lambda contestant: contestant.ask(8, 16, 2))  # wakes pages and threads; not counted
    for turn in range(rounds):
        start = time.perf_counter()
        ask_each(lambda contestant: contestant.play_round(new_tokens))
        now = time.perf_counter()
        print(f"round {turn + 1} of {rounds}: {now - start:.0f} s", file=sys.stderr, flush=True)
        if now + (now - start) - begin > limit:
            break


def cell(values: list[float]) -> str:
    digits = 2 if max(values) < 10 else 0 if min(values) >= 300 else 1
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def speeds_table(contestants: list[Contestant], limit: float) -> list[str]:
    lines = [f"| contestant | {' | '.join(METRICS)} | of limit, decode | peak RSS MB |"]
    lines.append("|---" * (len(METRICS) + 3) + "|")
    for c in contestants:
        share = c.read_bytes * statistics.median(c.values["decode"]) / limit
        cells = [cell(c.values[metric]) for metric in METRICS]
        lines.append(f"| {c.name} | {' | '.join(cells)} | {share:.0%} | {c.rss_bytes / 1e6:.0f} |")
    return lines


def ratio(ours: Contestant, peer: Contestant, metric: str) -> float:
    """How many times faster ours is."""
    value = statistics.median(ours.values[metric]) / statistics.median(peer.values[metric])
    return 1 / value if metric in LOWER_IS_BETTER else value


def ratio_table(contestants: list[Contestant]) -> list[str]:
    """Each of ours beside each peer, and beside our FP16."""
    lines = ["", f"| times faster than | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 1) + "|"]
    for ours in (c for c in contestants if c.peer == OURS):
        for other in contestants:
            if other is ours or (other.peer == OURS and other.fmt != "fp16"):
                continue
            ratios = [f"{ratio(ours, other, metric):.2f}" for metric in METRICS]
            lines.append(f"| {ours.name} / {other.name} | {' | '.join(ratios)} |")
    return lines if len(lines) > 3 else []


def main() -> None:
    parser = options_parser(__doc__)
    parser.add_argument("--skip", nargs="+", default=[], help="contestants whose name holds one of these")
    parser.add_argument(
        "--limit", type=float, default=float("inf"), metavar="SECONDS", help="begin no round that ends later"
    )
    parser.add_argument(
        "--convert-only", action="store_true", help="prepare every contestant's files and stop"
    )
    parser.add_argument("--part", help="title of this model's part of the page (default: the folder's name)")
    options = parser.parse_args()
    contestants, skipped = enter(options)
    if not options.convert_only and contestants:
        limit = library.read_bandwidth(1 << 30, options.threads, 5)
        measure(contestants, skipped, options.rounds, options.new_tokens, options.limit)
        # a limit is the best that was ever seen: neighbours on a shared machine only lower it
        limit = max(limit, library.read_bandwidth(1 << 30, options.threads, 5))
        if contestants:
            report(options, contestants, skipped, limit)
    for contestant in contestants:
        contestant.stop()
    for name, why in skipped.items():
        print(f"skipped {name}: {why}")


def report(
    options: argparse.Namespace, contestants: list[Contestant], skipped: dict[str, str], limit: float
) -> None:
    command = f"python benchmarks/engine.py {' '.join(sys.argv[1:])}"
    rounds = len(contestants[0].values["prefill 512"])
    header = [
        f"- `{command}`: {options.threads} threads, {rounds} interleaved rounds of {options.new_tokens} new tokens; "
        "median (lowest - highest)",
        pages.machine_line(f"memory read {limit / 1e9:.1f} GB/s (1 GB, best of 10)"),
        *levels.notes(),
    ]
    header += [f"- skipped {name}: {why}" for name, why in skipped.items()]
    for c in contestants:
        if c.idle_cpu_seconds > 0.5:
            header.append(
                f"- {c.name} used {c.idle_cpu_seconds:.1f} s of processor time while others were measured"
            )
    lines = [*header, "", *speeds_table(contestants, limit), *ratio_table(contestants)]
    print("\n".join(lines))
    if options.markdown:
        part = options.part or options.model.resolve().name
        pages.write(options.markdown, "The native engine against its peers", part, lines)
    if options.json:
        cells = [
            {"name": c.name, "values": c.values, "rss_bytes": c.rss_bytes, "read_bytes": c.read_bytes}
            for c in contestants
        ]
        result = {"header": header, "bandwidth_bytes_s": limit, "skipped": skipped, "contestants": cells}
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
