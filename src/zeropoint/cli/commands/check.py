"""The quality gate: compare an artifact with its original model. Exit 0 if every bound is met, 1 if not.

Both models read the same tokens, and answer the same questions with --tasks. A bound is met only if the whole 95 %
interval of the measured value is within the bound. Without --max-kl, --max-perplexity-increase, --min-top1 and
--max-accuracy-drop, default bounds for the artifact's format apply.

The verdict is written into the artifact's card (zeropoint.json) with a digest of the weights. An artifact whose
weights, config or card changed since it was written is refused (exit 2).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from zeropoint.cli.common import (
    add_engine_option,
    add_json_option,
    add_revision_option,
    add_stream_option,
    add_text_options,
    add_threads_option,
    check_writable,
    progress_bar,
    write_json,
)
from zeropoint.cli.option_values import CHANGE, DROP, KL, SEED, SHARE, whole
from zeropoint.machine.cores import default_threads

if TYPE_CHECKING:
    from zeropoint.evaluate import TaskRequest

HELP = "quality gate: compare an artifact with its original model, exit 0 or 1"
INTERRUPTED = "interrupted: no verdict was written"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zeropoint check`."""
    parser.add_argument("artifact", metavar="ARTIFACT", help="the artifact folder to judge")
    parser.add_argument(
        "--against",
        required=True,
        metavar="MODEL",
        help="the original model that the artifact was made from: checkpoint folder, .gguf file or hub name",
    )
    parser.add_argument(
        "--max-kl", type=KL, metavar="X", help="bound on the mean KL divergence, nats per token"
    )
    parser.add_argument(
        "--max-perplexity-increase",
        type=CHANGE,
        metavar="X",
        help="bound on the relative increase of perplexity: 1%% or 0.01",
    )
    parser.add_argument(
        "--min-top1",
        type=SHARE,
        metavar="X",
        help="bound on the share of tokens with the same most likely next token: 95%% or 0.95",
    )
    add_task_options(parser)
    parser.add_argument(
        "--seed", type=SEED, default=0, metavar="N", help="seed of the bootstrap intervals (default: 0)"
    )
    add_text_options(parser)
    add_stream_option(parser)
    add_engine_option(parser)
    add_revision_option(parser)
    add_threads_option(parser)
    add_json_option(parser)


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of task accuracy."""
    group = parser.add_argument_group("tasks", "measured by lm-evaluation-harness (pip install lm-eval)")
    group.add_argument(
        "--tasks",
        metavar="FILE_OR_DIR,...",
        help="lm-eval task files, or folders of task files, with their data beside them",
    )
    group.add_argument(
        "--max-accuracy-drop",
        type=DROP,
        metavar="X",
        help="bound on the fall of accuracy on each task, in points of accuracy: 2%% or 0.02",
    )
    group.add_argument(
        "--limit", type=whole(1, 100), metavar="N", help="ask only the first N questions of each task"
    )
    group.add_argument(
        "--allow-code", action="store_true", help="allow task files to run Python code (`!function`)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the gate. Return 0 if every bound is met, 1 if not."""
    return run_gate(
        args.artifact,
        args.against,
        args,
        max_kl=args.max_kl,
        max_perplexity_increase=args.max_perplexity_increase,
        min_top1=args.min_top1,
        engine=args.engine,
        streamed=args.stream,
        tasks=task_request(args),
        max_accuracy_drop=args.max_accuracy_drop,
    )


def task_request(args: argparse.Namespace) -> TaskRequest | None:
    """Return the request that the options of `add_task_options` make, None without --tasks.

    Raises `UsageError` if another of these options is given without --tasks.
    """
    from zeropoint.errors import UsageError
    from zeropoint.evaluate import TaskRequest

    if args.tasks is None:
        if args.limit is not None or args.allow_code or args.max_accuracy_drop is not None:
            raise UsageError("--max-accuracy-drop, --limit and --allow-code need --tasks")
        return None
    names = [name for name in args.tasks.split(",") if name]
    for name in names:
        if not Path(name).exists():
            raise UsageError(f"--tasks: cannot read {name}: there is no such file or folder")
    return TaskRequest(names, args.limit, args.allow_code)


def run_gate(
    artifact: str,
    against: str,
    args: argparse.Namespace,
    *,
    max_kl: float | None = None,
    max_perplexity_increase: float | None = None,
    min_top1: float | None = None,
    engine: str = "auto",
    streamed: bool | None = None,
    tasks: TaskRequest | None = None,
    max_accuracy_drop: float | None = None,
) -> int:
    """Run the gate, print the verdict, write the verdict into the artifact's card, and return the exit code."""
    from zeropoint.artifact import open as open_artifact
    from zeropoint.evaluate import check

    check_writable(args.json)
    open_artifact(artifact)  # refuses anything else before the long measurement
    with progress_bar() as progress:
        verdict = check(
            artifact,
            against,
            revision=args.revision,
            max_kl=max_kl,
            max_perplexity_increase=max_perplexity_increase,
            min_top1=min_top1,
            text=args.text,
            tokens=args.tokens,
            threads=default_threads(args.threads),
            engine=engine,
            streamed=streamed,
            seed=args.seed or 0,
            tasks=tasks,
            max_accuracy_drop=max_accuracy_drop,
            progress=progress,
        )
    for sentence in verdict.sentences():
        print(sentence)
    verdict.write(artifact)
    write_json(args.json, verdict.to_json())
    return 0 if verdict.passed else 1
