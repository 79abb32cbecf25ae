"""The Python entry points: what `from zeropoint import ...` gives.

Each is a short composition of the layers below; the command line calls the same pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeropoint.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from zeropoint.checkpoint import Checkpoint
    from zeropoint.exporters import Export
    from zeropoint.fitting import Fit
    from zeropoint.importers import Imported
    from zeropoint.quantization import LayerError, Progress, Summary
    from zeropoint.runtime.load_options import LoadOptions
    from zeropoint.runtime.model import Model
    from zeropoint.values.plan import Plan
    from zeropoint.values.report import Report


class AutoModelForCausalLM:
    """Loads any Hugging Face causal LM quantized; the result is a `transformers` model on integer kernels.

    >>> AutoModelForCausalLM.from_pretrained("gpt2", load_in_8bit=True)  # doctest: +SKIP
    """

    def __init__(self) -> None:
        raise UsageError("use AutoModelForCausalLM.from_pretrained(...)")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        format: str | None = None,
        keep: Sequence[str] = (),
        revision: str | None = None,
        trust_remote_code: bool = False,
        device_map: Any = None,
        progress: Callable[[Progress], None] | None = None,
        **options: Any,
    ) -> PreTrainedModel:
        """Return a model in eval mode with a working `generate`, its weights quantized while they load.

        - an artifact folder loads as it is;
        - a checkpoint (local folder, hub name, GGUF) is quantized one weight at a time by
          round-to-nearest to `int8` (`load_in_8bit`), `int4` (`load_in_4bit`) or any `format`
          string, without calibration data or a gradient step, and without the full float model
          ever being in memory; `keep` holds name patterns (`*.lm_head.*`) to leave unquantized;
        - with none of the three, the checkpoint loads unquantized, as transformers would.

        `options` are those of transformers: `dtype` (of an unquantized model), `attn_implementation`,
        `quantization_config` with a `BitsAndBytesConfig` of a number of bits alone, and those that ask for
        what is done anyway.

        Raises `UsageError` for contradictory arguments and, by name, for those that are not done;
        `CheckpointError` or `ArtifactError` when the source is missing or unsound.
        """
        from zeropoint.runtime.load_options import LoadOptions

        wanted = LoadOptions.of(
            load_in_8bit=load_in_8bit,
            load_in_4bit=load_in_4bit,
            format=format,
            device_map=device_map,
            given=options,
        )
        name = str(pretrained_model_name_or_path)
        model = _load_model(
            name,
            wanted,
            keep,
            revision=revision,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
        model.name_or_path = model.config._name_or_path = name
        if wanted.attention is not None:
            model.set_attn_implementation(wanted.attention)
        if wanted.mapped:
            model.hf_device_map = {"": "cpu"}
        return model


def _load_model(
    name: str,
    wanted: LoadOptions,
    keep: Sequence[str],
    *,
    revision: str | None,
    trust_remote_code: bool,
    progress: Callable[[Progress], None] | None,
) -> PreTrainedModel:
    from zeropoint import artifact
    from zeropoint.checkpoint import open_checkpoint
    from zeropoint.runtime.torch_engine import runner
    from zeropoint.sources.location import locate
    from zeropoint.sources.notes import tell

    path = locate(name, revision=revision)
    if artifact.is_artifact(path):
        if wanted.format is not None:
            raise UsageError(
                f"{name} is quantized already: load it without load_in_8bit, load_in_4bit or format"
            )
        wanted.refuse_dtype()
        return runner.load_artifact(path, trust_remote_code=trust_remote_code)
    if wanted.format is None:
        if keep:
            raise UsageError("keep is for a model that is quantized: give a format too")
        return runner.load_checkpoint(
            name, wanted.dtype, revision=revision, trust_remote_code=trust_remote_code
        )
    wanted.refuse_dtype()
    checkpoint = open_checkpoint(name, revision=revision, allow_remote_code=trust_remote_code)
    tell(checkpoint.notes)
    return _load_quantized(
        checkpoint, wanted.format, keep, trust_remote_code=trust_remote_code, progress=progress
    )


def _load_quantized(
    checkpoint: Checkpoint,
    format: str,
    keep: Sequence[str],
    *,
    trust_remote_code: bool,
    progress: Callable[[Progress], None] | None,
) -> PreTrainedModel:
    """Quantize a checkpoint into memory: the model that the artifact of the same plan would load as."""
    from contextlib import ExitStack

    from zeropoint.planning import uniform_plan
    from zeropoint.quantization import card_of, source_config, stream, tokenizer_files
    from zeropoint.runtime.torch_engine import runner, saving
    from zeropoint.runtime.torch_engine.assemble import assemble
    from zeropoint.runtime.torch_engine.pretrained import adopt

    errors: list[LayerError] = []
    warnings: list[str] = []

    def watch(step: Progress) -> None:
        if step.error is not None:
            errors.append(step.error)
        if step.warning:
            warnings.append(step.warning)
        if progress is not None:
            progress(step)

    plan = uniform_plan(checkpoint, format, keep=keep)
    dtypes: dict[str, Any] = {}
    weights = saving.noting_dtypes(stream(checkpoint, plan, progress=watch), dtypes)
    model = assemble(checkpoint.config, weights, trust_remote_code=trust_remote_code)
    if checkpoint.path.is_dir():
        runner.attach_generation_config(model, checkpoint.path)
        files: saving.Files = saving.TokenizerFiles(checkpoint.path)
    else:
        with ExitStack() as stack:
            written = tokenizer_files(checkpoint, stack)
            files = saving.Contents.of(written)
            if written:
                runner.attach_generation_config(model, written[0].parent)
    card = card_of(checkpoint, plan, errors=errors, warnings=warnings, digest=checkpoint.source_digest())
    return adopt(model, saving.Origin.of(model, card, source_config(checkpoint), dtypes, files))


def _wanted_format(load_in_8bit: bool, load_in_4bit: bool, format: str | None) -> str | None:
    named = [name for name, on in (("int8", load_in_8bit), ("int4", load_in_4bit)) if on]
    if format is not None:
        named.append(format)
    if len(named) > 1:
        raise UsageError("give one of load_in_8bit, load_in_4bit and format, not several")
    return named[0] if named else None


def quantize(
    model: str | Path,
    out: str | Path,
    *,
    format: str = "int8",
    plan: Plan | None = None,
    algorithm: str = "rtn",
    options: Mapping[str, Any] | None = None,
    keep: Sequence[str] = (),
    seed: int = 0,
    min_coverage: float = 0.0,
    overwrite: bool = False,
    calibration: str | Path | None = None,
    calibration_tokens: int | None = None,
    time_budget: float | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Quantize a checkpoint into the artifact folder `out`; see `zeropoint.quantization.quantize_checkpoint`.

    `calibration` is a text or chat `.jsonl` file for the algorithms that observe the model; without it they take the
    built-in sample. `calibration_tokens` is how much of it is read. With `algorithm="auto"`, `time_budget` seconds
    (300) decide what is done; the log says what was picked and why. `resume` goes on with an interrupted run of the
    same arguments.
    """
    from zeropoint.calibrate.text import DEFAULT_TOKENS
    from zeropoint.checkpoint import open_checkpoint
    from zeropoint.machine.detect import Machine
    from zeropoint.planning import uniform_plan
    from zeropoint.quantization import auto, quantize_checkpoint, read_calibration

    checkpoint = open_checkpoint(str(model))
    if time_budget is not None and (algorithm != auto.NAME or plan is not None):
        raise UsageError('a time budget is for algorithm="auto"')
    if plan is None and algorithm == auto.NAME:
        if options:
            raise UsageError("auto has options of its own: name the algorithm to give others")
        auto.refuse_resume(resume)
        picked = auto.pick(checkpoint, format, time_budget or auto.DEFAULT_BUDGET, tokens=calibration_tokens)
        algorithm, options, calibration_tokens = picked.algorithm, picked.options, picked.tokens
    if plan is None:
        plan = uniform_plan(checkpoint, format, keep=keep, algorithm=algorithm, options=options, seed=seed)
    if calibration_tokens is None and calibration is not None:
        calibration_tokens = DEFAULT_TOKENS
    observed = None
    if calibration_tokens:
        observed = read_calibration(checkpoint, calibration, tokens=calibration_tokens, seed=plan.seed)
    return quantize_checkpoint(
        checkpoint,
        out,
        plan=plan,
        min_coverage=min_coverage,
        overwrite=overwrite,
        machine=Machine.detect().lasting(),
        calibration=observed,
        resume=resume,
        progress=progress,
    )


def fit(
    model: str | Path,
    out: str | Path | None,
    *,
    max_memory: str | int | None = None,
    max_kl: float | None = None,
    max_perplexity_increase: float | None = None,
    min_decode: float | None = None,
    min_prefill: float | None = None,
    max_accuracy_drop: float | None = None,
    threads: int | None = None,
    progress: Callable[[str, float], None] | None = None,
    **settings: Any,
) -> Fit:
    """Decide by measuring: the per-layer formats that meet a budget on this machine, the artifact, its gate.

    `max_memory` is bytes or text ("80MB"); `out=None` stops at the plan; `settings` are the fields of
    `zeropoint.fitting.Settings`. The result's `refusal` says why there is no plan, `met` whether all bounds hold.
    """
    from zeropoint.fitting import Settings
    from zeropoint.fitting import fit as run
    from zeropoint.machine.detect import Machine
    from zeropoint.values.budget import Budget, parse_bytes

    memory = parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory
    budget = Budget(memory, max_kl, max_perplexity_increase, min_decode, min_prefill, max_accuracy_drop)
    try:
        wanted = Settings(threads=threads or Machine.detect().cores, **settings)
    except TypeError as cause:
        raise UsageError(f"fit has no such setting: {cause}") from None
    return run(model, out, budget, wanted, progress or (lambda what, share: None))


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    engine: str = "auto",
    cache_type: str = "float16",
    draft_tokens: int = 0,
) -> Model:
    """An artifact or checkpoint folder, ready to run: `generate`, `stream`, `chat`, `logits`.

    `engine="auto"` takes the native engine where it covers the model; see `zeropoint.runtime.open_runner`.
    """
    from zeropoint.machine.detect import Machine
    from zeropoint.runtime import open_runner
    from zeropoint.runtime.model import Model

    threads = threads or Machine.detect().cores
    runner = open_runner(
        path, threads=threads, engine=engine, cache_type=cache_type, draft_tokens=draft_tokens
    )
    return Model(runner)


def compare(
    model: str | Path,
    artifacts: Sequence[str | Path],
    *,
    text: str | None = None,
    tokens: int = 8192,
    threads: int | None = None,
) -> Report:
    """Measure a checkpoint and artifacts made from it side by side; see `zeropoint.evaluate.compare`."""
    from zeropoint.evaluate import compare as run
    from zeropoint.machine.detect import Machine

    return run(
        str(model),
        [str(a) for a in artifacts],
        text=text,
        tokens=tokens,
        threads=threads or Machine.detect().cores,
    )


def export(
    path: str | Path,
    target: str,
    out: str | Path,
    *,
    type: str | None = None,
    calibration: str | Path | None = None,
    calibration_tokens: int | None = None,
    verify: bool = True,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Export:
    """Write an artifact for another runtime (`gguf`, `onnx`, `vllm`, `transformers`), read back and compared bit for
    bit; see `zeropoint.exporters`.

    With a `type` of the target's own (`Q4_K_M`), `path` is the original model instead, observed on so many
    `calibration_tokens` of the text `calibration` (None: the usual number, the built-in text).
    """
    from zeropoint import artifact, exporters
    from zeropoint.files import identity

    if type is None:
        if calibration is not None or calibration_tokens is not None:
            raise UsageError(
                "an artifact's numbers are written as they are: a calibration text is for --type"
            )
        opened = artifact.open(path)
        identity.verify(opened.path)
        return exporters.export(opened, target, out, verify=verify, overwrite=overwrite, progress=progress)
    exporters.check_type(target, type)  # before the model is opened
    exporters.refuse_existing(Path(out), overwrite=overwrite)
    from zeropoint.originals import open_original

    original = open_original(path, calibration=calibration, tokens=calibration_tokens)
    return exporters.export_original(
        original, target, type, out, verify=verify, overwrite=overwrite, progress=progress
    )


def import_model(path: str | Path, out: str | Path, *, overwrite: bool = False) -> Imported:
    """Make an artifact of a model that another tool quantized (GGUF, GPTQ, AWQ, compressed-tensors), its numbers kept;
    see `zeropoint.importers`."""
    from zeropoint.importers import import_model as run

    return run(path, out, overwrite=overwrite)
