"""Quantize a checkpoint into an artifact folder: all of it, or nothing."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from zeropoint.artifact import Card, write
from zeropoint.artifact import open as open_artifact
from zeropoint.artifact.writer import check_space
from zeropoint.calibrate import Calibration
from zeropoint.calibrate import calibration as read_text
from zeropoint.calibrate.text import DEFAULT_LENGTH, DEFAULT_TOKENS
from zeropoint.checkpoint import Checkpoint, open_checkpoint
from zeropoint.errors import CheckpointError, UsageError
from zeropoint.files.json_file import load_json
from zeropoint.files.model_files import model_files
from zeropoint.machine.detect import Machine
from zeropoint.models.families import engine_of
from zeropoint.planning import coverage, require_coverage, uniform_plan
from zeropoint.planning.uniform import layout_of, plan_nbytes
from zeropoint.quantization.layers import LayerError
from zeropoint.quantization.run_checkpoint import Run, RunCheckpoint, forget, is_unfinished, refuse_output
from zeropoint.quantization.streaming import Progress, needs_calibration, stream
from zeropoint.sources.vocabulary import tokens_beyond
from zeropoint.values.plan import Plan
from zeropoint.values.qtensor import Weight

logger = logging.getLogger(__name__)

#: Packages whose versions decide what an artifact holds.
PACKAGES = ("zeropoint", "torch", "transformers", "numpy", "safetensors", "ml_dtypes")

TRANSPOSED = (
    "Weights that this model's code holds as [in, out] (Conv1D, some experts) are stored as [out, in], so "
    "transformers cannot load this artifact; Zeropoint does."
)


@dataclass(frozen=True, slots=True)
class Summary:
    """What was written. `folder_bytes` counts every file of the artifact, tokenizer included; `warnings` names each
    weight that was not made as the plan says; `calibration` is the digest of the text that was observed; `resumed`
    counts the blocks that an interrupted run had finished."""

    path: Path
    plan: Plan
    tensor_bytes: int
    source_tensor_bytes: int
    folder_bytes: int
    seconds: float
    layer_errors: Sequence[LayerError]
    warnings: Sequence[str] = ()
    calibration: Mapping[str, Any] | None = None
    resumed: int = 0


def quantize_checkpoint(
    source: Checkpoint | str | Path,
    out: str | Path,
    *,
    format: str = "int8",
    plan: Plan | None = None,
    algorithm: str = "rtn",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    min_coverage: float = 0.0,
    overwrite: bool = False,
    machine: Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
    resume: bool = False,
    resumable: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Quantize a model into the artifact folder `out`; a `plan` replaces `format`, `algorithm` and `options`.

    `calibration` (`read_calibration`) is what the model is observed on; None is the built-in sample for algorithms
    that need text, and no text for `rtn`.

    Everything that can be refused is refused before the first weight is read: an existing output, a plan of another
    model, low coverage, a disk without room. Raises the `ZeropointError`s of `open_checkpoint`, `uniform_plan`,
    `stream` and `artifact.write`; no artifact is left behind then.

    A run that observes text and is `resumable` keeps its finished blocks beside the output until it is done
    (`run_checkpoint.py`). `resume` goes on with what an interrupted run of the same arguments kept, to the same bytes;
    it starts from the beginning where nothing was kept, and finds an output that such a run has finished.
    """
    started = time.perf_counter()
    refuse_output(out, resume=resume, overwrite=overwrite)
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    if plan is None:
        plan = uniform_plan(checkpoint, format, algorithm=algorithm, options=options, seed=seed)
    rows = coverage(checkpoint, plan)
    require_coverage(rows, min_coverage)
    promised = plan_nbytes(checkpoint, plan.choices)
    if promised != plan.nbytes:
        raise UsageError(
            f"the plan says {plan.nbytes} bytes but makes {promised}: make it again for this model"
        )
    if calibration is None and needs_calibration(plan):
        calibration = read_calibration(checkpoint, seed=plan.seed)
    path = Path(out).expanduser()
    run = _Running(checkpoint, plan, calibration, machine, started, progress)
    if resume and not overwrite and os.path.lexists(path):
        return run.found(path)
    with ExitStack() as stack:
        if resumable and (calibration is not None or is_unfinished(path)):
            run.keep(path, stack, resume=resume)
        written = write(
            path,
            run.stream(),
            plan=plan,
            layout=layout_of(checkpoint),
            config=source_config(checkpoint),
            finish=run.card,
            files=tokenizer_files(checkpoint, stack),
            overwrite=overwrite,
        )
    summary = run.summary(path, written)
    logger.info("wrote %s: %d bytes of tensors in %.1f s", path, written, summary.seconds)
    return summary


class _Running:
    """One run: what it is of, and what was said while it ran."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        calibration: Calibration | None,
        machine: Mapping[str, Any] | None,
        started: float,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._checkpoint, self._plan, self._calibration = checkpoint, plan, calibration
        self._machine, self._started, self._progress = machine, started, progress
        self._digest: str | None = None
        self._run_checkpoint: RunCheckpoint | None = None
        self._resumed = 0
        self._errors: list[LayerError] = []
        self._warnings: list[str] = [*checkpoint.notes, *tokenizer_notes(checkpoint)]

    def keep(self, out: Path, stack: ExitStack, *, resume: bool) -> None:
        """Keep a run checkpoint until `stack` ends, and with `resume` go on with the one that is there."""
        check_space(out, self._plan.nbytes)  # the run checkpoint's weights, beside the artifact's
        processor = Machine.detect()
        run_checkpoint = RunCheckpoint(
            out,
            Run.of(
                self._plan,
                self._source(),
                self._calibration_json(),
                versions(),
                [processor.processor, processor.isa_levels, torch.get_num_threads()],
            ),
        )
        self._run_checkpoint = stack.enter_context(run_checkpoint.opened(resume=resume))
        self._resumed = run_checkpoint.blocks
        if run_checkpoint.warning:
            logger.warning("%s", run_checkpoint.warning)
            self._warnings.append(run_checkpoint.warning)

    def stream(self) -> Iterator[tuple[str, Weight]]:
        tokens = None if self._calibration is None else self._calibration.tokens
        return stream(
            self._checkpoint,
            self._plan,
            tokens=tokens,
            progress=self._watch,
            run_checkpoint=self._run_checkpoint,
        )

    def found(self, out: Path) -> Summary:
        """The summary of an output that was finished before. Raises `UsageError` when that is another run's."""
        made = open_artifact(out)
        own = self.card().to_json()
        others = [
            key for key in ("source", "versions", "plan", "calibration") if made.card.get(key) != own[key]
        ]
        if others:
            raise UsageError(
                f"{out} is finished, by another command (not the same {', '.join(others)}): choose another name, or "
                "overwrite it (--overwrite)"
            )
        forget(out)  # the run was killed before it did
        self._resumed = len(self._checkpoint.blocks())
        self._errors = [LayerError(**error) for error in made.card["layer_errors"]]
        self._warnings = [note for note in made.card["notes"] if note != TRANSPOSED]
        return self.summary(out, made.nbytes)

    def card(self) -> Card:
        return card_of(
            self._checkpoint,
            self._plan,
            errors=self._errors,
            warnings=self._warnings,
            digest=self._source(),
            machine=self._machine,
            calibration=self._calibration_json(),
        )

    def summary(self, out: Path, written: int) -> Summary:
        """`written`: bytes of tensors."""
        return Summary(
            out,
            self._plan,
            written,
            self._checkpoint.source_nbytes(),
            sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
            time.perf_counter() - self._started,
            tuple(self._errors),
            tuple(self._warnings),
            self._calibration_json(),
            self._resumed,
        )

    def _watch(self, step: Progress) -> None:
        if step.error is not None:
            self._errors.append(step.error)
        if step.warning:
            self._warnings.append(step.warning)
        if self._progress is not None:
            self._progress(step)

    def _source(self) -> str:
        if self._digest is None:
            self._digest = self._checkpoint.source_digest()
        return self._digest

    def _calibration_json(self) -> dict[str, Any] | None:
        return None if self._calibration is None else self._calibration.to_json()


def card_of(
    checkpoint: Checkpoint,
    plan: Plan,
    *,
    errors: Sequence[LayerError],
    warnings: Sequence[str],
    digest: str,
    machine: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
) -> Card:
    """Return the card of what a plan made of a checkpoint; `digest` is the checkpoint's `source_digest`."""
    layout = layout_of(checkpoint)
    notes = list(warnings)
    if any(name in plan.choices and plan.choices[name].scheme is not None for name in layout.transposed):
        notes.append(TRANSPOSED)
    return Card(
        plan=plan,
        layout=layout,
        source={
            "name": Path(checkpoint.name).name,  # a path would differ from machine to machine
            "sha256": digest,
            "tensor_bytes": checkpoint.source_nbytes(),
        },
        versions=versions(),
        machine=machine,
        layer_errors=[error.to_json() for error in errors],
        notes=notes,
        calibration=calibration,
        engine=engine_of(source_config(checkpoint)),
    )


def read_calibration(
    checkpoint: Checkpoint, path: str | Path | None = None, *, tokens: int = DEFAULT_TOKENS, seed: int = 0
) -> Calibration:
    """Calibration windows of a text (None: the built-in sample) for a model, no longer than it can read.

    Raises `UsageError` when the text or the model's tokenizer cannot be read.
    """
    from transformers import AutoTokenizer

    folder = checkpoint.path
    try:
        with ExitStack() as stack:
            if checkpoint.source.tokenizer_files is not None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zeropoint-")))
                checkpoint.source.tokenizer_files(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as cause:  # missing and damaged tokenizers fail in many ways
        raise UsageError(
            f"calibration needs the tokenizer of {checkpoint.name}, which cannot be read ({cause}): "
            "use --algorithm rtn without --calibration"
        ) from cause
    most = getattr(checkpoint.config.get_text_config(), "max_position_embeddings", None) or DEFAULT_LENGTH
    return read_text(tokenizer, path, tokens=tokens, length=min(DEFAULT_LENGTH, most), seed=seed)


def tokenizer_notes(checkpoint: Checkpoint) -> list[str]:
    """Return what a user should hear of tokens for which the model has no embedding: a text with one cannot be read."""
    rows = getattr(checkpoint.config.get_text_config(), "vocab_size", None)
    if not checkpoint.path.is_dir() or not isinstance(rows, int):
        return []
    note = tokens_beyond(checkpoint.path, rows)
    return [] if note is None else [note]


def versions() -> dict[str, str]:
    """The packages that decide what an artifact holds, for its card."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def source_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The source's config.json as it stands; for a GGUF source, the one made of its header."""
    if checkpoint.path.is_dir():
        config = load_json(checkpoint.path / "config.json", error=CheckpointError)
        if checkpoint.untied or "tie_word_embeddings" in config:
            config["tie_word_embeddings"] = bool(checkpoint.config.tie_word_embeddings)
        return config
    return {**checkpoint.source.config, "tie_word_embeddings": checkpoint.config.tie_word_embeddings}


def tokenizer_files(checkpoint: Checkpoint, stack: ExitStack) -> list[Path]:
    """Return the tokenizer's files; a GGUF source's are written out first, to a folder that `stack` removes."""
    if checkpoint.source.tokenizer_files is None:
        return model_files(checkpoint.path)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zeropoint-")))
    return checkpoint.source.tokenizer_files(folder)
