"""`MIXES`: the type of each matrix under llama.cpp's quantization names, such as Q4_K_M.

A name is a mix: most matrices have one type, and error-sensitive ones have a wider type. These mixes are llama.cpp's
own, matrix by matrix, so a file has the same size as llama.cpp's file of the same name. A K-quant needs rows of a
multiple of 256 weights. Other rows fall back to a type with blocks of 32, and to FP16 if 32 does not divide them.

Source: `llama_tensor_get_type_impl` of https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, MODEL_ARCH, GGMLQuantizationType, LlamaFileType

Kind = GGMLQuantizationType

Rule = Callable[[int, int], GGMLQuantizationType | None]
"""Maps (layer number, number of layers) to a type, or to None for the mix's main type."""

#: K-quant -> the type to use if 256 does not divide a row.
FALLBACKS = {Kind.Q3_K: Kind.Q4_0, Kind.Q4_K: Kind.Q5_0, Kind.Q5_K: Kind.Q5_1, Kind.Q6_K: Kind.Q8_0}

#: Architecture and layer count of the models that llama.cpp treats as 70B: 8 query heads share one value head.
SEVENTY_BILLION = {(MODEL_ARCH.LLAMA, 80), (MODEL_ARCH.QWEN2, 80)}

#: Matrices that stay in float32, as in llama.cpp.
KEPT = ("position_embd.weight",)


def _never(layer: int, layers: int) -> None:
    """Return None: every layer has the mix's main type."""


def _every(kind: GGMLQuantizationType) -> Rule:
    """Return a rule that gives `kind` to every layer."""
    return lambda layer, layers: kind


def _half(kind: GGMLQuantizationType) -> Rule:
    """Return a rule that gives `kind` to the first and last eighth of the layers, and to every third one between."""

    def rule(layer: int, layers: int) -> GGMLQuantizationType | None:
        """Return `kind` for the selected layers, else None."""
        edge = layers // 8
        wider = layer < edge or layer >= 7 * layers // 8 or (layer - edge) % 3 == 2
        return kind if wider else None

    return rule


def _first(
    count: Callable[[int], int], kind: GGMLQuantizationType, rest: GGMLQuantizationType | None = None
) -> Rule:
    """Return a rule that gives `kind` to the first `count(layers)` layers, and `rest` to the others."""
    return lambda layer, layers: kind if layer < count(layers) else rest


@dataclass(frozen=True, slots=True)
class Mix:
    """A mix of types.

    - `kind`: the type of most matrices;
    - `file_type`: the mix's number in the GGUF header;
    - `value`, `out`, `down`: rules for the value projection (or a fused query-key-value projection), the attention
      output projection and the MLP's down projection.

    The output head, tied or not, is Q8_0 in the Q8_0 mix and Q6_K in every other mix.
    """

    kind: GGMLQuantizationType
    file_type: LlamaFileType
    value: Rule = _never
    out: Rule = _never
    down: Rule = _never

    def choose(self, name: str, shape: tuple[int, ...], model: Model) -> GGMLQuantizationType:
        """Return the type of the tensor that GGUF calls `name`: the mix's type, or a fallback its rows divide into."""
        if len(shape) < 2 or name in KEPT:
            return Kind.F32
        kind = self._mix_type(name, model)
        if shape[-1] % GGML_QUANT_SIZES[kind][0]:
            kind = FALLBACKS.get(kind, Kind.F16)
        return Kind.F16 if shape[-1] % GGML_QUANT_SIZES[kind][0] else kind

    def _mix_type(self, name: str, model: Model) -> GGMLQuantizationType:
        """Return the type that the mix gives a tensor, whatever the length of its rows."""
        if name == "output.weight" or (model.tied and name == "token_embd.weight"):
            return self.kind if self.kind == Kind.Q8_0 else Kind.Q6_K
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if match is None:
            return self.kind
        layer, part = int(match[1]), match[2]
        rules = {"attn_v": self.value, "attn_qkv": self.value, "attn_output": self.out, "ffn_down": self.down}
        kind = rules.get(part, _never)(layer, model.layers) or self.kind
        shared = (model.arch, model.layers) in SEVENTY_BILLION and part in ("attn_v", "attn_qkv")
        return Kind.Q5_K if shared and kind in (Kind.Q3_K, Kind.Q4_K) else kind


@dataclass(frozen=True, slots=True)
class Model:
    """The model properties that a mix depends on. `tied`: the embedding is also the output head."""

    arch: MODEL_ARCH
    layers: int
    tied: bool


MIXES: Mapping[str, Mix] = {
    "Q3_K_S": Mix(Kind.Q3_K, LlamaFileType.MOSTLY_Q3_K_S),
    "Q3_K_M": Mix(
        Kind.Q3_K,
        LlamaFileType.MOSTLY_Q3_K_M,
        value=_first(lambda layers: 2, Kind.Q5_K, Kind.Q4_K),
        out=_every(Kind.Q4_K),
        down=_first(lambda layers: layers // 16, Kind.Q5_K, Kind.Q4_K),
    ),
    "Q3_K_L": Mix(
        Kind.Q3_K,
        LlamaFileType.MOSTLY_Q3_K_L,
        value=_every(Kind.Q5_K),
        out=_every(Kind.Q5_K),
        down=_every(Kind.Q5_K),
    ),
    "Q4_K_S": Mix(
        Kind.Q4_K,
        LlamaFileType.MOSTLY_Q4_K_S,
        value=_first(lambda layers: 4, Kind.Q5_K),
        down=_first(lambda layers: layers // 8, Kind.Q5_K),
    ),
    "Q4_K_M": Mix(Kind.Q4_K, LlamaFileType.MOSTLY_Q4_K_M, value=_half(Kind.Q6_K), down=_half(Kind.Q6_K)),
    "Q5_K_S": Mix(Kind.Q5_K, LlamaFileType.MOSTLY_Q5_K_S),
    "Q5_K_M": Mix(Kind.Q5_K, LlamaFileType.MOSTLY_Q5_K_M, value=_half(Kind.Q6_K), down=_half(Kind.Q6_K)),
    "Q6_K": Mix(Kind.Q6_K, LlamaFileType.MOSTLY_Q6_K),
    "Q4_0": Mix(Kind.Q4_0, LlamaFileType.MOSTLY_Q4_0, down=_first(lambda layers: layers // 8, Kind.Q4_1)),
    "Q4_1": Mix(Kind.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "Q5_0": Mix(Kind.Q5_0, LlamaFileType.MOSTLY_Q5_0, down=_first(lambda layers: layers // 8, Kind.Q5_1)),
    "Q5_1": Mix(Kind.Q5_1, LlamaFileType.MOSTLY_Q5_1),
    "Q8_0": Mix(Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
