"""The architectures of llama.cpp that Zeropoint can read and write.

`Family` states what llama.cpp's graph of an architecture computes (llama.cpp's src/models/*.cpp) and how its converter
stores the weights. `differences.py` compares a model spec with the family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES

from zeropoint.models.spec import Activation, LinearSlot, NormKind, NormSlot, Rope

NO_BIAS: frozenset[LinearSlot] = frozenset()
QKV = frozenset({LinearSlot.Q, LinearSlot.K, LinearSlot.V})
MLP = frozenset({LinearSlot.UP, LinearSlot.DOWN})
GATED = MLP | {LinearSlot.GATE}
OUT = frozenset({LinearSlot.O})

PRE = frozenset({NormSlot.ATTENTION, NormSlot.MLP, NormSlot.FINAL})
POST = frozenset({NormSlot.POST_ATTENTION, NormSlot.POST_MLP})
HEADS = frozenset({NormSlot.Q, NormSlot.K})

#: GGUF tensor name of each projection. A fused projection has the name in `FUSED`.
LINEARS: Mapping[LinearSlot, str] = {
    LinearSlot.Q: "attn_q",
    LinearSlot.K: "attn_k",
    LinearSlot.V: "attn_v",
    LinearSlot.O: "attn_output",
    LinearSlot.GATE: "ffn_gate",
    LinearSlot.UP: "ffn_up",
    LinearSlot.DOWN: "ffn_down",
    LinearSlot.EMBEDDING: "token_embd",
    LinearSlot.POSITIONS: "position_embd",
    LinearSlot.HEAD: "output",
}
FUSED: Mapping[frozenset[LinearSlot], str] = {
    QKV: "attn_qkv",
    frozenset({LinearSlot.GATE, LinearSlot.UP}): "ffn_up",
}
NORMS: Mapping[NormSlot, str] = {
    NormSlot.ATTENTION: "attn_norm",
    NormSlot.POST_ATTENTION: "post_attention_norm",
    NormSlot.MLP: "ffn_norm",
    NormSlot.POST_MLP: "post_ffw_norm",
    NormSlot.Q: "attn_q_norm",
    NormSlot.K: "attn_k_norm",
    NormSlot.EMBEDDING: "token_embd_norm",
    NormSlot.FINAL: "output_norm",
}


@dataclass(frozen=True, slots=True)
class Family:
    """The properties of one architecture in llama.cpp.

    - `biases`: projections that may have a bias; `needed_biases` must have one;
    - `norms`: norms that must exist, except `optional_norms`;
    - `norm_weights`: whether norms have weights;
    - `pairs`: llama.cpp rotates channels 2i and 2i + 1 of a head together, transformers i and i + half. The rows of the
      query and key projections are reordered accordingly;
    - `factors`: llama.cpp reads a table of factors for the rotary frequencies (`rope_freqs.weight`);
    - `partial`: llama.cpp rotates only a part of each head if the header says so;
    - `square`: heads * head_dim equals the hidden size;
    - `scaled_embedding`: the embedding is multiplied by sqrt(hidden size);
    - `scales`, `softcaps`: fields of the model spec's config that the header states;
    - `windows`: "none": full attention in every layer. "period": sliding attention in every layer except each
      `period`-th, unless the header lists the layers. "unused": the header states a window that llama.cpp ignores;
    - `head`: a separate output head is "optional", required ("own") or impossible ("tied");
    - `parallel`: whether attention and MLP read the same input: "no", "yes", as the header says ("stated"), or if the
      MLP has no norm ("without norm").
    """

    arch: MODEL_ARCH
    biases: frozenset[LinearSlot] = NO_BIAS
    needed_biases: frozenset[LinearSlot] = NO_BIAS
    norms: frozenset[NormSlot] = PRE
    optional_norms: frozenset[NormSlot] = frozenset()
    norm_weights: bool = True
    norm: NormKind = NormKind.RMS
    activation: Activation = Activation.SILU
    gated: bool = True
    rope: Rope = Rope.HALVES
    pairs: bool = False
    factors: bool = False
    partial: bool = False
    square: bool = False
    scaled_embedding: bool = False
    scales: frozenset[str] = frozenset()
    softcaps: frozenset[str] = frozenset()
    windows: Literal["none", "period", "unused"] = "none"
    period: int = 0
    head: Literal["optional", "own", "tied"] = "optional"
    parallel: Literal["no", "yes", "stated", "without norm"] = "no"

    @property
    def name(self) -> str:
        """Return llama.cpp's name of the architecture."""
        return str(MODEL_ARCH_NAMES[self.arch])


LLAMA = Family(MODEL_ARCH.LLAMA, biases=QKV | OUT | GATED, pairs=True, factors=True)
OLMO2 = Family(
    MODEL_ARCH.OLMO2,
    norms=POST | HEADS | {NormSlot.FINAL},
    biases=QKV,
    square=True,
    head="own",
    windows="period",
    period=4,
)

#: config.json's model_type -> family.
FAMILIES: Mapping[str, Family] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Family(MODEL_ARCH.QWEN2, biases=QKV, needed_biases=QKV),
    "qwen3": Family(MODEL_ARCH.QWEN3, biases=QKV, norms=PRE | HEADS),
    "gemma": Family(
        MODEL_ARCH.GEMMA, biases=QKV, activation=Activation.GELU_TANH, scaled_embedding=True, head="tied"
    ),
    "gemma2": Family(
        MODEL_ARCH.GEMMA2,
        biases=QKV,
        norms=PRE | POST,
        activation=Activation.GELU_TANH,
        scaled_embedding=True,
        softcaps=frozenset({"attention_softcap", "logit_softcap"}),
        windows="period",
        period=2,
        head="tied",
    ),
    "gemma3_text": Family(
        MODEL_ARCH.GEMMA3,
        biases=QKV,
        norms=PRE | POST | HEADS,
        activation=Activation.GELU_TANH,
        scaled_embedding=True,
        softcaps=frozenset({"logit_softcap"}),
        windows="period",
        period=6,
    ),
    "phi": Family(
        MODEL_ARCH.PHI2,
        biases=QKV | OUT | MLP | {LinearSlot.HEAD},
        needed_biases=OUT | MLP | {LinearSlot.HEAD},
        norms=frozenset({NormSlot.ATTENTION, NormSlot.FINAL}),
        norm=NormKind.LAYER,
        activation=Activation.GELU_TANH,
        gated=False,
        partial=True,
        square=True,
        head="own",
        parallel="yes",
    ),
    "phi3": Family(MODEL_ARCH.PHI3, partial=True, square=True, windows="unused"),
    "olmo": Family(
        MODEL_ARCH.OLMO, biases=QKV, norm=NormKind.LAYER, norm_weights=False, pairs=True, square=True
    ),
    "olmo2": OLMO2,
    "olmo3": OLMO2,
    "starcoder2": Family(
        MODEL_ARCH.STARCODER2,
        biases=QKV | OUT | MLP,
        needed_biases=OUT | MLP,
        norm=NormKind.LAYER,
        activation=Activation.GELU_TANH,
        gated=False,
        square=True,
        windows="unused",
    ),
    "stablelm": Family(
        MODEL_ARCH.STABLELM,
        biases=QKV,
        optional_norms=frozenset({NormSlot.MLP}),
        norm=NormKind.LAYER,
        partial=True,
        square=True,
        head="own",
        parallel="without norm",
    ),
    "granite": Family(
        MODEL_ARCH.GRANITE,
        biases=QKV | OUT | GATED,
        pairs=True,
        factors=True,
        scales=frozenset({"embedding_scale", "residual_scale", "attention_scale", "logit_scale"}),
    ),
    "smollm3": Family(MODEL_ARCH.SMOLLM3, biases=QKV, pairs=True),
    "gpt_neox": Family(
        MODEL_ARCH.GPTNEOX,
        biases=QKV | OUT | MLP,
        needed_biases=QKV | OUT | MLP,
        norm=NormKind.LAYER,
        activation=Activation.GELU_TANH,
        gated=False,
        partial=True,
        square=True,
        head="own",
        parallel="stated",
    ),
    "cohere": Family(
        MODEL_ARCH.COMMAND_R,
        biases=QKV,
        norms=frozenset({NormSlot.ATTENTION, NormSlot.FINAL}),
        norm=NormKind.LAYER,
        rope=Rope.PAIRS,
        square=True,
        scales=frozenset({"logit_scale"}),
        head="tied",
        parallel="yes",
    ),
    "gpt2": Family(
        MODEL_ARCH.GPT2,
        biases=QKV | OUT | MLP,
        needed_biases=QKV | OUT | MLP,
        norm=NormKind.LAYER,
        activation=Activation.GELU_TANH,
        gated=False,
        rope=Rope.NONE,
        square=True,
    ),
}

#: llama.cpp's architecture name -> transformers' model type. `to_config.py` tells apart types with the same name.
MODEL_TYPES: Mapping[str, str] = {family.name: name for name, family in reversed(tuple(FAMILIES.items()))}
