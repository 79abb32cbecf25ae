"""Phi 1, 1.5 and 2: attention and MLP in parallel after one layer norm, biases in all linear layers, rotation of half
of each head (arXiv:2309.05463)."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import attention, blocks, decoder, norm, outer_record, plain_mlp
from zeropoint.models.rope import read_rope
from zeropoint.models.shape import read_activation, read_shape
from zeropoint.models.spec import LayerRecord, ModelSpec, NormKind, NormSlot


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config)
    config.only("qk_layernorm", False)

    def block(_: int, at: str) -> LayerRecord:
        linears = attention(f"{at}.self_attn", shape, bias=True, out="dense")
        linears |= plain_mlp(f"{at}.mlp", shape, "fc1", "fc2")
        return LayerRecord(
            linears, {NormSlot.ATTENTION: norm(f"{at}.input_layernorm", shape.hidden, bias=True)}
        )

    final_norm = norm("model.final_layernorm", shape.hidden, bias=True)
    config.only("tie_word_embeddings", False)  # a tied head with its own bias is not supported
    return decoder(
        shape,
        blocks(shape, block),
        outer_record(
            shape, embedding="model.embed_tokens", final_norm=final_norm, tied=False, head_bias=True
        ),
        norm_kind=NormKind.LAYER,
        eps=config.positive("layer_norm_eps", 1e-5),
        activation=read_activation(config, default="gelu_new"),
        rope=read_rope(config, max_positions=shape.max_positions, partial=0.5),
        gated=False,
        parallel=True,
    )
