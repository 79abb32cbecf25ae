"""Quantization of a checkpoint into an artifact folder, which is written completely or not at all."""

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
from zeropoint.calibrate.text import DEFAULT_LENGTH, DEFAULT_TOKENS, refuse_missing
from zeropoint.checkpoint import Checkpoint, open_checkpoint
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.errors import CheckpointError, UsageError, ZeropointError
from zeropoint.files.json_file import load_json
from zeropoint.files.model_files import model_files
from zeropoint.machine.detect import Machine
from zeropoint.models.families import engine_of
from zeropoint.planning import coverage, require_coverage, uniform_plan
from zeropoint.planning.uniform import layout_of, plan_nbytes
from zeropoint.predictions import refuse_large
from zeropoint.quantization.layers import LayerError
from zeropoint.quantization.need import need_of
from zeropoint.quantization.run_checkpoint import Run, RunCheckpoint, forget, is_unfinished, refuse_output
from zeropoint.quantization.streaming import WeightDone, needs_calibration, stream
from zeropoint.sources.texts import text_folder
from zeropoint.sources.vocabulary import tokens_beyond
from zeropoint.values.plan import Plan
from zeropoint.values.qtensor import Weight

logger = logging.getLogger(__name__)

#: Packages whose versions affect an artifact's contents.
PACKAGES = ("zeropoint", "torch", "transformers", "numpy", "safetensors", "ml_dtypes")

#: The card's note for an artifact with transposed weights.
TRANSPOSED = (
    "Weights that this model's code holds as [in, out] (Conv1D, some experts) are stored as [out, in], so "
    "transformers cannot load this artifact; Zeropoint does."
)


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of `quantize_checkpoint`.

    - `tensor_bytes`, `source_tensor_bytes`: bytes of the tensors of the artifact and of the source;
    - `folder_bytes`: bytes of all files of the artifact, tokenizer included;
    - `warnings`: notes on the checkpoint, and on each weight that was not quantized as the plan says;
    - `calibration`: the card's entry for the calibration text (`Calibration.to_json`), None without text;
    - `resumed`: number of blocks taken from an interrupted run.
    """

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
    progress: Callable[[WeightDone], None] | None = None,
) -> Summary:
    """Quantize a model into the artifact folder `out`; a `plan` replaces `format`, `algorithm`, `options` and `seed`.

    `calibration` is the calibration text (`read_calibration`); None means the built-in sample for algorithms that need
    text, and no text for others.

    An existing output, another model's plan, low coverage and a full disk are refused before the first weight is read.
    Raises the `ZeropointError`s of `open_checkpoint`, `uniform_plan`, `stream` and `artifact.write`, and then leaves no
    artifact behind.

    A `resumable` run with calibration text stores its finished blocks beside the output until it is done
    (`run_checkpoint.py`). `resume` continues an interrupted run with the same arguments, to the same bytes. If nothing
    was stored, the run starts from the beginning; if the output is already finished, its summary is returned.
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
    tokens, advice = 0, "use a machine with more memory"
    if calibration is not None:
        tokens, advice = calibration.tokens.size, "read fewer --calibration-tokens, or use --algorithm rtn"
    refuse_large(f"quantizing {checkpoint.name}", need_of(checkpoint, plan, tokens), advice)
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
    """The state of one run: its inputs, its errors and warnings so far, and its run checkpoint."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        calibration: Calibration | None,
        machine: Mapping[str, Any] | None,
        started: float,
        progress: Callable[[WeightDone], None] | None,
    ) -> None:
        self._checkpoint, self._plan, self._calibration = checkpoint, plan, calibration
        self._machine, self._started, self._progress = machine, started, progress
        self._digest: str | None = None
        self._run_checkpoint: RunCheckpoint | None = None
        self._resumed = 0
        self._errors: list[LayerError] = []
        self._warnings: list[str] = [*checkpoint.notes, *tokenizer_notes(checkpoint)]

    def keep(self, out: Path, stack: ExitStack, *, resume: bool) -> None:
        """Open a run checkpoint until `stack` closes; with `resume`, continue the one on disk."""
        check_space(out, self._plan.nbytes)  # the run checkpoint holds a second copy of the weights
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
        """Yield the run's weights."""
        tokens = None if self._calibration is None else self._calibration.tokens
        return stream(
            self._checkpoint,
            self._plan,
            tokens=tokens,
            progress=self._watch,
            run_checkpoint=self._run_checkpoint,
        )

    def found(self, out: Path) -> Summary:
        """Return the summary of an output that is already finished. Raises `UsageError` if another command wrote it."""
        artifact = open_artifact(out)
        own_card = self.card().to_json()
        differences = [
            key
            for key in ("source", "versions", "plan", "calibration")
            if artifact.card.get(key) != own_card[key]
        ]
        if differences:
            raise UsageError(
                f"{out} was written by another command (not the same {', '.join(differences)}): choose another "
                "output, or overwrite this one (--overwrite)"
            )
        forget(out)  # the finished run may have been killed before it removed its run checkpoint
        self._resumed = len(self._checkpoint.blocks())
        self._errors = [LayerError(**error) for error in artifact.card["layer_errors"]]
        self._warnings = [note for note in artifact.card["notes"] if note != TRANSPOSED]
        return self.summary(out, artifact.nbytes)

    def card(self) -> Card:
        """Return the artifact's card."""
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
        """Return the summary of the artifact `out` with `written` bytes of tensors."""
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

    def _watch(self, step: WeightDone) -> None:
        """Collect a step's error and warning, and report the step."""
        if step.error is not None:
            self._errors.append(step.error)
        if step.warning:
            self._warnings.append(step.warning)
        if self._progress is not None:
            self._progress(step)

    def _source(self) -> str:
        """Return the checkpoint's digest, computed once."""
        if self._digest is None:
            self._digest = self._checkpoint.source_digest()
        return self._digest

    def _calibration_json(self) -> dict[str, Any] | None:
        """Return the card's entry for the calibration text, or None without text."""
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
    training: Mapping[str, Any] | None = None,
) -> Card:
    """Return the card of an artifact of `plan` and `checkpoint`; `digest` is the checkpoint's `source_digest`.

    `training` is the card's entry for how the weights were trained, None if they were not.
    """
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
        training=training,
    )


def read_calibration(
    checkpoint: Checkpoint, path: str | Path | None = None, *, tokens: int = DEFAULT_TOKENS, seed: int = 0
) -> Calibration:
    """Return calibration windows of a text (None: the built-in sample), at most as long as the model's context.

    Raises `UsageError` if the text or the model's tokenizer cannot be read.
    """
    refuse_missing(path)
    try:
        tokenizer = load_tokenizer(str(text_folder(checkpoint.path)))
    except ZeropointError as cause:
        raise UsageError(
            f"calibration needs the tokenizer of {checkpoint.name}, which cannot be read ({cause}): "
            "use --algorithm rtn without --calibration"
        ) from cause
    context_length = (
        getattr(checkpoint.config.get_text_config(), "max_position_embeddings", None) or DEFAULT_LENGTH
    )
    return read_text(tokenizer, path, tokens=tokens, length=min(DEFAULT_LENGTH, context_length), seed=seed)


def tokenizer_notes(checkpoint: Checkpoint) -> list[str]:
    """Return a note if the tokenizer has tokens without an embedding in the model: such text cannot be read."""
    rows = getattr(checkpoint.config.get_text_config(), "vocab_size", None)
    if not checkpoint.path.is_dir() or not isinstance(rows, int):
        return []
    note = tokens_beyond(checkpoint.path, rows)
    return [] if note is None else [note]


def versions() -> dict[str, str]:
    """Return the versions of `PACKAGES`, for the card."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    """Return the installed version of a package, or "unknown"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def source_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the source's config.json (for GGUF, the config from its header) with `tie_word_embeddings` corrected."""
    if checkpoint.path.is_dir():
        config = load_json(checkpoint.path / "config.json", error=CheckpointError)
        if checkpoint.untied or "tie_word_embeddings" in config:
            config["tie_word_embeddings"] = bool(checkpoint.config.tie_word_embeddings)
        return config
    return {**checkpoint.source.config, "tie_word_embeddings": checkpoint.config.tie_word_embeddings}


def tokenizer_files(checkpoint: Checkpoint, stack: ExitStack) -> list[Path]:
    """Return the tokenizer's files. For a GGUF source, they are first written to a folder that `stack` removes."""
    if checkpoint.source.tokenizer_files is None:
        return model_files(checkpoint.path)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zeropoint-")))
    return checkpoint.source.tokenizer_files(folder)
