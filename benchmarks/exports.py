"""Exported and imported models in the runtimes they are for, against our artifacts of the same numbers.

    python benchmarks/peers/install.py llama_cpp             # once
    python benchmarks/exports.py build/int8:build/int8.gguf build/int4:build/int4.gguf

Each `ARTIFACT:OTHER` is run by our engine and by the other's runtime: llama.cpp for a file, onnxruntime for a folder
with a graph, transformers for one of tensors (with GPTQModel's kernels if that made it). llama.cpp and GPTQModel are
run in environments of their own. The same windows of text, the same prompt. Shown: KL of the other's logits from the
artifact's (nats per token), top-1 agreement, how many of the first greedy tokens agree, and whether both make the same
tokens of a text. The weights are equal (`zeropoint export` compares them); what is left is each runtime's arithmetic.
`MODEL:FILE`, with the float model in the artifact's place, shows instead what a file lost, and `--itself` how far
llama.cpp is from itself when it sums attention in another order: what becomes of such differences in its own rounding
of inputs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.artifact import is_artifact
from zeropoint.evaluate.quality.token_scores import measure_quality
from zeropoint.evaluate.quality.windows import Windows, load_text, make_windows
from zeropoint.runtime import open_runner

HERE = Path(__file__).parent
ROOT = HERE.parent
CONTEXT = 512
NEW_TOKENS = 64
PROMPT = "Explain in three sentences why the sky is blue."


class Recorded:
    """Logits that were computed elsewhere, by window."""

    def __init__(self, windows: Windows, logits: NDArray[np.float32]) -> None:
        self._by_window = {row.tobytes(): each for row, each in zip(windows.tokens, logits, strict=True)}

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._by_window[tokens.tobytes()]


def runtime_of(other: Path) -> tuple[Path, str]:
    """The interpreter and the runner for a file or folder."""
    if other.is_file():
        return ROOT / "build/peers/llama_cpp/bin/python", "llama_cpp.py"
    if (other / "model.onnx").exists():
        return Path(sys.executable), "onnxruntime.py"
    section = json.loads((other / "config.json").read_text())["quantization_config"]
    if section["quant_method"] in ("gptq", "awq"):
        return ROOT / "build/peers/gptqmodel/bin/python", "transformers.py"
    return Path(sys.executable), "transformers.py"


def run_other(other: Path, request: dict[str, Any]) -> dict[str, NDArray[Any]]:
    python, runner = runtime_of(other)
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "request.npz", Path(folder) / "result.npz"
        np.savez(asked, **request)
        command = [python, "-P", HERE / "runners" / runner, other, asked, answered]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return dict(np.load(answered))


def compare(artifact: Path, other: Path, text_file: Path, count: int, *, floats: bool, itself: bool) -> str:
    runner = open_runner(artifact) if is_artifact(artifact) else open_runner(artifact, dtype="float32")
    text = load_text(text_file)
    windows = make_windows(text, runner, tokens=count * (CONTEXT - 1), context=CONTEXT)
    prompt = runner.chat_prompt(PROMPT)
    sample = "\n\n".join(text.documents)[:40_000]
    request = {
        "windows": windows.tokens,
        "prompt": np.array(prompt, np.int64),
        "new_tokens": NEW_TOKENS,
        "text": np.frombuffer(sample.encode(), np.uint8),
        "floats": floats,
    }
    theirs = run_other(other, request)
    recorded, greedy = Recorded(windows, theirs["logits"]), theirs["greedy"].tolist()
    if itself:
        again = run_other(other, {**request, "plain": True})
        run = measure_quality(Recorded(windows, again["logits"]), {"other": recorded}, windows=windows)
        ours = again["greedy"].tolist()
    else:
        run = measure_quality(runner, {"other": recorded}, windows=windows)
        ours = runner.generate(prompt, max_new_tokens=NEW_TOKENS)
    quality = run.candidates["other"]
    agreeing = next(
        (i for i, pair in enumerate(zip(ours, greedy, strict=False)) if pair[0] != pair[1]), len(ours)
    )
    first = f"{other.name}, attention in steps" if itself else artifact.name
    same_ids = theirs["ids"].tolist() == runner.encode(sample)
    kl, top1 = quality.kl_mean, quality.top1_agreement.value
    return (
        f"| {first} | {other.name} | {kl.value:.2g} ({kl.low:.2g}–{kl.high:.2g}) | {top1:.3f} | "
        f"{agreeing} of {len(ours)} | {'yes' if same_ids else 'NO'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", nargs="+", metavar="ARTIFACT:OTHER")
    parser.add_argument("--text", type=Path, default=ROOT / "examples/data/eval.txt")
    parser.add_argument("--windows", type=int, default=4, help="of 512 tokens")
    parser.add_argument(
        "--floats",
        action="store_true",
        help="llama.cpp runs the file's weights as float32, dequantized by itself",
    )
    parser.add_argument(
        "--itself", action="store_true", help="llama.cpp against itself: its attention fused or in steps"
    )
    options = parser.parse_args()
    print(
        "| artifact | other | KL of the other from it | top-1 | equal greedy tokens | same tokens of a text |"
    )
    print("|---|---|---|---|---|---|")
    for pair in options.pairs:
        artifact, _, other = pair.partition(":")
        row = compare(
            Path(artifact),
            Path(other),
            options.text,
            options.windows,
            floats=options.floats,
            itself=options.itself,
        )
        print(row, flush=True)


if __name__ == "__main__":
    main()
