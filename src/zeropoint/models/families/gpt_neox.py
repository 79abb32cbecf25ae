"""GPT-NeoX and Pythia: attention and MLP in parallel, each with its own layer norm; a fused query-key-value matrix,
interleaved by head; rotation of a quarter of each head (arXiv:2204.06745)."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import Linears, blocks, decoder, linear, norm, outer_record, plain_mlp, pre_norms
from zeropoint.models.rope import read_rope_under
from zeropoint.models.shape import Shape, read_activation, read_shape
from zeropoint.models.spec import LayerRecord, LinearSlot, ModelSpec, NormKind, Rows


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config, grouped=False, own_head_dim=False)
    bias, parallel = config.flag("attention_bias", True), config.flag("use_parallel_residual", True)

    def block(_: int, at: str) -> LayerRecord:
        linears = _attention(f"{at}.attention", shape, bias=bias)
        linears |= plain_mlp(f"{at}.mlp", shape, "dense_h_to_4h", "dense_4h_to_h")
        return LayerRecord(linears, pre_norms(at, shape, bias=True))

    final_norm = norm("gpt_neox.final_layer_norm", shape.hidden, bias=True)
    tied = config.flag("tie_word_embeddings", False)
    rope = read_rope_under(
        config, ("rotary_emb_base", 1e4), ("rotary_pct", 0.25), max_positions=shape.max_positions
    )
    return decoder(
        shape,
        blocks(shape, block, "gpt_neox.layers"),
        outer_record(shape, embedding="gpt_neox.embed_in", final_norm=final_norm, tied=tied),
        norm_kind=NormKind.LAYER,
        eps=config.positive("layer_norm_eps", 1e-5),
        activation=read_activation(config, default="gelu"),
        rope=rope,
        gated=False,
        parallel=parallel,
        prefix="gpt_neox.",
        aliases={"lm_head.weight": "embed_out.weight"},
    )


def _attention(at: str, shape: Shape, *, bias: bool) -> Linears:
    """Return the projections of attention; the rows of the fused matrix are `[heads, 3, head_dim]`."""
    slots = (LinearSlot.Q, LinearSlot.K, LinearSlot.V)
    projections = {
        slot: linear(
            f"{at}.query_key_value",
            (shape.queries, shape.hidden),
            bias=bias,
            rows=Rows(part * shape.head_dim, shape.head_dim, 3 * shape.head_dim, shape.heads),
        )
        for part, slot in enumerate(slots)
    }
    return {**projections, LinearSlot.O: linear(f"{at}.dense", (shape.hidden, shape.queries), bias=bias)}
