"""A naive float32 forward step of a `ModelSpec` in numpy: what the record means, without the C++ engine.

One sequence, no cache, an N x N score matrix: as short as the mathematics of native/include/zeropoint.h.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from zeropoint.models.spec import (
    MODEL,
    Activation,
    LayerRecord,
    LinearSlot,
    LinearSource,
    ModelSpec,
    NormKind,
    NormSlot,
    NormSource,
    Rope,
)

Floats = NDArray[np.float32]
Stored = Mapping[str, Floats]


class Reference:
    """`stored` holds a checkpoint's tensors in float32 by name, `[in, out]` where the model's code has it so."""

    def __init__(self, record: ModelSpec, stored: Stored) -> None:
        self.record, self.config, self.stored = record, record.config, stored

    def logits(self, tokens: NDArray[np.int64]) -> Floats:
        """`[T]` -> `[T, vocab]`."""
        model, config = self.record.model, self.config
        x = self.weight(model.linears[LinearSlot.EMBEDDING])[tokens] * config.embedding_scale
        if LinearSlot.POSITIONS in model.linears:
            x = x + self.weight(model.linears[LinearSlot.POSITIONS])[: len(tokens)]
        x = self.norm(x, model, NormSlot.EMBEDDING)
        for layer in self.record.layers:
            x = self.layer(x, layer)
        out = self.linear(self.norm(x, model, NormSlot.FINAL), model.linears[LinearSlot.HEAD])
        return softcap(out * config.logit_scale, config.logit_softcap)

    def layer(self, x: Floats, layer: LayerRecord) -> Floats:
        scale = self.config.residual_scale
        first = self.norm(x, layer, NormSlot.ATTENTION)
        attended = self.norm(self.attention(first, layer), layer, NormSlot.POST_ATTENTION) * scale
        if not self.config.parallel:
            x = x + attended
        if self.config.parallel and NormSlot.MLP not in layer.norms:
            second = first
        else:
            second = self.norm(x, layer, NormSlot.MLP)
        x = x + self.norm(self.mlp(second, layer), layer, NormSlot.POST_MLP) * scale
        return x + attended if self.config.parallel else x

    def attention(self, x: Floats, layer: LayerRecord) -> Floats:
        config, count = self.config, len(x)
        heads = {LinearSlot.Q: config.heads, LinearSlot.K: config.kv_heads, LinearSlot.V: config.kv_heads}
        q, k, v = (self.heads(x, layer, slot, number) for slot, number in heads.items())
        q, k = self.turn(q, layer.table), self.turn(k, layer.table)
        k, v = (np.repeat(each, config.heads // config.kv_heads, axis=1) for each in (k, v))
        scores = softcap(np.einsum("ihd,jhd->hij", q, k) * config.attention_scale, config.attention_softcap)
        distance = np.arange(count)[:, None] - np.arange(count)[None]
        seen = (distance >= 0) & (distance < (layer.window or count))
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hij,jhd->ihd", weights, v).reshape(count, -1)
        return self.linear(mixed, layer.linears[LinearSlot.O])

    def heads(self, x: Floats, layer: LayerRecord, slot: LinearSlot, number: int) -> Floats:
        """`[T, heads, head_dim]`, normed where the model does so."""
        out = self.linear(x, layer.linears[slot])
        norm = {LinearSlot.Q: NormSlot.Q, LinearSlot.K: NormSlot.K}.get(slot)
        source = layer.norms.get(norm) if norm is not None else None
        if norm is None or source is None:
            return out.reshape(len(x), number, self.config.head_dim)
        if source.size == self.config.head_dim:
            out = out.reshape(len(x), number, self.config.head_dim)
        return self.norm(out, layer, norm).reshape(len(x), number, self.config.head_dim)

    def turn(self, x: Floats, table: int) -> Floats:
        if self.config.rope is Rope.NONE:
            return x
        rope, dim = self.record.ropes[table], self.config.rotary_dim
        angles = np.arange(len(x))[:, None] * rope.inverse_frequency[None].astype(np.float64)
        cosine, sine = np.cos(angles)[:, None] * rope.scale, np.sin(angles)[:, None] * rope.scale
        out = x.copy()
        if self.config.rope is Rope.HALVES:
            first, second = slice(0, dim // 2), slice(dim // 2, dim)
        else:
            first, second = slice(0, dim, 2), slice(1, dim, 2)
        out[..., first] = x[..., first] * cosine - x[..., second] * sine
        out[..., second] = x[..., second] * cosine + x[..., first] * sine
        return out

    def mlp(self, x: Floats, layer: LayerRecord) -> Floats:
        up = self.linear(x, layer.linears[LinearSlot.UP])
        if self.config.gated:
            up = activate(self.linear(x, layer.linears[LinearSlot.GATE]), self.config.activation) * up
        else:
            up = activate(up, self.config.activation)
        return self.linear(up, layer.linears[LinearSlot.DOWN])

    def norm(self, x: Floats, layer: LayerRecord, slot: NormSlot) -> Floats:
        source: NormSource | None = layer.norms.get(slot)
        if source is None:
            return x
        if self.config.norm is NormKind.LAYER:
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config.norm_eps)
        if source.weight is not None:
            x = x * (self.stored[source.weight] + float(source.one_plus))
        return x if source.bias is None else x + self.stored[source.bias]

    def weight(self, source: LinearSource) -> Floats:
        values = self.stored[source.weight]
        values = values.T if source.transposed else values
        values = values if source.rows is None else values[source.rows.index()]
        assert values.shape == source.shape
        return values

    def linear(self, x: Floats, source: LinearSource) -> Floats:
        out = x @ self.weight(source).T
        if source.bias is None:
            return out
        bias = self.stored[source.bias]
        return out + (bias if source.rows is None else bias[source.rows.index()])


def softcap(x: Floats, cap: float) -> Floats:
    return np.tanh(x / cap) * cap if cap else x


def activate(x: Floats, kind: Activation) -> Floats:
    if kind is Activation.SILU:
        return x / (1 + np.exp(-x))
    if kind is Activation.GELU:
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    if kind is Activation.GELU_TANH:
        return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    return np.maximum(x, 0)


__all__ = ["MODEL", "Reference"]
