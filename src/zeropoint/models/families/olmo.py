"""OLMo 1: Llama with layer norms that have no weights (arXiv:2402.00838)."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import attention, blocks, decoder, gated_mlp, outer_record
from zeropoint.models.rope import read_rope
from zeropoint.models.shape import read_activation, read_shape
from zeropoint.models.spec import LayerRecord, ModelSpec, NormKind, NormSlot, NormSource


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config)
    bias = config.flag("attention_bias", False)
    config.absent("clip_qkv")
    ones = NormSource(shape.hidden)

    def block(_: int, at: str) -> LayerRecord:
        linears = attention(f"{at}.self_attn", shape, bias=bias) | gated_mlp(f"{at}.mlp", shape)
        return LayerRecord(linears, {NormSlot.ATTENTION: ones, NormSlot.MLP: ones})

    tied = config.flag("tie_word_embeddings", False)
    return decoder(
        shape,
        blocks(shape, block),
        outer_record(shape, embedding="model.embed_tokens", final_norm=ones, tied=tied),
        norm_kind=NormKind.LAYER,
        eps=1e-5,
        activation=read_activation(config),
        rope=read_rope(config, max_positions=shape.max_positions),
    )
