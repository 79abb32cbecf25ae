"""Quantize a checkpoint into an artifact folder: all of it, or nothing."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from zeropoint.artifact import Card, refuse_existing, write
from zeropoint.calibrate import Calibration
from zeropoint.calibrate import calibration as read_text
from zeropoint.calibrate.text import DEFAULT_LENGTH, DEFAULT_TOKENS
from zeropoint.checkpoint import Checkpoint, open_checkpoint
from zeropoint.errors import CheckpointError, UsageError
from zeropoint.jsonfile import load_json
from zeropoint.plan import Plan
from zeropoint.planning import coverage, require_coverage, uniform_plan
from zeropoint.planning.uniform import layout_of, plan_nbytes
from zeropoint.quantization.layers import LayerError
from zeropoint.quantization.streaming import Progress, needs_calibration, stream

logger = logging.getLogger(__name__)

#: Files beside the weights that belong to a model: generation defaults, tokenizer, chat template.
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
)

#: Packages whose versions decide what an artifact holds.
PACKAGES = ("zeropoint", "torch", "transformers", "numpy", "safetensors", "ml_dtypes")


@dataclass(frozen=True, slots=True)
class Summary:
    """What was written. `folder_bytes` counts every file of the artifact, tokenizer included; `warnings` names each
    weight that was not made as the plan says; `calibration` is the digest of the text that was observed."""

    path: Path
    plan: Plan
    tensor_bytes: int
    source_tensor_bytes: int
    folder_bytes: int
    seconds: float
    layer_errors: Sequence[LayerError]
    warnings: Sequence[str] = ()
    calibration: Mapping[str, Any] | None = None


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
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Quantize a model into the artifact folder `out`; a `plan` replaces `format`, `algorithm` and `options`.

    `calibration` (`read_calibration`) is what the model is observed on; None is the built-in sample for algorithms
    that need text, and no text for `rtn`.

    Everything that can be refused is refused before the first weight is read: an existing output, a plan of another
    model, low coverage, a disk without room. Raises the `ZeropointError`s of `open_checkpoint`, `uniform_plan`,
    `stream` and `artifact.write`; nothing is left behind then.
    """
    started = time.perf_counter()
    refuse_existing(out, overwrite=overwrite)
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
    errors: list[LayerError] = []
    warnings: list[str] = []

    def watch(step: Progress) -> None:
        if step.error is not None:
            errors.append(step.error)
        if step.warning:
            warnings.append(step.warning)
        if progress is not None:
            progress(step)

    with ExitStack() as stack:
        written = write(
            out,
            stream(
                checkpoint, plan, tokens=None if calibration is None else calibration.tokens, progress=watch
            ),
            plan=plan,
            layout=layout_of(checkpoint),
            config=_config(checkpoint),
            finish=lambda: _card(checkpoint, plan, errors, warnings, calibration, machine),
            files=_companions(checkpoint, stack),
            overwrite=overwrite,
        )
    path = Path(out).expanduser()
    folder_bytes = sum(file.stat().st_size for file in path.iterdir())
    seconds = time.perf_counter() - started
    logger.info("wrote %s: %d bytes of tensors in %.1f s", path, written, seconds)
    return Summary(
        path,
        plan,
        written,
        checkpoint.source_nbytes(),
        folder_bytes,
        seconds,
        tuple(errors),
        tuple(warnings),
        None if calibration is None else calibration.to_json(),
    )


def read_calibration(
    checkpoint: Checkpoint, path: str | Path | None = None, *, tokens: int = DEFAULT_TOKENS, seed: int = 0
) -> Calibration:
    """Calibration windows of a text (None: the built-in sample) for a model, no longer than it can read.

    Raises `UsageError` when the text or the model's tokenizer cannot be read.
    """
    from transformers import AutoTokenizer

    where: dict[str, Any] = {"pretrained_model_name_or_path": checkpoint.path}
    if not checkpoint.path.is_dir():
        where = {"pretrained_model_name_or_path": checkpoint.path.parent, "gguf_file": checkpoint.path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except Exception as cause:  # missing and damaged tokenizers fail in many ways
        raise UsageError(
            f"calibration needs the tokenizer of {checkpoint.name}, which cannot be read ({cause}): "
            "use --algorithm rtn without --calibration"
        ) from cause
    most = getattr(checkpoint.config.get_text_config(), "max_position_embeddings", None) or DEFAULT_LENGTH
    return read_text(tokenizer, path, tokens=tokens, length=min(DEFAULT_LENGTH, most), seed=seed)


def _card(
    checkpoint: Checkpoint,
    plan: Plan,
    errors: Sequence[LayerError],
    warnings: Sequence[str],
    calibration: Calibration | None,
    machine: Mapping[str, Any] | None,
) -> Card:
    layout = layout_of(checkpoint)
    notes = list(warnings)
    if any(name in plan.choices and plan.choices[name].scheme is not None for name in layout.transposed):
        notes.append(
            "Weights that this model's code holds as [in, out] (Conv1D, some experts) are stored as [out, in], so "
            "transformers cannot load this artifact; Zeropoint does."
        )
    return Card(
        plan=plan,
        layout=layout,
        source={
            "name": Path(checkpoint.name).name,  # a path would differ from machine to machine
            "sha256": checkpoint.source_digest(),
            "tensor_bytes": checkpoint.source_nbytes(),
        },
        versions={name: _version(name) for name in PACKAGES},
        machine=machine,
        layer_errors=[error.to_json() for error in errors],
        notes=notes,
        calibration=None if calibration is None else calibration.to_json(),
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The source's config.json as it stands; for a GGUF source, the one transformers made of its header."""
    if checkpoint.path.is_dir():
        config = load_json(checkpoint.path / "config.json", error=CheckpointError)
        if "tie_word_embeddings" in config:
            config["tie_word_embeddings"] = checkpoint.config.tie_word_embeddings
        return config
    made: dict[str, Any] = checkpoint.config.to_dict()
    return {**made, "dtype": "float32"}


def _companions(checkpoint: Checkpoint, stack: ExitStack) -> list[Path]:
    """The files to copy; a GGUF source's tokenizer is written out first, to a folder that `stack` removes."""
    if checkpoint.path.is_dir():
        return [file for name in COMPANIONS if (file := checkpoint.path / name).is_file()]
    from transformers import AutoTokenizer

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zeropoint-")))
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path.parent, gguf_file=checkpoint.path.name)
        tokenizer.save_pretrained(folder)
    except Exception as cause:  # a GGUF file without a usable tokenizer is still a model
        logger.warning(
            "the tokenizer of %s could not be read (%s): the artifact has none", checkpoint.name, cause
        )
        return []
    return [file for name in COMPANIONS if (file := folder / name).is_file()]
