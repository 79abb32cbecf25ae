"""GGUF files of llama.cpp's types, ours beside llama.cpp's own with an importance matrix, run by llama.cpp.

    python benchmarks/peers/install.py llama_cpp             # once
    python benchmarks/gguf_types.py build/reference-model Q4_K_M Q5_K_M

For each type `zeropoint export MODEL --to gguf --type T` and llama.cpp's quantizer make a file from the same float
model, on the same calibration tokens (the importance matrix is their mean squares in the float model). llama.cpp then
runs both files, and the float model as an F32 file, on the same windows of text. Shown: each file's bytes, and the KL
of its logits from the F32 file's (nats per token, 95 % bootstrap over documents). `NAME=FILE` in a type's place
measures a file that is there. Files are kept under `build/gguf_types/<model>`: nothing is made twice.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from exports import CONTEXT, ROOT, Recorded, run_other
from quality import input_moments

from zeropoint import artifact, exporters
from zeropoint.checkpoint import open_checkpoint
from zeropoint.evaluate.quality.token_scores import Quality, measure_quality
from zeropoint.evaluate.quality.windows import Windows, load_text, make_windows
from zeropoint.quantization import quantize_checkpoint, read_calibration
from zeropoint.tokenizer import load_tokenizer

HERE = Path(__file__).parent
PYTHON = ROOT / "build/peers/llama_cpp/bin/python"


class Bench:
    """A model, the windows, and the folder in which files are kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model, self.tokens = options.model, options.calibration_tokens
        self.store = ROOT / "build/gguf_types" / options.model.resolve().name
        self.store.mkdir(parents=True, exist_ok=True)
        self.windows = self._windows(options.text, options.windows)
        self.reference = self.logits(self.float_file())

    def _windows(self, text: Path, count: int) -> Windows:
        return make_windows(
            load_text(text), load_tokenizer(self.model), tokens=count * (CONTEXT - 1), context=CONTEXT
        )

    def float_file(self) -> Path:
        """The model as it is, in float32."""
        file, folder = self.store / "f32.gguf", self.store / "f32"
        if not file.exists():
            quantize_checkpoint(self.model, folder, format="fp32", overwrite=True)
            exporters.export(artifact.open(folder), "gguf", file)
        return file

    def moments(self) -> Path:
        file = self.store / f"moments-{self.tokens}.npz"
        if not file.exists():
            text = read_calibration(open_checkpoint(self.model), tokens=self.tokens)
            np.savez(file, **input_moments(self.model, text.tokens))
        return file

    def theirs(self, fmt: str) -> Path:
        file = self.store / f"llama.cpp-{fmt}.gguf"
        if not file.exists():
            runner = HERE / "runners/llama_cpp_quantize.py"
            command = [PYTHON, "-P", runner, self.float_file(), file, fmt, self.moments()]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        return file

    def ours(self, fmt: str) -> Path:
        file = self.store / f"zeropoint-{fmt}.gguf"
        if not file.exists():
            command = [sys.executable, "-m", "zeropoint", "export", self.model, "--to", "gguf", "--type", fmt]
            subprocess.run(
                [*command, "--calibration-tokens", str(self.tokens), "--out", file],
                check=True,
                stdout=sys.stderr,
            )
        return file

    def logits(self, file: Path) -> Recorded:
        request = {
            "windows": self.windows.tokens,
            "prompt": self.windows.tokens[0, :8],
            "new_tokens": 0,
            "floats": False,
            "text": np.zeros(0, np.uint8),
        }
        return Recorded(self.windows, run_other(file, request)["logits"])

    def quality(self, file: Path) -> Quality:
        return measure_quality(
            self.reference, {"candidate": self.logits(file)}, windows=self.windows
        ).candidates["candidate"]

    def row(self, name: str, file: Path) -> str:
        found = self.quality(file)
        kl = found.kl_mean
        return (
            f"| {name} | {file.stat().st_size / 1e6:.1f} | {kl.value:.4f} ({kl.low:.4f}\u2013{kl.high:.4f}) | "
            f"{found.kl_p99.value:.3f} | {found.top1_agreement.value:.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("types", nargs="+", metavar="TYPE", help="Q4_K_M, say, or NAME=FILE")
    parser.add_argument("--text", type=Path, default=ROOT / "examples/data/eval.txt")
    parser.add_argument("--windows", type=int, default=12, help="of 512 evaluation tokens")
    parser.add_argument("--calibration-tokens", type=int, default=16384)
    options = parser.parse_args()
    bench = Bench(options)
    print("| file | MB | mean KL | p99 KL | top-1 |")
    print("|---|---|---|---|---|")
    for fmt in options.types:
        name, _, file = fmt.partition("=")
        files = {name: Path(file)} if file else {f"llama.cpp {fmt}": bench.theirs(fmt), fmt: bench.ours(fmt)}
        for shown, each in files.items():
            print(bench.row(shown, each), flush=True)


if __name__ == "__main__":
    main()
