"""`zeropoint train` from end to end: training text, PTQ, training, artifact, and what was recovered.

A run keeps its work in a hidden folder beside the output, `.OUT.training`: the training text, the artifact that it
starts from, the state of the loop and the trained artifact. The folder is removed when the output has its name.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zeropoint import artifact
from zeropoint.artifact.writer import check_space, install
from zeropoint.checkpoint import Checkpoint, open_checkpoint
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.errors import ArtifactError, UsageError, reason
from zeropoint.evaluate.quality.windows import DEFAULT_CONTEXT, EvaluationText, load_text
from zeropoint.files.atomic import replace_text
from zeropoint.files.json_file import load_json
from zeropoint.machine.cores import default_threads
from zeropoint.planning import uniform_plan
from zeropoint.predictions import Need, refuse_large
from zeropoint.progress import Progress, silent
from zeropoint.quantization import quantize_checkpoint, refuse_existing
from zeropoint.quantization.filled_model import FilledModel
from zeropoint.quantization.model_tuning import backward_numbers
from zeropoint.sources.texts import text_folder
from zeropoint.training.data import BUILT_IN, SELF, TrainingText, read_training_text, write_training_text
from zeropoint.training.fake_quantize import Trainable
from zeropoint.training.loop import Evaluation, Rates, Settings, Trained, Trainer
from zeropoint.training.recipe import convert_qat, prepare_qat, refuse_other_model
from zeropoint.training.report import Recovery, measure_recovery

#: Seconds of a run for which neither steps nor a time budget are given.
DEFAULT_BUDGET = 1200.0

#: A step has `DEFAULT_BATCH` windows, or fewer if a time budget would otherwise have room for less than `FEWEST_STEPS`.
DEFAULT_BATCH, FEWEST_STEPS = 8, 100

#: Tokens of a window, unless the model's context is shorter.
DEFAULT_LENGTH = 512

#: Share of a time budget in which the model may write its training text; and the most tokens of a training text.
WRITING_SHARE, MOST_TOKENS = 0.25, 1 << 21

#: The time of training as a multiple of the time of its windows: evaluations and the optimizer take the rest.
OVERHEAD = 1.15

#: Tokens a second that the model is assumed to write, for each thread. Its real pace is not measured.
WRITING_PACE = 100.0


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What to train and how: the options of `zeropoint train`. Raises `UsageError` for unsuitable ones.

    - `start`: the artifact to start from; without one, `algorithm` first quantizes the model to `format`;
    - `steps` of `batch` windows, or as many as fit `time_budget` seconds (default: 1200). Without a `batch`, a step has
      8 windows, or fewer if a time budget would have room for less than 100 steps;
    - `data`: "self", "built-in" (the calibration sample), or a text or chat `.jsonl` file;
    - `text`, `tokens`: the evaluation text (None: the built-in one) and how many of its tokens are scored.
    """

    model: str
    format: str = "int4"
    start: str | None = None
    algorithm: str = "good"
    data: str = SELF
    data_tokens: int | None = None
    trainable: Trainable = "full"
    rank: int = 16
    steps: int | None = None
    time_budget: float | None = None
    batch: int | None = None
    length: int = DEFAULT_LENGTH
    rates: Rates = field(default_factory=Rates)
    text: str | None = None
    tokens: int = 8192
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.time_budget is not None:
            raise UsageError("give a number of steps or a time budget, not both")
        for name in ("steps", "batch", "length", "rank", "tokens", "data_tokens"):
            value = getattr(self, name)
            if value is not None and value < (2 if name == "length" else 1):
                raise UsageError(f"{name} must be at least {2 if name == 'length' else 1}, not {value}")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The artifact at `path`, the run's evaluations, and what it recovered on the evaluation text."""

    path: Path
    trained: Trained
    recovery: Recovery
    seconds: float


def run_training(
    request: TrainRequest,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    watch: Callable[[Evaluation], None] = lambda evaluation: None,
    tell: Callable[[str], None] = lambda line: None,
) -> TrainResult:
    """Train a model for its format, write the artifact `out`, and measure what that recovered.

    `watch` gets each evaluation, `tell` lines of text. With `resume`, an interrupted run of the same request goes on,
    to the same bytes. Raises `UsageError` if `out` exists, the training text is unsuitable or memory is short.
    """
    started = time.monotonic()
    path = Path(out).expanduser()
    refuse_existing(path, overwrite=overwrite)
    evaluation = load_text(request.text)
    checkpoint = open_checkpoint(request.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        advice = "train scales or lora (--trainable), shorter windows (--length), or use a machine with more memory"
        refuse_large("training", Need(training_bytes(checkpoint, request)), advice)
    given = None if request.start is None else _given_start(request.start, checkpoint)
    folder = _open_folder(path, request, checkpoint, resume=resume, overwrite=overwrite)
    threads = default_threads(request.threads)
    torch.set_num_threads(threads)
    try:
        text = _training_text(request, checkpoint, evaluation, folder, threads, progress)
    except UsageError:
        shutil.rmtree(folder)  # nothing is done yet that a run with another text could continue
        raise
    start = given or _quantized(request, checkpoint, folder / "start", progress)
    tell(f"training text: {text.training_windows.size} tokens, {text.source}")
    student = prepare_qat(
        request.model, start=start, trainable=request.trainable, rank=request.rank, seed=request.seed
    )
    teacher = FilledModel(checkpoint)
    teacher.fill(teacher.names(""))
    trainer = Trainer(
        student.to(device),
        teacher.module.to(device),
        text.training_windows,
        text.held_out_windows,
        request.rates,
    )
    settings = _settings(request, trainer, folder, time.monotonic() - started)
    tell(
        f"{settings.steps} steps of {settings.batch} windows of {text.windows.shape[1]} tokens, on the "
        f"{'GPU' if device == 'cuda' else 'CPU'}"
    )
    trained = trainer.train(settings, folder / "state.pt", watch)
    made = convert_qat(student.cpu(), folder / "trained", overwrite=True)
    del trainer, student, teacher
    recovery = measure_recovery(
        request.model,
        start,
        made,
        evaluation,
        tokens=request.tokens,
        context=min(DEFAULT_CONTEXT, _context(checkpoint)),
        threads=threads,
        progress=progress,
    )
    artifact.update_card(made, training=_card(request, settings, text, trained, recovery))
    _install(made, path, folder, overwrite=overwrite)
    return TrainResult(path, trained, recovery, time.monotonic() - started)


def folder_of(out: Path) -> Path:
    """Return the hidden folder of an output's training run."""
    return out.absolute().parent / f".{out.name}.training"


def _open_folder(
    out: Path, request: TrainRequest, checkpoint: Checkpoint, *, resume: bool, overwrite: bool
) -> Path:
    """Return the run's folder, new or the interrupted run's. Raises `UsageError` if it is another run's."""
    folder = folder_of(out)
    journal = folder / "run.json"
    asked = {**asdict(request), "model": checkpoint.source_digest(), "threads": None}
    if journal.exists() and resume:
        if load_json(journal) != json.loads(json.dumps(asked)):
            raise UsageError(
                f"{folder} keeps an interrupted run of another command: give the same options, or start again "
                "(--overwrite)"
            )
        return folder
    if journal.exists() and not overwrite:
        raise UsageError(
            f"{folder} keeps an interrupted run of {out}: continue it (--resume), or start again (--overwrite)"
        )
    shutil.rmtree(folder, ignore_errors=True)
    # the loop's state is on the disk twice while a new one is written
    check_space(out, 16 * checkpoint.source_nbytes())
    folder.mkdir()
    replace_text(journal, json.dumps(asked, indent=1))
    return folder


def _given_start(start: str, checkpoint: Checkpoint) -> Path:
    """Return the path of the artifact to start from. Raises `UsageError` if it is another model's."""
    opened = artifact.open(start)
    refuse_other_model(checkpoint, opened)
    return opened.path


def _quantized(request: TrainRequest, checkpoint: Checkpoint, path: Path, progress: Progress) -> Path:
    """Quantize the model into the artifact `path`, if it is not there already, and return `path`."""
    if not path.exists():
        plan = uniform_plan(checkpoint, request.format, algorithm=request.algorithm, seed=request.seed)
        quantize_checkpoint(
            checkpoint,
            path,
            plan=plan,
            resume=True,
            progress=lambda done: progress("quantizing", done.done, done.total),
        )
    return path


def _training_text(
    request: TrainRequest,
    checkpoint: Checkpoint,
    evaluation: EvaluationText,
    folder: Path,
    threads: int,
    progress: Progress,
) -> TrainingText:
    """Return the training text, from the run's folder if it is there already."""
    windows, about = folder / "windows.npy", folder / "windows.json"
    if about.exists():
        return TrainingText(np.load(windows), **load_json(about))
    length = min(request.length, _context(checkpoint))
    tokens = request.data_tokens or _tokens_needed(request, threads)
    if request.data == SELF:
        text = write_training_text(
            request.model, tokens=tokens, length=length, seed=request.seed, threads=threads, progress=progress
        )
    else:
        tokenizer = load_tokenizer(str(text_folder(checkpoint.path)))
        file = None if request.data == BUILT_IN else request.data
        text = read_training_text(
            tokenizer, file, tokens=tokens, length=length, seed=request.seed, evaluation=evaluation
        )
    np.save(windows, text.windows)
    replace_text(about, json.dumps({"held_out": text.held_out, "source": text.source, "sha256": text.sha256}))
    return text


def _context(checkpoint: Checkpoint) -> int:
    """Return how many tokens the model reads at most; if its config does not say, a number beyond all windows."""
    return getattr(checkpoint.config.get_text_config(), "max_position_embeddings", None) or 1 << 20


def _tokens_needed(request: TrainRequest, threads: int) -> int:
    """Return the most tokens to read from a file, or how many to write: about as many as the run trains on."""
    if request.data != SELF:
        return MOST_TOKENS
    if request.steps is not None:
        needed = 1.1 * request.steps * (request.batch or DEFAULT_BATCH) * request.length
    else:
        needed = WRITING_SHARE * (request.time_budget or DEFAULT_BUDGET) * WRITING_PACE * threads
    return int(min(max(needed, 8 * request.length), MOST_TOKENS))


def _settings(request: TrainRequest, trainer: Trainer, folder: Path, spent: float) -> Settings:
    """Return the run's settings. A time budget and the measured pace give the steps, which a resumed run keeps."""
    path = folder / "steps.json"
    if path.exists():
        known = load_json(path)
        steps, batch = int(known["steps"]), int(known["batch"])
    elif request.steps is not None:
        steps, batch = request.steps, request.batch or DEFAULT_BATCH
    else:
        left = (request.time_budget or DEFAULT_BUDGET) - spent
        windows = int(left / (trainer.seconds_per_window() * OVERHEAD))
        batch = request.batch or min(max(windows // FEWEST_STEPS, 1), DEFAULT_BATCH)
        steps = windows // batch
        if steps < 1:
            raise UsageError(
                f"{max(left, 0):.0f} s of the time budget are left, too little for one step of {batch} windows: give "
                "more time (--time-budget), or smaller steps (--batch, --length)"
            )
    replace_text(path, json.dumps({"steps": steps, "batch": batch}))
    return Settings(steps, batch, request.rates, request.seed)


def training_bytes(checkpoint: Checkpoint, request: TrainRequest) -> int:
    """Return the estimated peak memory of training, in bytes.

    Each weight takes one byte for its first code, and float32 numbers: seven if it is trained ("full": the teacher's
    value, the dequantized one, the latent one, its gradient, two moments of Adam, the best value so far), four with
    "lora", three with "scales". The activations of one window, and four tensors of its logits, are float32 too.
    """
    each = {"full": 4 * 7 + 1, "lora": 4 * 4 + 1, "scales": 4 * 3 + 1}[request.trainable]
    return checkpoint.numel() * each + 4 * backward_numbers(checkpoint, request.length, logits=4)


def _card(
    request: TrainRequest, settings: Settings, text: TrainingText, trained: Trained, recovery: Recovery
) -> dict[str, Any]:
    """Return the card's section: what was trained, on what, and what it recovered."""
    best = trained.best
    return {
        "trained": request.trainable,
        "rank": request.rank if request.trainable == "lora" else None,
        "teacher": "the float model: KL divergence of the whole vocabulary",
        "steps": settings.steps,
        "best_step": best.step,
        "stopped_early": trained.stopped_early,
        "batch": settings.batch,
        "rates": asdict(settings.rates),
        "seed": settings.seed,
        "text": text.to_json(),
        "held_out_kl": [[each.step, each.held_out] for each in trained.evaluations],
        "codes_changed": best.changed,
        "recovery": recovery.to_json(),
    }


def _install(made: Path, out: Path, folder: Path, *, overwrite: bool) -> None:
    """Give the finished artifact its name, and remove the run's folder."""
    try:
        install(made, out.absolute(), overwrite=overwrite)
    except OSError as cause:
        raise ArtifactError(
            f"{out} cannot be written ({reason(cause)}): the artifact is in {made}"
        ) from cause
    shutil.rmtree(folder, ignore_errors=True)
