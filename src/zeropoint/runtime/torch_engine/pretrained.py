"""`QuantizedModel`: the methods of a transformers model that change when its weights are packed (save, move, cast)."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel
from transformers.utils.hub import convert_file_size_to_int

from zeropoint.artifact.writer import SHARD_BYTES
from zeropoint.errors import UsageError
from zeropoint.runtime.torch_engine.packed import weights_bytes
from zeropoint.runtime.torch_engine.saving import Origin, refuse_unknown, save

#: Argument of `save_pretrained` -> the values that change nothing here and are accepted. None is always accepted.
_SAVING: dict[str, tuple[Any, ...]] = {
    "save_peft_format": (True, False),
    "save_original_format": (True, False),
    "safe_serialization": (True,),
    "push_to_hub": (False,),
    "distributed_checkpoint": (False,),
    "state_dict": (),
    "variant": (),
}


class QuantizedModel:
    """Mixin that `adopt` puts before a transformers model's own class; the combined class keeps that class's name.

    All activations are float32 and all weights stay on the CPU: any other move or cast raises `UsageError`.
    """

    _origin: Origin

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        max_shard_size: int | str = SHARD_BYTES,
        token: str | bool | None = None,
        **options: Any,
    ) -> None:
        """Write a Zeropoint artifact into a folder.

        The loaded artifact gives the same logits. Shards have at most `max_shard_size` bytes, and never more than
        `SHARD_BYTES`. Raises `UsageError` if an option cannot be followed, if the folder holds another model, or if the
        model's weights are not those that were loaded (see `saving.save`).
        """
        for name, value in options.items():
            if value is not None and not any(value is fine for fine in _SAVING.get(name, ())):
                hint = ": call push_to_hub instead" if name == "push_to_hub" else ""
                raise UsageError(
                    f"a quantized model is saved as an artifact, without {name}={value!r:.60}{hint}"
                )
        if not is_main_process:
            return
        try:
            limit = convert_file_size_to_int(max_shard_size)
        except ValueError as cause:
            raise UsageError(f"max_shard_size is bytes or text like '2GB', not {max_shard_size!r}") from cause
        self._refuse_remote_code()
        save(self, self._origin, Path(save_directory), shard_bytes=max(1, min(limit, SHARD_BYTES)))

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Upload the artifact that `save_pretrained` writes. Raises `UsageError` before anything is sent."""
        self._refuse_remote_code()
        refuse_unknown(self, self._origin)
        return super().push_to_hub(*args, **kwargs)  # type: ignore[misc]

    def _refuse_remote_code(self) -> None:
        """Raise `UsageError` if the model's code came with its repository."""
        if self.is_remote_code():  # type: ignore[attr-defined]
            raise UsageError(
                "the model's code came with its repository and is not written: it cannot be saved"
            )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Return the bytes of the weights in memory; packed weights count in their packed size."""
        return weights_bytes(self, buffers=return_buffers)  # type: ignore[arg-type]

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of activations and logits, float32."""
        return torch.float32

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Return the model. Raises `UsageError` if the device is not the CPU or the dtype not float32."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type != "cpu":
            raise UsageError(
                f"the integer kernels run on the CPU, so the model does not move to {device} "
                '(a pipeline is given device="cpu")'
            )
        if dtype is not None:
            self._refuse_cast(dtype)
        return self

    def cuda(self, device: Any = None) -> Self:
        return self.to("cuda")

    def cpu(self) -> Self:
        return self

    def float(self) -> Self:
        return self

    def half(self) -> Self:
        return self.to(torch.float16)

    def bfloat16(self) -> Self:
        return self.to(torch.bfloat16)

    def double(self) -> Self:
        return self.to(torch.float64)

    def type(self, dst_type: Any) -> Self:
        return self.to(dst_type)

    def _refuse_cast(self, dtype: torch.dtype) -> None:
        """Raise `UsageError` if the dtype is not float32."""
        if dtype != torch.float32:
            name = str(dtype).removeprefix("torch.")
            raise UsageError(
                f"a quantized model computes in integers and float32, and is not cast to {name}: leave the cast out"
            )

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Return the embedding. Raises `UsageError` if `new_num_tokens` differs from its size."""
        embedding = self.get_input_embeddings()  # type: ignore[attr-defined]
        if new_num_tokens is not None and new_num_tokens != len(embedding.weight):
            raise UsageError(
                f"a quantized embedding keeps its {len(embedding.weight)} tokens: resize the original model, and "
                "quantize that"
            )
        return embedding

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _empty, (type(self).__mro__[2],), self.__dict__


def adopt(model: PreTrainedModel, origin: Origin) -> PreTrainedModel:
    """Give a newly assembled model the behaviour of `QuantizedModel` and the `Origin` that `save_pretrained` needs."""
    model.__class__ = _quantized(type(model))  # type: ignore[arg-type]
    model._origin = origin
    return model


@cache
def _quantized(cls: Any) -> Any:
    """Return the class that combines `QuantizedModel` with a transformers model class."""
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (QuantizedModel, cls), names)


def _empty(cls: Any) -> Any:
    """Return an empty model of the class, which pickle and deepcopy then fill."""
    quantized = _quantized(cls)
    return quantized.__new__(quantized)
