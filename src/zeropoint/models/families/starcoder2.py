"""StarCoder 2: layer norms, biases in all linear layers, GELU MLP without a gate (arXiv:2402.19173)."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import attention, blocks, decoder, norm, outer_record, plain_mlp, pre_norms
from zeropoint.models.rope import read_rope
from zeropoint.models.shape import read_activation, read_shape, read_window
from zeropoint.models.spec import LayerRecord, ModelSpec, NormKind


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config, kv_heads=2)
    bias, window = config.flag("use_bias", True), read_window(config, default=None)

    def block(_: int, at: str) -> LayerRecord:
        linears = attention(f"{at}.self_attn", shape, bias=bias)
        linears |= plain_mlp(f"{at}.mlp", shape, "c_fc", "c_proj", bias=bias)
        return LayerRecord(linears, pre_norms(at, shape, bias=True), window)

    final_norm = norm("model.norm", shape.hidden, bias=True)
    tied = config.flag("tie_word_embeddings", True)
    return decoder(
        shape,
        blocks(shape, block),
        outer_record(shape, embedding="model.embed_tokens", final_norm=final_norm, tied=tied),
        norm_kind=NormKind.LAYER,
        eps=config.positive("norm_epsilon", 1e-5),
        activation=read_activation(config, default="gelu_pytorch_tanh"),
        rope=read_rope(config, max_positions=shape.max_positions),
        gated=False,
    )
