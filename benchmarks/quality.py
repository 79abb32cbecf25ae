"""What quantizing costs: our algorithms beside peers, one model, one calibration text, one evaluator.

    python benchmarks/peers/install.py                       # once: each peer into build/peers/<name>
    python benchmarks/quality.py build/reference-model --markdown benchmarks/results/quality.md

Each contestant is a `peer:format` that quantizes the model in its own environment and a fresh process
(`quantizer.py`). Its weights are then turned back into floats and run by our native engine, so that nothing but the
weights is compared; our own artifacts run on the integer kernels. Rows are kept under `build/quality/<model>`: a long
table can be made in pieces with `--only`, and `--again` makes rows anew. A peer that is not installed or does not
quantize is listed with the reason. "What it says" in an existing table is written by hand and kept, and so are the
sections of processor classes. `--time` measures only the seconds and memory of quantizing, and writes this machine's
part of the page (`pages.py`).

- KL, top-1, perplexity: against the model in float32, token by token (`zeropoint.evaluate.quality.token_scores`)
- MB: all tensors as stored; bits per weight: over all parameters, tied ones once
- seconds, peak MB: of quantizing, from reading the checkpoint on, imports left out of the seconds only
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import levels
import numpy as np
import pages
from contestant_base import HERE, OURS, ROOT, last_line
from numpy.typing import NDArray
from quality_table import Row, by_kind, costs_alone, duels, front

from zeropoint.checkpoint import open_checkpoint
from zeropoint.evaluate.quality.token_scores import measure_quality
from zeropoint.evaluate.quality.windows import Windows, load_text, make_windows
from zeropoint.machine.detect import Machine
from zeropoint.quantization import read_calibration
from zeropoint.runtime import open_runner
from zeropoint.tokenizer import load_tokenizer

CONTEXT = 512
CONCLUSIONS = "## What it says"


class RefusedError(Exception):
    """Why a contestant has no row."""


@dataclass(frozen=True)
class Contestant:
    peer: str
    fmt: str
    kind: str
    note: str

    @property
    def name(self) -> str:
        return f"{self.peer}:{self.fmt}"

    @property
    def file_name(self) -> str:
        return self.name.replace(":", "-").replace("/", "-")

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.peer == OURS else levels.peer_folder(self.peer) / "bin/python"


def contestants() -> list[Contestant]:
    sys.path.insert(0, str(HERE))
    import quantizer  # noqa: F401  (drivers import its helpers)
    from contestant import import_driver

    drivers = [import_driver(path) for path in sorted((HERE / "quantizers").glob("*.py"))]
    return [
        Contestant(Path(str(driver.__file__)).stem, fmt, kind, note)
        for driver in drivers
        for fmt, (kind, note) in driver.FORMATS.items()
    ]


class Recorded:
    """The reference's logits on the windows, computed in float32 once and kept on disk."""

    def __init__(self, model: Path, windows: Windows, store: Path, threads: int) -> None:
        self._windows = [row.tobytes() for row in windows.tokens]
        file = store / "reference.npy"
        if not file.exists():
            runner = open_runner(model, dtype="float32", threads=threads)
            partial, shape = file.with_suffix(".partial.npy"), (*windows.tokens.shape, runner.vocab_size)
            logits = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
            for index, row in enumerate(
                windows.tokens
            ):  # a window at a time: Gemma's logits take 1 MB a token
                logits[index] = runner.logits(row)
            del logits
            partial.rename(file)
        self._logits = np.load(file, mmap_mode="r")

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.asarray(self._logits[self._windows.index(tokens.tobytes())])


class Bench:
    """A model, the two texts as tokens, and the folder where rows are kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model = options.model
        self.threads = len(os.sched_getaffinity(0))
        tokenizer = load_tokenizer(Path(options.model))
        text = load_text(options.text)
        self.windows = make_windows(text, tokenizer, tokens=options.windows * (CONTEXT - 1), context=CONTEXT)
        calibrated = read_calibration(
            open_checkpoint(options.model), options.calibration, tokens=options.calibration_windows * CONTEXT
        )
        self.texts = {
            "evaluation": describe(self.windows.tokens, text.source),
            "calibration": describe(calibrated.tokens, calibrated.source),
        }
        self.store = ROOT / "build" / "quality" / options.model.resolve().name
        self.store.mkdir(parents=True, exist_ok=True)
        self._require_same_texts()
        self.calibration = self.store / "calibration.npz"
        if not self.calibration.exists():
            moments = input_moments(options.model, calibrated.tokens)
            np.savez(self.calibration, tokens=calibrated.tokens, **moments)

    def _require_same_texts(self) -> None:
        """Rows on other texts are not comparable: refuse to mix them."""
        file = self.store / "texts.json"
        if not file.exists():
            file.write_text(json.dumps(self.texts))
        if json.loads(file.read_text()) != self.texts:
            raise SystemExit(f"{self.store} holds rows on other texts: remove it, or give the same texts")

    def row(self, contestant: Contestant) -> Path:
        return self.store / f"{contestant.file_name}.json"

    def play(self, contestant: Contestant) -> dict[str, Any]:
        """A row of the table: costs and quality, or why there is none."""
        work = self.store / contestant.file_name
        try:
            made = self.quantize(contestant, work, self.calibration)
            result = self.measure(work, made)
        except RefusedError as why:
            return {"refused": str(why)}
        shutil.rmtree(work)
        return result

    def quantize(self, contestant: Contestant, work: Path, calibration: Path) -> dict[str, Any]:
        """What `quantizer.py` says of its work, which it leaves in the folder `work`."""
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        driver = HERE / "quantizers" / f"{contestant.peer}.py"
        log = self.store / f"{contestant.file_name}.log"
        with log.open("w") as output:
            done = subprocess.run(
                [
                    *(contestant.python, "-P", HERE / "quantizer.py", driver),
                    *(self.model, work, contestant.fmt, calibration),
                ],
                stdout=output,
                stderr=output,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            )
        if done.returncode:
            raise RefusedError(f"did not quantize (status {done.returncode}): {last_line(log)}")
        made: dict[str, Any] = json.loads((work / "made.json").read_text())
        return made

    def time(self, chosen: list[Contestant], windows: int) -> None:
        """Quantize with each, one after the other, on so many calibration windows; keep what it took."""
        arrays = dict(np.load(self.calibration))
        arrays["tokens"] = arrays["tokens"][:windows]
        calibration, work = self.store / "calibration-timed.npz", self.store / "timed"
        np.savez(calibration, **arrays)
        costs = []
        for contestant in chosen:
            if not contestant.python.exists():
                print(f"{contestant.name} is not installed", file=sys.stderr, flush=True)
                continue
            try:
                made = self.quantize(contestant, work, calibration)
            except RefusedError as why:
                print(f"{contestant.name}: {why}", file=sys.stderr, flush=True)
                continue
            costs.append(
                {
                    "name": contestant.name,
                    "tokens": arrays["tokens"].size,
                    "cores": self.threads,
                    **{key: made[key] for key in ("seconds", "peak_rss_bytes")},
                }
            )
        if not costs:
            raise SystemExit("nothing was timed: none of the named contestants quantized the model")
        self.costs.write_text(json.dumps(costs, indent=1))
        shutil.rmtree(work)

    @property
    def costs(self) -> Path:
        return self.store / "costs.json"

    def measure(self, work: Path, made: dict[str, Any]) -> dict[str, Any]:
        folder = work / "model"
        nbytes = made["tensor_bytes"] if "tensor_bytes" in made else write_floats(self.model, work, made)
        runner = open_runner(folder, threads=self.threads)
        reference = Recorded(self.model, self.windows, self.store, self.threads)
        run = measure_quality(reference, {"candidate": runner}, windows=self.windows)
        return {
            **run.candidates["candidate"].to_json(),
            "engine": type(runner).__name__,
            "reference_perplexity": run.reference_perplexity.value,
            "tensor_bytes": nbytes,
            "seconds": made["seconds"],
            "peak_rss_bytes": made["peak_rss_bytes"],
            "cores": self.threads,
        }


def describe(tokens: NDArray[np.int64], source: str) -> str:
    return f"{tokens.size:,} tokens of {source} (sha256 {hashlib.sha256(tokens.tobytes()).hexdigest()[:12]})"


def input_moments(model: Path, tokens: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """Mean squares `[in]` of the input channels of every linear layer, by its weight's name, in the float model."""
    import torch
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    sums: dict[str, Any] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear):

            def watch(_: Any, inputs: Any, key: str = f"{name}.weight") -> None:
                sums[key] = sums.get(key, 0) + inputs[0].double().square().sum((0, 1))

            layer.register_forward_pre_hook(watch)
    with torch.inference_mode():
        for row in tokens:
            module(torch.from_numpy(row)[None])
    return {name: (total / tokens.size).float().numpy() for name, total in sums.items()}


def write_floats(model: Path, work: Path, made: dict[str, Any]) -> int:
    """Write `work/model`: the checkpoint in float32, with what was made of its weights. Returns the bytes of what was
    made, as stored, and of what was kept."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    stored = {name: weight.nbytes for name, weight in weights.items()} | made["stored_bytes"]
    found = load_file(work / "made.safetensors")
    for name, weight in found.items():
        if weight.shape != weights[name if name in weights else "model.embed_tokens.weight"].shape:
            raise ValueError(f"{name} is {tuple(weight.shape)}, not of the checkpoint's shape")
    weights = {name: weight.to(torch.float32) for name, weight in weights.items()} | found
    folder = work / "model"
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((model / "config.json").read_text())
    config.update(dtype="float32", tie_word_embeddings="lm_head.weight" not in weights)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (work / "made.safetensors").unlink()
    return sum(stored.values())


def conclusions(table: Path | None) -> list[str]:
    """Return the conclusions that people wrote into the existing table, to keep them; none without a table."""
    text = table.read_text() if table is not None and table.exists() else ""
    _, title, rest = text.partition(f"\n{CONCLUSIONS}\n")
    return [title + rest.partition("\n## ")[0].rstrip()] if title else []


def report(bench: Bench, found: dict[Contestant, dict[str, Any]], page: Path | None) -> str:
    """Return the page: all rows, then the conclusions and the sections of processor classes of the existing `page`."""
    words = conclusions(page)
    machine = Machine.detect()
    parameters = sum(p.numel for p in open_checkpoint(bench.model).parameters() if p.tied_to is None)
    rows = [
        Row(c.name, c.peer == OURS, c.kind, c.note, row) for c, row in found.items() if "refused" not in row
    ]
    perplexity = rows[0].found["reference_perplexity"] if rows else 0.0
    cores = sorted({row.found["cores"] for row in rows})
    lines = [
        f"# {bench.model.name}: quality of quantized models beside peers",
        "",
        f"- evaluation: {bench.texts['evaluation']}, context {CONTEXT}; reference perplexity {perplexity:.2f}",
        f"- calibration: {bench.texts['calibration']}",
        f"- machine: {machine.processor}, {' or '.join(map(str, cores))} core(s) used and shared with other work, so "
        f"that seconds are a guide; Python {platform.python_version()}",
        "- losses do not depend on the processor (kernels of all levels agree bit for bit); seconds do, see the last "
        "sections",
        "- by falling bits, then by KL; intervals are 95 % bootstrap over documents",
        "- made by `benchmarks/quality.py`, a row by `--only NAME` ([how](../README.md))",
    ]
    lines += words + duels(rows) + front(rows) + by_kind(rows, parameters)
    refused = {c: row["refused"] for c, row in found.items() if "refused" in row}
    if refused:
        lines += ["", "## Not measured", "", *(f"- {c.name}: {why}" for c, why in refused.items())]
    if page is not None and page.exists():
        lines += pages.sections(page.read_text())
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="Hugging Face checkpoint folder of a Llama-shape model")
    parser.add_argument("--text", type=Path, default=ROOT / "examples/data/eval.txt")
    parser.add_argument("--calibration", type=Path, help="default: the built-in sample")
    parser.add_argument("--windows", type=int, default=12, help="of 512 evaluation tokens")
    parser.add_argument("--calibration-windows", type=int, default=32, help="of 512 calibration tokens")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="play these contestants; table all")
    parser.add_argument("--again", action="store_true", help="play them although their rows are kept")
    parser.add_argument(
        "--time", nargs="+", metavar="NAME", help="only quantize with these, in turns, and keep what it took"
    )
    parser.add_argument("--timed-windows", type=int, default=16, help="of calibration, for --time")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    bench = Bench(options)
    if options.time:
        named = {contestant.name: contestant for contestant in contestants()}
        bench.time([named[name] for name in options.time], options.timed_windows)
        costs = costs_alone(json.loads(bench.costs.read_text()))
        lines = [pages.machine_line(), *levels.notes(), *costs]
        print("\n".join(lines))
        if options.markdown:
            title = f"{options.model.name}: quality of quantized models beside peers"
            pages.write(options.markdown, title, "Seconds alone on the machine", lines)
        return
    rows = {}
    for contestant in contestants():
        chosen = options.only is None or contestant.name in options.only
        file = bench.row(contestant)
        if chosen and (options.again or not file.exists()):
            if contestant.python.exists():
                row = bench.play(contestant)
                file.write_text(json.dumps(row, indent=1))
            else:
                row = {"refused": f"not installed: python benchmarks/peers/install.py {contestant.peer}"}
            shown = (
                row.get("refused") or f"mean KL {row['kl_divergence']['value']:.4f}, {row['seconds']:.0f} s"
            )
            print(f"{contestant.name}: {shown}", file=sys.stderr, flush=True)
            rows[contestant] = row
        elif file.exists():
            rows[contestant] = json.loads(file.read_text())
    text = report(bench, rows, options.markdown)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
