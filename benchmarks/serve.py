"""`zeropoint serve` against its peers: the same model, threads and requests, measured in turns in one run.

    python benchmarks/peers/install.py openvino vllm         # once: each peer into build/peers/<name>
    python benchmarks/serve.py build/reference-model --markdown benchmarks/results/serve.md --json serve.json

Each contestant, named `peer:format`, is a server with OpenAI's `/v1/completions` endpoint. It runs in its own Python
environment and process, started by `listen` of its driver in `benchmarks/peers`. One contestant is measured at a time,
while SIGSTOP pauses the others. Prompts are random token ids, different in every round. Decoding is greedy, and an
answer has exactly the requested number of tokens.

- start: from starting the process to the first token after a prompt of 16
- closed-loop N: N requests at a time, each of `--prompt` input tokens and `--new-tokens` output tokens
- poisson R: requests of the same size arrive at random times, R a second on average; goodput counts the requests within
  the limits on latency
- prefix: time to first token of a prompt with a prefix of 2,000 tokens, first cold, then with the prefix cached
- stall: time between tokens of 8 running streams, before, during and after the prefill of a prompt of 4,096 tokens.
  Meanwhile the streams' own texts grow, and with them the time of a token, so "after" is longer than "before"

llama.cpp does not take part: llama-cpp-python's server answers one request at a time (a stream holds a lock), and
no Python package contains llama-server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import signal
import statistics
import sys
import time
from dataclasses import dataclass

from contestant_base import SkippedError, options_parser
from load_client import Answer, closed_loop, complete, percentile, poisson, summary
from servers import Contestant, enter, tokens

from zeropoint.kernels import active_isa
from zeropoint.machine.detect import Machine

PREFIX, LONG_PROMPT, STREAMS = 2000, 4096, 8

# -- scenarios ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """The scenarios, one method each, for one contestant.

    `seed` differs in every scenario and round, so that no prompt is in a server's prefix cache.
    """

    contestant: Contestant
    options: argparse.Namespace
    seed: int

    def prompts(self, count: int) -> list[list[int]]:
        return [tokens(self.options.prompt, 1000 * self.seed + i) for i in range(count)]

    @property
    def server(self) -> tuple[int, str]:
        return self.contestant.port, self.contestant.model

    def summary(self, answers: list[Answer]) -> dict[str, float]:
        for answer in answers:
            if answer.error:
                print(f"{self.contestant.name}: {answer.error}", file=sys.stderr)
        return summary(answers, self.options.ttft_limit, self.options.tpot_limit)

    async def closed_loop(self, concurrent: int) -> dict[str, float]:
        prompts = self.prompts(max(self.options.requests, 2 * concurrent))
        return self.summary(await closed_loop(*self.server, prompts, self.options.new_tokens, concurrent))

    async def poisson(self, rate: float) -> dict[str, float]:
        prompts = self.prompts(self.options.requests)
        return self.summary(await poisson(*self.server, prompts, self.options.new_tokens, rate))

    async def prefix(self) -> dict[str, float]:
        cold, warm = [], []
        for i in range(3):
            prefix = tokens(PREFIX, 1000 * self.seed + 500 + i)
            for times, own in ((cold, 1), (warm, 2), (warm, 3)):
                answer = await complete(*self.server, prefix + tokens(16, own), 1)
                if answer.error:
                    return {"failed": 1}
                times.append(answer.ttft)
        cold_s, warm_s = statistics.median(cold), statistics.median(warm)
        return {"failed": 0, "TTFT cold": cold_s, "TTFT warm": warm_s, "warm/cold": warm_s / cold_s}

    async def stall(self) -> dict[str, float]:
        """Return the ITL of running streams: medians before and after the prefill of a long prompt, p99 during it."""
        answers = [Answer() for _ in range(STREAMS)]
        streams = [
            asyncio.create_task(complete(*self.server, prompt, self.options.stream_tokens, answer))
            for prompt, answer in zip(self.prompts(STREAMS), answers, strict=True)
        ]
        while any(len(a.arrivals) < 48 and not a.error for a in answers):
            await asyncio.sleep(0.05)
        before = [gap for a in answers for gap in a.gaps[-32:]]
        begin = time.perf_counter()
        long = await complete(*self.server, tokens(LONG_PROMPT, 1000 * self.seed + 900), 1)
        end = time.perf_counter()
        failed = bool(long.error) or any(a.error for a in answers)
        until = [len(a.arrivals) + 33 for a in answers]
        while any(len(a.arrivals) < n for a, n in zip(answers, until, strict=True)) and not any(
            task.done() for task in streams
        ):
            await asyncio.sleep(0.05)
        running = not any(task.done() for task in streams)
        after = [gap for a in answers for gap in a.gaps[-32:]]
        for task in streams:
            task.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        await asyncio.sleep(1)  # until the server has noticed that the streams are closed
        if failed:
            return {"failed": 1}
        gaps = [
            later - earlier
            for a in answers
            for earlier, later in zip(a.arrivals, a.arrivals[1:], strict=False)
            if later > begin and earlier < end
        ]
        first, last, worst = statistics.median(before), statistics.median(after), percentile(gaps, 0.99)
        return {
            "failed": 0 if running else 1,  # a stream that ended early did not see the whole prefill
            "ITL p50 before": first,
            "ITL p50 after": last,
            "ITL p99 meanwhile": worst,
            "p99/before": worst / first,
            "p99/before and after": worst / statistics.median(before + after),
            "TTFT of the prompt": long.ttft,
        }

    async def start(self) -> dict[str, float]:
        return {"failed": 0, "start": await self.contestant.start()}


def scenarios(options: argparse.Namespace) -> dict[str, tuple[str, tuple[float, ...]]]:
    """Return a dict from each scenario's name to its method of `Load` and the method's arguments."""
    found: dict[str, tuple[str, tuple[float, ...]]] = {"start": ("start", ())}
    found |= {f"closed-loop {n}": ("closed_loop", (n,)) for n in options.concurrent}
    found |= {f"poisson {rate:g}": ("poisson", (rate,)) for rate in options.rates}
    found |= {"prefix": ("prefix", ()), "stall": ("stall", ())}
    return {name: call for name, call in found.items() if name.split()[0] not in options.leave_out}


async def measure(
    contestants: list[Contestant], options: argparse.Namespace, skipped: dict[str, str]
) -> None:
    for turn in range(options.rounds):
        for number, (name, (method, arguments)) in enumerate(scenarios(options).items()):
            for contestant in list(contestants):
                contestant.signal(signal.SIGCONT)
                load = Load(contestant, options, 1 + 100 * turn + number)
                try:
                    metrics = await getattr(load, method)(*arguments)
                except SkippedError as why:
                    skipped[contestant.name] = str(why)
                    contestant.stop()
                    contestants.remove(contestant)
                    continue
                contestant.found.setdefault(name, []).append(metrics)
                contestant.signal(signal.SIGSTOP)
            print(f"round {turn + 1} of {options.rounds}: {name}", file=sys.stderr, flush=True)


# -- report ---------------------------------------------------------------------------------------


def cell(values: list[float], metric: str) -> str:
    """Return the median over the rounds, and the range if there are several rounds; latencies in milliseconds."""
    short = metric.startswith(("ITL", "TPOT", "TTFT"))
    shown = sorted(value * (1000 if short else 1) for value in values)
    digits = 0 if shown[-1] >= 100 else 2
    text = f"{statistics.median(shown):.{digits}f}{' ms' if short else ''}"
    return text if len(shown) == 1 else f"{text} ({shown[0]:.{digits}f} - {shown[-1]:.{digits}f})"


def tables(contestants: list[Contestant], options: argparse.Namespace) -> list[str]:
    lines = []
    for scenario in scenarios(options):
        metrics = list(dict.fromkeys(m for c in contestants for r in c.found.get(scenario, []) for m in r))
        lines += [
            "",
            f"## {scenario}",
            "",
            f"| contestant | {' | '.join(metrics)} |",
            "|---" * (len(metrics) + 1) + "|",
        ]
        for contestant in contestants:
            rounds = contestant.found.get(scenario, [])
            values = [[r[metric] for r in rounds if metric in r] for metric in metrics]
            cells = [cell(v, m) if v else "-" for v, m in zip(values, metrics, strict=True)]
            lines.append(f"| {contestant.name} | {' | '.join(cells)} |")
    return lines


def report(contestants: list[Contestant], skipped: dict[str, str], options: argparse.Namespace) -> None:
    machine = Machine.detect()
    header = [
        f"- command: `python benchmarks/serve.py {options.model.name} ...`, {options.threads} threads, "
        f"{options.rounds} rounds in turns; median (lowest - highest)",
        f"- requests: {options.prompt} tokens in, {options.new_tokens} out; goodput: requests a second with a TTFT "
        f"of at most {options.ttft_limit:g} s and a TPOT of at most {options.tpot_limit:g} s",
        f"- machine: {machine.processor}, {machine.cores} cores, kernels {active_isa()}, Python "
        f"{platform.python_version()}",
    ]
    header += [f"- {c.name}: peak memory {c.peak_memory() / 1e6:.0f} MB" for c in contestants]
    header += [f"- skipped {name}: {why}" for name, why in skipped.items()]
    text = "\n".join([*header, *tables(contestants, options)])
    print(text)
    if options.markdown:
        options.markdown.write_text(f"# {options.model.name}: serving, against its peers\n\n{text}\n")
    if options.json:
        found = {c.name: c.found for c in contestants}
        options.json.write_text(json.dumps({"header": header, "skipped": skipped, "found": found}, indent=1))


async def run(options: argparse.Namespace) -> None:
    contestants, skipped = await enter(options)
    try:
        if contestants:
            await measure(contestants, options, skipped)
            report(contestants, skipped, options)
    finally:
        for contestant in contestants:
            contestant.stop()
    for name, why in skipped.items():
        print(f"skipped {name}: {why}")


def main() -> None:
    parser = options_parser(__doc__)
    parser.add_argument(
        "--leave-out", nargs="+", default=[], help="scenarios to skip, by the first word of the name"
    )
    parser.add_argument("--concurrent", type=int, nargs="*", default=[1, 8, 32, 64])
    parser.add_argument("--rates", type=float, nargs="*", default=[0.5, 1], help="requests a second")
    parser.add_argument(
        "--requests", type=int, default=16, help="requests of a scenario; closed-loop N sends at least 2 N"
    )
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument(
        "--stream-tokens", type=int, default=3000, help="maximum number of tokens of each stream of `stall`"
    )
    parser.add_argument("--ttft-limit", type=float, default=5.0, help="seconds")
    parser.add_argument("--tpot-limit", type=float, default=0.2, help="seconds")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
