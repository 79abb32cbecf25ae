"""The keyword arguments of transformers' `from_pretrained`: read, ignored where they change nothing, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zeropoint.errors import UsageError
from zeropoint.runtime import DTYPES

#: Argument -> the values that change nothing here and are accepted. None is always accepted.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "low_cpu_mem_usage": (True, False),
    "use_safetensors": (True,),
    "_fast_init": (True, False),
    "ignore_mismatched_sizes": (False,),
    "output_loading_info": (False,),
    "weights_only": (True, False),
    "offload_state_dict": (True, False),
    "torchscript": (False,),
    "from_tf": (False,),
    "from_flax": (False,),
    "force_download": (False,),
    "local_files_only": (False,),
}

_ATTENTION = ("eager", "sdpa")

#: Field of a `BitsAndBytesConfig` -> the values that change nothing here and are accepted.
_BITS_AND_BYTES: dict[str, tuple[Any, ...]] = {
    "llm_int8_skip_modules": (),
    "llm_int8_has_fp16_weight": (False,),
    "bnb_4bit_quant_type": ("fp4",),  # its default
    "bnb_4bit_use_double_quant": (False,),
    "bnb_4bit_compute_dtype": ("float32",),
}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The checked options of a `from_pretrained` call.

    - `format`: the format of the quantized weights, None to leave the weights as they are;
    - `dtype`: a torch dtype's name, or `auto`;
    - `attention`: transformers' attention implementation, None for its default;
    - `mapped`: whether a `device_map` was given.
    """

    format: str | None
    dtype: str
    attention: str | None
    mapped: bool

    @classmethod
    def of(
        cls,
        *,
        load_in_8bit: bool,
        load_in_4bit: bool,
        format: str | None,
        device_map: Any,
        given: Mapping[str, Any],
    ) -> LoadOptions:
        """Read the arguments. Raises `UsageError` naming the argument if one is unknown or not supported."""
        options = {name: value for name, value in given.items() if value is not None}
        formats = [name for name, on in (("int8", load_in_8bit), ("int4", load_in_4bit)) if on]
        formats += [] if format is None else [format]
        formats += _bits(options.pop("quantization_config", None))
        if len(formats) > 1:
            raise UsageError(
                "give one of load_in_8bit, load_in_4bit, quantization_config and format, not several"
            )
        chosen = formats[0] if formats else None
        _check_devices(device_map)
        dtypes = {_dtype(options.pop(name)) for name in ("dtype", "torch_dtype") if name in options}
        if len(dtypes) > 1:
            raise UsageError("dtype and torch_dtype are the same argument: give one of them")
        dtype = dtypes.pop() if dtypes else "auto"
        attention = options.pop("attn_implementation", None)
        if attention not in (None, *_ATTENTION):
            raise UsageError(f"attn_implementation is {' or '.join(_ATTENTION)} on a CPU, not {attention!r}")
        for name, value in options.items():
            if name not in _NEUTRAL:
                raise UsageError(f"from_pretrained does not take {name!r} here: leave it out")
            if not any(value is neutral for neutral in _NEUTRAL[name]):
                raise UsageError(f"{name}={value!r:.60} is not available here: leave it out")
        return cls(chosen, dtype, attention, device_map is not None)

    def refuse_dtype(self) -> None:
        """Raise `UsageError` if `dtype` is neither `auto` nor float32: a quantized model computes in float32."""
        if self.dtype not in ("auto", "float32"):
            raise UsageError(
                f"a quantized model computes in integers and float32, not in {self.dtype}: leave dtype out"
            )


def _bits(config: Any) -> list[str]:
    """Return the formats, of int8 and int4, that a `BitsAndBytesConfig` (or a mapping of its fields) asks for.

    None asks for no format. Raises `UsageError` if the config asks for anything else.
    """
    if config is None:
        return []
    fields = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(fields, Mapping):
        raise UsageError(f"quantization_config is a BitsAndBytesConfig, not a {type(config).__name__}")
    method = fields.get("quant_method", "bitsandbytes")
    if str(getattr(method, "value", method)) != "bitsandbytes":
        raise UsageError(
            f"quantization_config asks for {getattr(method, 'value', method)}, which Zeropoint does not make while "
            "loading: use load_in_8bit, load_in_4bit or format"
        )
    for name, neutral in _BITS_AND_BYTES.items():
        value = fields.get(name)
        if value is not None and str(value).removeprefix("torch.") not in map(str, neutral):
            hint = "use keep=[...]" if name == "llm_int8_skip_modules" else "leave it out"
            raise UsageError(
                f"quantization_config asks for {name}={value!r}, which Zeropoint does not do: {hint}"
            )
    formats = [f for flag, f in (("load_in_8bit", "int8"), ("load_in_4bit", "int4")) if fields.get(flag)]
    if not formats:
        raise UsageError("quantization_config asks for neither load_in_8bit nor load_in_4bit")
    return formats


def _check_devices(device_map: Any) -> None:
    """Raise `UsageError` if a `device_map` names another device than the CPU."""
    devices = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    for device in devices:
        if device is not None and str(device) not in ("auto", "balanced", "sequential", "cpu"):
            raise UsageError(
                f"the integer kernels run on the CPU: device_map={device_map!r} is not available"
            )


def _dtype(value: Any) -> str:
    """Return the name of a torch dtype. Raises `UsageError` if it is not supported."""
    name = str(value).removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError(f"dtype is auto, float32, bfloat16 or float16, not {value!r}")
    return name
