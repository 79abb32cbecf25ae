"""Cohere (Command R): layer norms without bias, attention and MLP in parallel, rotation of neighbouring channels,
scaled logits, tied head."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import attention, blocks, decoder, gated_mlp, norm, outer_record
from zeropoint.models.rope import read_rope
from zeropoint.models.shape import read_activation, read_shape
from zeropoint.models.spec import LayerRecord, ModelSpec, NormKind, NormSlot, Rope


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config)
    bias = config.flag("attention_bias", False)
    config.only("use_qk_norm", False)

    def block(_: int, at: str) -> LayerRecord:
        linears = attention(f"{at}.self_attn", shape, bias=bias) | gated_mlp(f"{at}.mlp", shape)
        return LayerRecord(linears, {NormSlot.ATTENTION: norm(f"{at}.input_layernorm", shape.hidden)})

    tied = config.flag("tie_word_embeddings", True)
    final_norm = norm("model.norm", shape.hidden)
    return decoder(
        shape,
        blocks(shape, block),
        outer_record(shape, embedding="model.embed_tokens", final_norm=final_norm, tied=tied),
        norm_kind=NormKind.LAYER,
        eps=config.positive("layer_norm_eps", 1e-5),
        activation=read_activation(config),
        rope=read_rope(config, max_positions=shape.max_positions, theta=500_000.0),
        rope_kind=Rope.PAIRS,
        parallel=True,
        logit_scale=config.positive("logit_scale", 0.0625),
    )
