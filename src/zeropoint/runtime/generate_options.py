"""The options of transformers' `generate`: read, ignored where they change nothing, or refused.

`generation_config` may be transformers' own object, or any object or mapping with the same fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from zeropoint.errors import UsageError
from zeropoint.runtime.sampling import Sampling

#: Defaults of transformers.
DEFAULT_NEW_TOKENS = 20
DEFAULT_TOP_K = 50

#: Options that are ignored without `do_sample`, as in transformers.
_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p")

#: Options that are not supported -> the values that change nothing and are accepted. None is always accepted.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "typical_p": (1.0,),
    "top_h": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "diversity_penalty": (0.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "penalty_alpha": (0.0,),
    "guidance_scale": (1.0,),
    "renormalize_logits": (False,),
    "remove_invalid_values": (False,),
    "token_healing": (False,),
    "output_scores": (False,),
    "output_logits": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "synced_gpus": (False,),
    "is_assistant": (False,),
    "logits_processor": ([],),
    "stopping_criteria": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "use_mtp": (False,),
    **{
        name: ()
        for name in (
            "assistant_early_exit",
            "assistant_model",
            "assistant_tokenizer",
            "bad_words_ids",
            "constraints",
            "custom_generate",
            "dola_layers",
            "exponential_decay_length_penalty",
            "force_words_ids",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "inputs_embeds",
            "max_time",
            "negative_prompt_attention_mask",
            "negative_prompt_ids",
            "past_key_values",
            "prefix_allowed_tokens_fn",
            "prompt_lookup_num_tokens",
            "sequence_bias",
            "speculation_type",
            "stop_strings",
            "watermarking_config",
        )
    },
}

#: Options that do not change the text here, such as the type of the cache or the weighting of (unsupported) beams.
_WITHOUT_EFFECT = frozenset(
    {
        "assistant_confidence_threshold",
        "assistant_ensemble_weight",
        "assistant_lookbehind",
        "bos_token_id",
        "cache_config",
        "cache_implementation",
        "cache_position",
        "compile_config",
        "continuous_batching_config",
        "decoder_start_token_id",
        "disable_compile",
        "early_stopping",
        "length_penalty",
        "low_memory",
        "max_cache_len",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "position_ids",
        "prefill_chunk_size",
        "target_lookbehind",
        "token_type_ids",
        "tokenizer",
        "transformers_version",
        "use_cache",
        "use_model_defaults",
    }
)


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """The checked options of a `generate` call.

    - `new_tokens`: the most new tokens; `length`: the most tokens with the prompt; None for no such limit;
    - `stop`: the token ids that end a text, None for the model's own;
    - `as_dict`: whether to return an object with `sequences` instead of ids.
    """

    new_tokens: int | None
    length: int | None
    stop: frozenset[int] | None
    pad_token_id: int | None
    sampling: Sampling
    as_dict: bool
    streamer: Any

    def budget(self, prompt: int) -> int:
        """Return the most new tokens after a prompt of `prompt` tokens, padding included.

        Raises `UsageError` if `max_length` leaves no room for any.
        """
        if self.new_tokens is not None:
            return self.new_tokens
        if self.length is None:
            return DEFAULT_NEW_TOKENS
        if self.length <= prompt:
            raise UsageError(
                f"max_length={self.length} leaves no room after a prompt of {prompt} tokens: give max_new_tokens"
            )
        return self.length - prompt

    @classmethod
    def of(cls, generation_config: Any, given: Mapping[str, Any]) -> GenerateOptions:
        """Read the fields of `generation_config`, overridden by the arguments `given`.

        Raises `UsageError` naming the option if one is unknown, out of range or not supported.
        """
        options = {**_fields(generation_config), **{k: v for k, v in given.items() if v is not None}}
        seed = options.pop("seed", 0)
        do_sample = bool(options.pop("do_sample", False))
        sampling = {name: options.pop(name) for name in _OF_SAMPLING if name in options}
        penalty = options.pop("repetition_penalty", 1.0)
        sampling = {"temperature": 1.0, "top_k": DEFAULT_TOP_K, **sampling} if do_sample else {}
        parsed = cls(
            new_tokens=_count("max_new_tokens", options.pop("max_new_tokens", None)),
            length=_count("max_length", options.pop("max_length", None)),
            stop=_ids("eos_token_id", options.pop("eos_token_id", None)),
            pad_token_id=_one_id("pad_token_id", options.pop("pad_token_id", None)),
            sampling=_sampling(repetition_penalty=penalty, seed=seed, **sampling),
            as_dict=bool(options.pop("return_dict_in_generate", False)),
            streamer=options.pop("streamer", None),
        )
        for name, value in options.items():
            _refuse_unless_neutral(name, value)
        return parsed


def _fields(config: Any) -> dict[str, Any]:
    """Return the fields of a generation config that are not None."""
    if config is None:
        return {}
    if hasattr(config, "to_dict"):
        fields = config.to_dict()
    else:
        fields = dict(config) if isinstance(config, Mapping) else dict(vars(config))
    return {name: value for name, value in fields.items() if value is not None and not name.startswith("_")}


def _refuse_unless_neutral(name: str, value: Any) -> None:
    """Raise `UsageError` if the option is unknown, or not supported with this value."""
    if name in _WITHOUT_EFFECT or value is None:
        return
    if name not in _NEUTRAL:
        raise UsageError(f"generate has no option {name!r}")
    plain = list(value) if isinstance(value, list | tuple) else value
    neutral = isinstance(plain, int | float | list) and plain in _NEUTRAL[name]
    if not neutral:
        raise UsageError(
            f"generate does not do {name}={value!r} on this engine: leave it out, or load the model with "
            "zeropoint.AutoModelForCausalLM, which generates as transformers does"
        )


def _count(name: str, value: Any) -> int | None:
    """Return a number of tokens, None for None. Raises `UsageError` if it is not an integer from 0 up."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise UsageError(f"{name} is a whole number of tokens, not {value!r}")
    return int(value)


def _ids(name: str, value: Any) -> frozenset[int] | None:
    """Return token ids given as one number, a list or a tensor. Negative ids are kept; they match no token."""
    if value is None:
        return None
    ids = np.atleast_1d(np.asarray(value))
    if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
        raise UsageError(f"{name} is a token id or a list of them, not {value!r}")
    return frozenset(int(i) for i in ids)


def _one_id(name: str, value: Any) -> int | None:
    """Return one token id, None for None. Raises `UsageError` if there are several."""
    ids = _ids(name, value)
    if ids is None:
        return None
    if len(ids) != 1:
        raise UsageError(f"{name} is one token id, not {value!r}")
    return next(iter(ids))


def _sampling(**options: Any) -> Sampling:
    """Return the sampling options. Raises `UsageError` if one is not a number or is out of range."""
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise UsageError(f"{name} is a number, not {value!r}")
    return Sampling(**options)
