"""Reading config.json strictly: what is read is known, and what is left over is refused, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from zeropoint.errors import UnsupportedError

#: Fields that do not change what an inference step computes. A name that ends in one of `HARMLESS_ENDINGS`
#: is another.
HARMLESS = frozenset({
    "model_type", "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path",
    "_attn_implementation", "auto_map", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id",
    "sep_token_id", "cls_token_id", "mask_token_id", "decoder_start_token_id", "initializer_range",
    "init_std", "initializer_factor", "use_cache", "gradient_checkpointing", "quantization_config",
    "pretraining_tp", "output_attentions", "output_hidden_states", "return_dict", "problem_type",
    "id2label", "label2id", "num_labels", "torchscript", "task_specific_params", "finetuning_task",
    "cache_implementation", "reorder_and_upcast_attn", "transformers.js_config", "is_llama_config",
    "keys_to_ignore_at_inference", "tokenizer_class", "classifier_dropout", "layerdrop", "use_flash_attn",
    "rms_norm", "use_bfloat16", "tf_legacy_loss", "is_decoder", "n_ctx", "max_length", "min_length",
    "do_sample", "temperature", "top_k", "top_p", "num_beams", "repetition_penalty", "unsloth_version",
    "unsloth_fixed",
})  # fmt: skip
HARMLESS_PREFIXES = ("summary_",)
HARMLESS_ENDINGS = ("dropout", "_pdrop")

#: No dimension of a model is larger; a config that says so is damaged.
MAX_SIZE = 1 << 30

#: No number of a config is larger, nor a positive one smaller than its inverse.
MAX_NUMBER = 1e30


class Config:
    """The fields of one config.json. Every accessor raises `UnsupportedError`, naming field and value."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the field is there at all, null or not."""
        self._read.add(name)
        return name in self._data

    def get(self, name: str, default: Any = None) -> Any:
        """The value as it stands; null counts as absent."""
        self._read.add(name)
        value = self._data.get(name)
        return default if value is None else value

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number from 1 up."""
        value = self.get(name, default)
        if type(value) is not int or not 0 < value <= MAX_SIZE:
            self.refuse(name, value)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number that float32 holds."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER:
            self.refuse(name, value)
        return float(value)

    def positive(self, name: str, default: float | None = None) -> float:
        value = self.number(name, default)
        if value < 1 / MAX_NUMBER:
            self.refuse(name, value)
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            self.refuse(name, value)
        return value

    def only(self, name: str, allowed: Any) -> None:
        """Refuse any other value than the allowed one (or none)."""
        value = self.get(name, allowed)
        if value != allowed or type(value) is not type(allowed):
            self.refuse(name, value)

    def softcap(self, name: str, default: float) -> float:
        """A positive cap; 0, meaning none, where the config says null."""
        if self.has(name) and self.get(name) is None:
            return 0.0
        return self.positive(name, default) if self.has(name) or default else 0.0

    def absent(self, name: str) -> None:
        """Refuse any value at all."""
        value = self.get(name)
        if value is not None:
            self.refuse(name, value)

    def finish(self) -> None:
        """Refuse what nobody read: it might change the mathematics."""
        for name, value in self._data.items():
            known = name in self._read or name in HARMLESS or name.endswith(HARMLESS_ENDINGS)
            if not known and value is not None and not name.startswith(HARMLESS_PREFIXES):
                self.refuse(name, value)

    def refuse(self, name: str, value: Any) -> NoReturn:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        if value is None:
            raise UnsupportedError(f"config.json lacks {name}, which the native engine needs")
        raise UnsupportedError(f"config.json has {name} = {shown}, which the native engine does not cover")
