"""`AutoModelForCausalLM`: a model of transformers with quantized weights, in the call that transformers' users know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeropoint.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from zeropoint.checkpoint import Checkpoint
    from zeropoint.quantization import LayerError, WeightDone
    from zeropoint.runtime.load_options import LoadOptions


class AutoModelForCausalLM:
    """Loads and quantizes any Hugging Face causal LM. The result is a `transformers` model that uses integer kernels.

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
        progress: Callable[[WeightDone], None] | None = None,
        **options: Any,
    ) -> PreTrainedModel:
        """Return a model in eval mode with a working `generate`.

        - An artifact folder loads as it is.
        - A checkpoint (local folder, hub name, GGUF) is quantized to `int8` (`load_in_8bit`), `int4` (`load_in_4bit`)
          or any `format` string. Weights are rounded to nearest one at a time while they load, so the full float model
          is never in memory and no calibration data is needed. `keep` lists name patterns (`*.down_proj.*`) of weights
          that stay unquantized.
        - Without these three arguments the checkpoint loads unquantized, like in transformers.

        `options` are arguments of transformers: `dtype` (for unquantized models), `attn_implementation`,
        `quantization_config` (a `BitsAndBytesConfig` that only sets 8 or 4 bits), and arguments whose value is the
        behaviour here anyway.

        Raises `UsageError` for contradictory or unsupported arguments, `CheckpointError` or `ArtifactError` if the
        source is missing or damaged.
        """
        from zeropoint.runtime.load_options import LoadOptions

        load_options = LoadOptions.of(
            load_in_8bit=load_in_8bit,
            load_in_4bit=load_in_4bit,
            format=format,
            device_map=device_map,
            given=options,
        )
        name = str(pretrained_model_name_or_path)
        model = _load_model(
            name,
            load_options,
            keep,
            revision=revision,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
        model.name_or_path = model.config._name_or_path = name
        if load_options.attention is not None:
            model.set_attn_implementation(load_options.attention)
        if load_options.mapped:
            model.hf_device_map = {"": "cpu"}
        return model


def _load_model(
    name: str,
    options: LoadOptions,
    keep: Sequence[str],
    *,
    revision: str | None,
    trust_remote_code: bool,
    progress: Callable[[WeightDone], None] | None,
) -> PreTrainedModel:
    from zeropoint import artifact
    from zeropoint.checkpoint import open_checkpoint
    from zeropoint.runtime.torch_engine import runner
    from zeropoint.sources.location import locate
    from zeropoint.sources.notes import tell

    path = locate(name, revision=revision)
    if artifact.is_artifact(path):
        if options.format is not None:
            raise UsageError(
                f"{name} is quantized already: load it without load_in_8bit, load_in_4bit or format"
            )
        options.refuse_dtype()
        return runner.load_artifact(path, trust_remote_code=trust_remote_code)
    if options.format is None:
        if keep:
            raise UsageError(
                "keep has no effect on an unquantized model: give load_in_8bit, load_in_4bit or format"
            )
        return runner.load_checkpoint(
            name, options.dtype, revision=revision, trust_remote_code=trust_remote_code
        )
    options.refuse_dtype()
    checkpoint = open_checkpoint(name, revision=revision, allow_remote_code=trust_remote_code)
    tell(checkpoint.notes)
    return _load_quantized(
        checkpoint, options.format, keep, trust_remote_code=trust_remote_code, progress=progress
    )


def _load_quantized(
    checkpoint: Checkpoint,
    format: str,
    keep: Sequence[str],
    *,
    trust_remote_code: bool,
    progress: Callable[[WeightDone], None] | None,
) -> PreTrainedModel:
    """Return a checkpoint quantized in memory, equal to the loaded artifact of the same plan."""
    from contextlib import ExitStack

    from zeropoint.planning import uniform_plan
    from zeropoint.quantization import card_of, source_config, stream, tokenizer_files
    from zeropoint.runtime.torch_engine import runner, saving
    from zeropoint.runtime.torch_engine.assemble import assemble
    from zeropoint.runtime.torch_engine.pretrained import adopt

    errors: list[LayerError] = []
    warnings: list[str] = []

    def watch(step: WeightDone) -> None:
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
