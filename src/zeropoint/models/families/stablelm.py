"""StableLM: layer norms, gated MLP, rotation of a quarter of each head; some models have parallel attention and MLP."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import attention, blocks, decoder, gated_mlp, norm, outer_record, pre_norms
from zeropoint.models.rope import read_rope
from zeropoint.models.shape import read_activation, read_shape
from zeropoint.models.spec import LayerRecord, ModelSpec, NormKind, NormSlot


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config, own_head_dim=False)
    bias, parallel = config.flag("use_qkv_bias", False), config.flag("use_parallel_residual", False)
    config.only("qk_layernorm", False)

    def block(_: int, at: str) -> LayerRecord:
        linears = attention(f"{at}.self_attn", shape, bias=bias, out_bias=False) | gated_mlp(
            f"{at}.mlp", shape
        )
        norms = pre_norms(at, shape, bias=True)
        if parallel:  # attention and MLP have the same norm
            del norms[NormSlot.MLP]
        return LayerRecord(linears, norms)

    tied = config.flag("tie_word_embeddings", False)
    final_norm = norm("model.norm", shape.hidden, bias=True)
    return decoder(
        shape,
        blocks(shape, block),
        outer_record(shape, embedding="model.embed_tokens", final_norm=final_norm, tied=tied),
        norm_kind=NormKind.LAYER,
        eps=config.positive("layer_norm_eps", 1e-5),
        activation=read_activation(config),
        rope=read_rope(config, max_positions=shape.max_positions, partial=0.25),
        parallel=parallel,
    )
