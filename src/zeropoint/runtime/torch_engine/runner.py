"""`TorchRunner`: a loaded transformers model (quantized or not) behind the `Runner` protocol."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from zeropoint import artifact
from zeropoint.checkpoint import Checkpoint, open_checkpoint
from zeropoint.checkpoint.tokenizer import generation_defaults, load_tokenizer
from zeropoint.errors import CheckpointError, UsageError, reason
from zeropoint.files import identity
from zeropoint.runtime.generation import OnToken, generate
from zeropoint.runtime.sampling import Sampling
from zeropoint.runtime.text import Reads
from zeropoint.runtime.torch_engine.assemble import assemble
from zeropoint.runtime.torch_engine.emulated import fast_products
from zeropoint.runtime.torch_engine.packed import weights_bytes
from zeropoint.runtime.torch_engine.pretrained import adopt
from zeropoint.runtime.torch_engine.saving import Origin, noting_dtypes
from zeropoint.sources import open_source
from zeropoint.sources.texts import text_folder
from zeropoint.tokenizer import Text
from zeropoint.tokenizer.folder import stop_ids
from zeropoint.values.arrays import Logits, Tokens

logger = logging.getLogger(__name__)


def load_artifact(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the transformers model of an artifact folder. Raises `ArtifactError` if the folder is damaged."""
    opened = artifact.open(path)
    config = runtime_config(path, trust_remote_code=trust_remote_code)
    dtypes: dict[str, np.dtype[Any]] = {}
    model = assemble(config, noting_dtypes(opened.stream(), dtypes), trust_remote_code=trust_remote_code)
    attach_generation_config(model, path)
    return adopt(model, Origin.of_artifact(model, opened, dtypes))


def runtime_config(path: str | Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Return the model's config without `quantization_config`, so that transformers builds plain modules."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def attach_generation_config(model: PreTrainedModel, path: str | Path) -> None:
    """Set the model's generation defaults (stop tokens, say) to those of the folder, if it has any."""
    if (defaults := generation_defaults(str(path))) is not None:
        model.generation_config = defaults


def load_checkpoint(
    path: str | Path, dtype: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return the unquantized transformers model of a checkpoint.

    `path` is a folder, a GGUF file or a hub name; `dtype` is a torch dtype's name, or `auto` for the checkpoint's own.
    `open_checkpoint` reads and checks the weights. Raises `CheckpointError` if a weight is missing or damaged, where
    transformers would only log a warning and use random numbers.
    """
    checkpoint = open_checkpoint(path, revision=revision, allow_remote_code=trust_remote_code)
    for note in checkpoint.notes:
        logger.warning("%s", note)
    return build(checkpoint, dtype)


def build(checkpoint: Checkpoint, dtype: str) -> PreTrainedModel:
    """Return the model of an open checkpoint in a torch dtype. Raises `CheckpointError` if it cannot be built."""
    weights = {name: _Unread(checkpoint, name) for name in checkpoint.used()}
    kind: Any = type(checkpoint.model)
    torch_dtype = checkpoint.own_dtype() if dtype == "auto" else getattr(torch, dtype)
    try:
        model, report = kind.from_pretrained(
            None, config=checkpoint.config, state_dict=weights, dtype=torch_dtype, output_loading_info=True
        )
    except CheckpointError:
        raise
    except Exception as error:  # a wrong config can raise anything in transformers
        raise CheckpointError(
            f"{checkpoint.name} does not load as a causal language model: {reason(error)}"
        ) from error
    if random := sorted({*report["missing_keys"], *(str(each[0]) for each in report["mismatched_keys"])}):
        raise CheckpointError(
            f"{checkpoint.name} does not load as a causal language model: transformers finds no {random[0]} in it"
        )
    attach_generation_config(model, checkpoint.path)
    return model.eval()


class _Unread:
    """A stored tensor that is read only when transformers indexes it (`tensor[...]`), like a safetensors slice."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint, self._name = checkpoint, name

    def __getitem__(self, _: Any) -> torch.Tensor:
        return self._checkpoint.read_stored(self._name)


def tensor_bytes(path: str | Path) -> int:
    """Return the bytes of the tensors in a folder's safetensors files (without headers), or in a GGUF file."""
    total = 0
    if Path(path).is_file():  # a GGUF file
        return open_source(path).nbytes()
    for file in sorted(Path(path).glob("*.safetensors")):
        with file.open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little")
        total += file.stat().st_size - 8 - header
    return total


class TorchRunner(Reads):
    """The `zeropoint.runtime.protocol.Runner` of a transformers model."""

    def __init__(self, model: PreTrainedModel, text: Text, *, name: str, engine: str, artifact_bytes: int):
        self.model = model
        self.tokenizer = text
        self.name = name
        self.engine, self.engine_reason = engine, ""
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self.weights_bytes = weights_bytes(model)
        self.artifact_bytes = artifact_bytes
        self.stop_tokens = text.stop_tokens() | stop_ids(
            getattr(model.generation_config, "eos_token_id", None)
        )

    @classmethod
    def open(cls, path: str, *, threads: int, dtype: str) -> TorchRunner:
        """Open an artifact, or a checkpoint in the torch dtype `dtype`.

        Raises `UsageError` if `threads` is below 1, `ArtifactError` or `CheckpointError` if the files are damaged.
        """
        if threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}")
        torch.set_num_threads(threads)
        if artifact.is_artifact(path):
            identity.say_doubts(Path(path))
            model, engine = load_artifact(path), "universal"
        else:
            model, engine = load_checkpoint(path, dtype), "transformers"
        name = Path(path).resolve().name
        text = load_tokenizer(str(text_folder(Path(path))))
        return cls(model, text, name=name, engine=engine, artifact_bytes=tensor_bytes(path))

    @torch.inference_mode()
    def logits(self, tokens: Tokens) -> Logits:
        ids = torch.from_numpy(np.atleast_2d(tokens))
        with fast_products():
            out = self.model(input_ids=ids, use_cache=False).logits.float().numpy()
        return out[0] if tokens.ndim == 1 else out  # type: ignore[no-any-return]

    @torch.inference_mode()
    def generate(
        self,
        tokens: Sequence[int],
        *,
        max_new_tokens: int,
        on_token: OnToken | None = None,
        stop: Container[int] = (),
        sampling: Sampling | None = None,
    ) -> list[int]:
        cache: Any = None

        def step(fed: Sequence[int]) -> Logits:
            nonlocal cache
            logits, cache = self._step(torch.tensor([list(fed)], dtype=torch.int64), cache)
            return logits[0].float().numpy()

        return generate(
            step,
            tokens,
            max_new_tokens=max_new_tokens,
            sampling=sampling or Sampling(),
            stop=stop,
            on_token=on_token,
        )

    @torch.inference_mode()
    def prefill_decode(self, tokens: Tokens, new_tokens: int) -> tuple[float, float]:
        step = torch.from_numpy(np.atleast_2d(tokens))
        start = time.perf_counter()
        logits, cache = self._step(step, None)
        prefilled = time.perf_counter()
        for _ in range(new_tokens):
            logits, cache = self._step(logits.argmax(-1, keepdim=True), cache)
        return prefilled - start, time.perf_counter() - prefilled

    def _step(self, step: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """Read tokens `[B, T]`; return the logits `[B, vocab]` after the last one, and the grown cache."""
        out = self.model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1], out.past_key_values
