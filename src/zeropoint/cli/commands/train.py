"""Train a model for its quantized format, so that 4, 3 or 2 bits lose less: quantization-aware training.

  zeropoint train MODEL -o OUT --format int4 --time-budget 1200        the model writes its own training text
  zeropoint train MODEL -o OUT --format int4 --data FILE --steps 500
  zeropoint train MODEL -o OUT --from ARTIFACT --trainable scales      start from an artifact; its codes stay
  zeropoint train MODEL -o OUT --format int4 --time-budget 1200 --resume   continue after an interruption

The float model is the teacher: the loss is the divergence of the quantized model's predictions from the float model's.
Training starts from the best codes that quantizing alone finds (--algorithm), and ends early when it stops helping on
text that was held out. At the end both are measured on text of another kind. See docs/training.md.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from zeropoint.cli.common import (
    add_json_option,
    add_text_options,
    add_threads_option,
    check_writable,
    progress_bar,
    write_json,
)
from zeropoint.cli.option_values import (
    SECONDS,
    SEED,
    above_zero,
    algorithm_name,
    format_name,
    input_file,
    whole,
)

if TYPE_CHECKING:
    from zeropoint.training.loop import Evaluation

HELP = "train a model through its quantization, to recover what few bits lose"
INTERRUPTED = "interrupted: the same command with --resume continues from the last evaluation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zeropoint train`."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder or hub name")
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="the artifact folder to write")
    parser.add_argument(
        "--format",
        type=format_name,
        metavar="F",
        help="number format of the weights, as for quantize (default: int4)",
    )
    parser.add_argument(
        "--algorithm",
        type=algorithm_name,
        metavar="A",
        help="how the codes that training starts from are chosen (default: good)",
    )
    parser.add_argument(
        "--from", dest="start", metavar="ARTIFACT", help="start from this artifact of the model instead"
    )
    parser.add_argument(
        "--data",
        type=_training_text,
        metavar="FILE",
        default="self",
        help="training text or chat .jsonl; self (default): texts that the model writes; built-in: a built-in sample",
    )
    parser.add_argument(
        "--data-tokens", type=whole(1, 100_000), metavar="N", help="tokens of training text to read or write"
    )
    parser.add_argument(
        "--trainable",
        choices=("full", "lora", "scales"),
        default="full",
        help="full (default): all weights; lora: low-rank updates of them; scales: scales and zero points, codes stay",
    )
    parser.add_argument(
        "--rank", type=whole(1, 16), default=16, metavar="R", help="rank of lora's updates (default: 16)"
    )
    parser.add_argument(
        "--steps", type=whole(1, 200), metavar="N", help="optimizer steps, instead of a time budget"
    )
    parser.add_argument(
        "--time-budget",
        type=SECONDS,
        metavar="SECONDS",
        help="as many steps as are estimated to finish in this time, with quantizing and writing text (default: 1200)",
    )
    parser.add_argument(
        "--batch",
        type=whole(1, 8),
        metavar="N",
        help="windows a step (default: 8, fewer within a short time budget)",
    )
    parser.add_argument(
        "--length", type=whole(2, 512), default=512, metavar="N", help="tokens a window (default: 512)"
    )
    parser.add_argument(
        "--weight-rate",
        type=above_zero("a number", "0.003"),
        metavar="X",
        help="learning rate of weights, in quantization steps per optimizer step (default: 0.003)",
    )
    parser.add_argument(
        "--scale-rate",
        type=above_zero("a number", "3e-4"),
        metavar="X",
        help="learning rate of scales, norms and biases, relative to their size (default: 3e-4)",
    )
    parser.add_argument(
        "--seed", type=SEED, default=0, metavar="N", help="seed of all random choices (default: 0)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue an interrupted run of the same command"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace OUT if it is an artifact, and discard an interrupted run",
    )
    add_text_options(parser)
    add_threads_option(parser)
    add_json_option(parser)


def _training_text(text: str) -> str:
    """Return the value of --data: one of two words, or a file that can be read."""
    return text if text in ("self", "built-in") else input_file(text)


def run(args: argparse.Namespace) -> int:
    """Train the model and print what that recovered. Return 0."""
    from zeropoint.errors import UsageError
    from zeropoint.training.loop import Rates
    from zeropoint.training.run import TrainRequest, run_training

    check_writable(args.json)
    if args.start is not None and (args.format or args.algorithm):
        raise UsageError(
            "--from names the artifact to start from, with its format: leave out --format and --algorithm"
        )
    rates = Rates()
    request = TrainRequest(
        args.model,
        format=args.format or "int4",
        start=args.start,
        algorithm=args.algorithm or "good",
        data=args.data,
        data_tokens=args.data_tokens,
        trainable=args.trainable,
        rank=args.rank,
        steps=args.steps,
        time_budget=args.time_budget,
        batch=args.batch,
        length=args.length,
        rates=Rates(args.weight_rate or rates.weight, args.scale_rate or rates.scale),
        text=args.text,
        tokens=args.tokens,
        seed=args.seed,
        threads=args.threads,
    )
    with progress_bar() as bar:
        result = run_training(
            request,
            args.out,
            resume=args.resume,
            overwrite=args.overwrite,
            progress=bar,
            watch=lambda evaluation: print(_line(evaluation), flush=True),
            tell=lambda line: print(line, flush=True),
        )
    best = result.trained.best
    if result.trained.stopped_early:
        print(f"ended early: the divergence on held-out windows rose after step {best.step}")
    print(f"{result.recovery.sentence}; {best.changed:.1%} of the codes changed, {result.seconds:.0f} s")
    if result.recovery.share.low <= 0:
        print("the interval includes no recovery at all: train longer, or on text nearer to your use")
    print(f"next: zeropoint check {args.out} --against {args.model}   (the quality gate)")
    write_json(
        args.json,
        {
            "evaluations": [asdict(each) for each in result.trained.evaluations],
            "recovery": result.recovery.to_json(),
            "seconds": result.seconds,
        },
    )
    return 0


def _line(evaluation: Evaluation) -> str:
    """Return the line that shows an evaluation."""
    minutes = evaluation.seconds_left / 60
    return (
        f"step {evaluation.step}: loss {evaluation.loss:.4f}, held-out KL {evaluation.held_out:.4f}, "
        f"{evaluation.changed:.2%} of the codes changed, {minutes:.0f} min left"
    )
