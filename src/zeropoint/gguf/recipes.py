"""Which of ggml's types each matrix of a file gets, by the names that llama.cpp's quantizer knows.

Such a name (Q4_K_M) is a mix: most matrices have one type, and some in which errors weigh more have a wider one. The
mixes here are llama.cpp's own, matrix by matrix, so that files of one name have one size whoever made them. K-quants
take rows of a multiple of 256; others fall back to a wider type in blocks of 32, and those that do not divide into
these either are stored in FP16.

Source: `llama_tensor_get_type_impl` of https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, MODEL_ARCH, GGMLQuantizationType, LlamaFileType

Kind = GGMLQuantizationType

Rule = Callable[[int, int], GGMLQuantizationType | None]
"""The type of a layer, given its number and their count; None: that of most matrices."""

#: What takes the place of a type whose blocks do not divide a row.
FALLBACKS = {Kind.Q3_K: Kind.Q4_0, Kind.Q4_K: Kind.Q5_0, Kind.Q5_K: Kind.Q5_1, Kind.Q6_K: Kind.Q8_0}

#: Families whose model of 80 layers llama.cpp takes for one of 70B parameters, in which 8 heads share their values.
SEVENTY_BILLION = {(MODEL_ARCH.LLAMA, 80), (MODEL_ARCH.QWEN2, 80)}

#: Matrices that llama.cpp leaves as they are.
KEPT = ("position_embd.weight",)


def _never(layer: int, layers: int) -> None:
    """No layer has another type."""


def _every(kind: GGMLQuantizationType) -> Rule:
    return lambda layer, layers: kind


def _half(kind: GGMLQuantizationType) -> Rule:
    """The first and the last eighth of the layers, and every third of those between them."""

    def rule(layer: int, layers: int) -> GGMLQuantizationType | None:
        edge = layers // 8
        wider = layer < edge or layer >= 7 * layers // 8 or (layer - edge) % 3 == 2
        return kind if wider else None

    return rule


def _first(
    count: Callable[[int], int], kind: GGMLQuantizationType, rest: GGMLQuantizationType | None = None
) -> Rule:
    """The first `count(layers)` layers, and the `rest`."""
    return lambda layer, layers: kind if layer < count(layers) else rest


@dataclass(frozen=True, slots=True)
class Recipe:
    """A mix. `kind`: the type of most matrices; the rules: those of the projections of values (or of queries, keys
    and values at once), out of attention, and down. An output head, tied or not, is Q6_K in all that are not wider."""

    kind: GGMLQuantizationType
    file_type: LlamaFileType
    value: Rule = _never
    out: Rule = _never
    down: Rule = _never

    def choose(self, name: str, shape: tuple[int, ...], model: Model) -> GGMLQuantizationType:
        """The type of the tensor that GGUF calls `name`."""
        if len(shape) < 2 or name in KEPT:
            return Kind.F32
        kind = self._wanted(name, model)
        if shape[-1] % GGML_QUANT_SIZES[kind][0]:
            kind = FALLBACKS.get(kind, Kind.F16)
        return Kind.F16 if shape[-1] % GGML_QUANT_SIZES[kind][0] else kind

    def _wanted(self, name: str, model: Model) -> GGMLQuantizationType:
        if name == "output.weight" or (model.tied and name == "token_embd.weight"):
            return self.kind if self.kind == Kind.Q8_0 else Kind.Q6_K
        found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if found is None:
            return self.kind
        layer, part = int(found[1]), found[2]
        rules = {"attn_v": self.value, "attn_qkv": self.value, "attn_output": self.out, "ffn_down": self.down}
        kind = rules.get(part, _never)(layer, model.layers) or self.kind
        shared = (model.arch, model.layers) in SEVENTY_BILLION and part in ("attn_v", "attn_qkv")
        return Kind.Q5_K if shared and kind in (Kind.Q3_K, Kind.Q4_K) else kind


@dataclass(frozen=True, slots=True)
class Model:
    """What a recipe asks of a model. `tied`: the embedding is the output head too."""

    arch: MODEL_ARCH
    layers: int
    tied: bool


RECIPES: Mapping[str, Recipe] = {
    "Q3_K_S": Recipe(Kind.Q3_K, LlamaFileType.MOSTLY_Q3_K_S),
    "Q3_K_M": Recipe(
        Kind.Q3_K,
        LlamaFileType.MOSTLY_Q3_K_M,
        value=_first(lambda layers: 2, Kind.Q5_K, Kind.Q4_K),
        out=_every(Kind.Q4_K),
        down=_first(lambda layers: layers // 16, Kind.Q5_K, Kind.Q4_K),
    ),
    "Q3_K_L": Recipe(
        Kind.Q3_K,
        LlamaFileType.MOSTLY_Q3_K_L,
        value=_every(Kind.Q5_K),
        out=_every(Kind.Q5_K),
        down=_every(Kind.Q5_K),
    ),
    "Q4_K_S": Recipe(
        Kind.Q4_K,
        LlamaFileType.MOSTLY_Q4_K_S,
        value=_first(lambda layers: 4, Kind.Q5_K),
        down=_first(lambda layers: layers // 8, Kind.Q5_K),
    ),
    "Q4_K_M": Recipe(Kind.Q4_K, LlamaFileType.MOSTLY_Q4_K_M, value=_half(Kind.Q6_K), down=_half(Kind.Q6_K)),
    "Q5_K_S": Recipe(Kind.Q5_K, LlamaFileType.MOSTLY_Q5_K_S),
    "Q5_K_M": Recipe(Kind.Q5_K, LlamaFileType.MOSTLY_Q5_K_M, value=_half(Kind.Q6_K), down=_half(Kind.Q6_K)),
    "Q6_K": Recipe(Kind.Q6_K, LlamaFileType.MOSTLY_Q6_K),
    "Q4_0": Recipe(Kind.Q4_0, LlamaFileType.MOSTLY_Q4_0, down=_first(lambda layers: layers // 8, Kind.Q4_1)),
    "Q4_1": Recipe(Kind.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "Q5_0": Recipe(Kind.Q5_0, LlamaFileType.MOSTLY_Q5_0, down=_first(lambda layers: layers // 8, Kind.Q5_1)),
    "Q5_1": Recipe(Kind.Q5_1, LlamaFileType.MOSTLY_Q5_1),
    "Q8_0": Recipe(Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
