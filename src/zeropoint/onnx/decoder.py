"""Construction of the ONNX graph of a causal language model from a model spec, as the native engine computes it.

Inputs and outputs are named as in optimum and onnxruntime-genai: inputs `input_ids`, `attention_mask` and
`past_key_values.N.key`, outputs `logits` and `present.N.key`. Positions follow from the mask. Attention is
com.microsoft.GroupQueryAttention, which rotates queries and keys, masks, applies sliding windows and appends to the KV
cache. The shorter rows of a batch are padded on the right. native/include/zeropoint.h defines the computation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from onnx import TensorProto

from zeropoint.errors import ArtifactError
from zeropoint.models.spec import (
    Activation,
    DecoderConfig,
    LayerRecord,
    LinearSlot,
    LinearSource,
    ModelSpec,
    NormKind,
    NormSlot,
    NormSource,
    Rope,
    Rows,
)
from zeropoint.onnx.data import DataReader
from zeropoint.onnx.graph import CONTRIB, Graph
from zeropoint.onnx.weights import Way
from zeropoint.progress import Progress
from zeropoint.runtime.native.packed_weights import take_rows
from zeropoint.values import arrays
from zeropoint.values.qtensor import QuantizedTensor, Weight

Read = Callable[[str], Weight]
#: A projection's weight: the stored name, and the rows of the stored weight (None: all).
Part = tuple[str, Rows | None]
Ways = Mapping[Part, Way]

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def problems(record: ModelSpec) -> Iterator[str]:
    """Yield each reason why ONNX Runtime's GroupQueryAttention cannot run the model on CPUs."""
    config = record.config
    turns = config.rope != Rope.NONE
    step = 16 if turns else 8
    if config.head_dim % step:
        yield f"ONNX Runtime's attention wants heads of a multiple of {step} channels, not {config.head_dim}"
    if turns and config.rotary_dim % 16:
        yield f"ONNX Runtime's attention turns multiples of 16 channels of a head, not {config.rotary_dim}"


def part_of(source: LinearSource, read: Read) -> Weight:
    """Return a projection's weight `[out, in]`, taken from a fused weight if the projection is a part of one.

    Raises `ArtifactError` if the shape is not that of the model spec.
    """
    weight = read(source.weight)
    if not isinstance(weight, QuantizedTensor) and weight.ndim == 2 and source.transposed:
        weight = weight.T
    if source.rows is not None:
        if source.rows.index().max() >= weight.shape[0]:
            raise ArtifactError(f"{source.weight} has only {weight.shape[0]} rows")
        weight = take_rows(weight, source.rows)
    if tuple(weight.shape) != source.shape:
        raise ArtifactError(
            f"{source.weight} has the shape {tuple(weight.shape)}, and the config asks for {source.shape}"
        )
    return weight


def vector_of(name: str, read: Read, size: int) -> arrays.Floats:
    """Return a vector as float32 `[size]`. Raises `ArtifactError` for any other shape."""
    weight = read(name)
    if isinstance(weight, QuantizedTensor) or weight.shape != (size,):
        raise ArtifactError(f"{name} is not a vector of {size} floats, as the config asks for")
    return weight.astype(np.float32)


def tensor_name(source: LinearSource) -> str:
    """Return the name of a projection's main tensor: the weight's name, plus the first row if the weight is fused."""
    if source.rows is None:
        return source.weight
    return f"{source.weight}.{source.rows.start}"


@dataclass(slots=True, eq=False)
class Decoder:
    """The writer of a model spec's graph. `ways` holds each weight's layout; `read` reads the artifact's weights."""

    record: ModelSpec
    ways: Ways
    read: Read
    graph: Graph

    @property
    def config(self) -> DecoderConfig:
        """Return the config of the model spec."""
        return self.record.config

    def write(self, progress: Progress) -> None:
        """Write all nodes, inputs and outputs. Calls `progress` before each transformer block."""
        graph, config = self.graph, self.config
        ids = graph.input("input_ids", INT64, ["batch_size", "sequence_length"])
        mask = graph.input("attention_mask", INT64, ["batch_size", "total_sequence_length"])
        graph.output("logits", FLOAT, ["batch_size", "sequence_length", config.vocab])
        x = self._embed(ids, mask)
        for number, layer in enumerate(self.record.layers):
            progress(f"write layer {number}", number, len(self.record.layers))
            x = self._block(number, layer, x, mask)
        model = self.record.model
        x = self._norm(model, NormSlot.FINAL, x)
        logits = self._linear(model.linears[LinearSlot.HEAD], x)
        logits = _softcap(graph, self._scaled(logits, config.logit_scale), config.logit_softcap)
        graph.node("Identity", [logits], ["logits"])

    def _embed(self, ids: str, mask: str) -> str:
        """Return the first block's input: token embeddings, plus position embeddings if the model has them."""
        graph, model = self.graph, self.record.model
        x = self._scaled(self._rows(model.linears[LinearSlot.EMBEDDING], ids), self.config.embedding_scale)
        if positions := model.linears.get(LinearSlot.POSITIONS):
            end, one = graph.op("Shape", mask, start=1, end=2), graph.constant(1, np.int64)
            start = graph.op("Sub", end, graph.op("Shape", ids, start=1, end=2))
            scalars = [graph.op("Squeeze", each) for each in (start, end)]
            where = graph.op("Range", *scalars, one)
            where = graph.op("Unsqueeze", where, graph.constant([0], np.int64))
            x = graph.op("Add", x, self._rows(positions, where))
        return self._norm(model, NormSlot.EMBEDDING, x)

    def _block(self, number: int, layer: LayerRecord, x: str, mask: str) -> str:
        """Return the output of a transformer block for the input `x`."""
        config, graph = self.config, self.graph
        before = self._norm(layer, NormSlot.ATTENTION, x)
        attended = self._norm(layer, NormSlot.POST_ATTENTION, self._attention(number, layer, before, mask))
        attended = self._scaled(attended, config.residual_scale)
        if config.parallel:
            mlp_input = self._norm(layer, NormSlot.MLP, x) if NormSlot.MLP in layer.norms else before
            return graph.op("Add", graph.op("Add", x, attended), self._mlp(layer, mlp_input))
        x = graph.op("Add", x, attended)
        y = self._mlp(layer, self._norm(layer, NormSlot.MLP, x))
        y = self._norm(layer, NormSlot.POST_MLP, y)
        return graph.op("Add", x, self._scaled(y, config.residual_scale))

    def _attention(self, number: int, layer: LayerRecord, x: str, mask: str) -> str:
        """Return the attention output, with the output projection applied; declare the cache's inputs and outputs."""
        graph, config = self.graph, self.config
        query, key, value = (
            self._linear(layer.linears[slot], x) for slot in (LinearSlot.Q, LinearSlot.K, LinearSlot.V)
        )
        query = self._head_norm(layer, NormSlot.Q, query, config.heads)
        key = self._head_norm(layer, NormSlot.K, key, config.kv_heads)
        cache: list[int | str] = ["batch_size", config.kv_heads, "past_sequence_length", config.head_dim]
        grown: list[int | str] = ["batch_size", config.kv_heads, "total_sequence_length", config.head_dim]
        past = [graph.input(f"past_key_values.{number}.{each}", FLOAT, cache) for each in ("key", "value")]
        present = [graph.output(f"present.{number}.{each}", FLOAT, grown) for each in ("key", "value")]
        graph.node(
            "GroupQueryAttention",
            [query, key, value, *past, *self._lengths(mask), *self._rotation(layer)],
            [f"attention_{number}", *present],
            domain=CONTRIB,
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            scale=config.attention_scale,
            softcap=config.attention_softcap,
            local_window_size=layer.window or -1,
            do_rotary=int(config.rope != Rope.NONE),
            rotary_interleaved=int(config.rope == Rope.PAIRS),
        )
        return self._linear(layer.linears[LinearSlot.O], f"attention_{number}")

    def _lengths(self, mask: str) -> tuple[str, str]:
        """Return the position of each row's last token, int32 `[batch]`, and the total number of positions."""
        graph, one = self.graph, self.graph.constant(1, np.int64)
        tokens = graph.op("ReduceSum", mask, graph.constant([1], np.int64), keepdims=0)
        last = graph.op("Cast", graph.op("Sub", tokens, one), to=TensorProto.INT32)
        total = graph.op("Squeeze", graph.op("Shape", mask, start=1, end=2))
        return last, graph.op("Cast", total, to=TensorProto.INT32)

    def _rotation(self, layer: LayerRecord) -> tuple[str, ...]:
        """Return a layer's cosine and sine tables `[positions, rotary_dim / 2]`, none without a rotation."""
        if self.config.rope == Rope.NONE:
            return ()
        table = self.record.ropes[layer.table]

        def angles() -> arrays.Floats:
            """Return the rotation angles of every position."""
            positions = np.arange(self.config.max_positions, dtype=np.float32)
            return np.outer(positions, table.inverse_frequency)

        scale = np.float32(table.scale)
        cosine = self.graph.tensor(f"rotation.{layer.table}.cosine", lambda: np.cos(angles()) * scale)
        return cosine, self.graph.tensor(f"rotation.{layer.table}.sine", lambda: np.sin(angles()) * scale)

    def _mlp(self, layer: LayerRecord, x: str) -> str:
        """Return the MLP's output for the input `x`."""
        up = self._linear(layer.linears[LinearSlot.UP], x)
        if self.config.gated:
            gate = self._linear(layer.linears[LinearSlot.GATE], x)
            hidden = self.graph.op("Mul", _activated(self.graph, gate, self.config.activation), up)
        else:
            hidden = _activated(self.graph, up, self.config.activation)
        return self._linear(layer.linears[LinearSlot.DOWN], hidden)

    # -- weights ----------------------------------------------------------------------------------

    def _linear(self, source: LinearSource, x: str) -> str:
        """Return a projection of `x`, with its bias."""
        y = self._way(source).linear(self.graph, tensor_name(source), x)
        if source.bias is None:
            return y
        return self.graph.op("Add", y, self._bias(source))

    def _rows(self, source: LinearSource, ids: str) -> str:
        """Return an embedding's rows for `ids`."""
        return self._way(source).rows(self.graph, tensor_name(source), ids)

    def _way(self, source: LinearSource) -> Way:
        """Return a weight's layout. The first call for a weight writes its tensors."""
        way, name = self.ways[source.weight, source.rows], tensor_name(source)
        if not self.graph.holds(name):
            for suffix, values in way.tensors(part_of(source, self.read)):
                self.graph.tensor(name + suffix, partial(np.asarray, values))
        return way

    def _bias(self, source: LinearSource) -> str:
        """Return the bias tensor of a projection that has one."""
        name, values = bias_of(source, self.read)
        return self.graph.tensor(name, lambda: values)

    def _norm(self, layer: LayerRecord, slot: NormSlot, x: str) -> str:
        """Return the norm of `x`, or `x` itself if the slot has no norm."""
        norm = layer.norms.get(slot)
        if norm is None:
            return x
        inputs = [x, self._norm_weight(norm)]
        if self.config.norm == NormKind.RMS:
            return self.graph.op(
                "SimplifiedLayerNormalization", *inputs, axis=-1, epsilon=self.config.norm_eps
            )
        if bias := norm.bias:
            inputs.append(self.graph.tensor(bias, lambda: vector_of(bias, self.read, norm.size)))
        return self.graph.op("LayerNormalization", *inputs, axis=-1, epsilon=self.config.norm_eps)

    def _head_norm(self, layer: LayerRecord, slot: NormSlot, x: str, heads: int) -> str:
        """Return the norm of queries or keys, over the channels of each head or over all channels."""
        norm = layer.norms.get(slot)
        if norm is None or norm.size == heads * self.config.head_dim:
            return self._norm(layer, slot, x)
        apart = self.graph.constant([0, 0, heads, self.config.head_dim], np.int64)
        normed = self._norm(layer, slot, self.graph.op("Reshape", x, apart))
        return self.graph.op("Reshape", normed, self.graph.constant([0, 0, -1], np.int64))

    def _norm_weight(self, norm: NormSource) -> str:
        """Return a norm's weight tensor; ones if the norm has no weight."""
        if norm.weight is None:
            return self.graph.tensor(f"ones.{norm.size}", lambda: np.ones(norm.size, np.float32))
        return self.graph.tensor(norm.weight, lambda: norm_of(norm, self.read))

    def _scaled(self, x: str, factor: float) -> str:
        """Return `x` times `factor`."""
        return x if factor == 1 else self.graph.op("Mul", x, self.graph.constant(factor))


def norm_of(norm: NormSource, read: Read) -> arrays.Floats:
    """Return a norm's weight as float32, plus 1 if the norm computes with `1 + weight`."""
    assert norm.weight is not None
    values = vector_of(norm.weight, read, norm.size)
    return values + np.float32(1) if norm.one_plus else values


def bias_of(source: LinearSource, read: Read) -> tuple[str, arrays.Floats]:
    """Return the name and values of a projection's bias, taken from a fused bias if the weight is fused."""
    assert source.bias is not None
    if source.rows is None:
        return source.bias, vector_of(source.bias, read, source.shape[0])
    whole = read(source.bias)
    if isinstance(whole, QuantizedTensor) or whole.ndim != 1 or source.rows.index().max() >= whole.size:
        raise ArtifactError(f"{source.bias} is not a vector of the rows that the config asks for")
    return f"{source.bias}.{source.rows.start}", whole[source.rows.index()].astype(np.float32)


def read_pairs(
    record: ModelSpec, ways: Ways, read: Read, data: DataReader
) -> Iterator[tuple[str, arrays.Floats, arrays.Floats]]:
    """Yield (name, values in the file, values in the artifact) for each weight, bias and norm."""
    yielded: set[Part] = set()
    for _, _, source in record.linears():
        part = (source.weight, source.rows)
        if part not in yielded:
            yielded.add(part)
            weight = part_of(source, read)
            original = (
                weight.dequantize() if isinstance(weight, QuantizedTensor) else weight.astype(np.float32)
            )
            yield source.weight, ways[part].read(data, tensor_name(source)), original
        if source.bias is not None:
            name, bias = bias_of(source, read)
            yield source.bias, data.read(name), bias
    for _, _, norm in record.norms():
        if norm.weight is not None:
            yield norm.weight, data.read(norm.weight), norm_of(norm, read)
        if norm.bias is not None:
            yield norm.bias, data.read(norm.bias), vector_of(norm.bias, read, norm.size)


def _activated(graph: Graph, x: str, kind: Activation) -> str:
    """Return the activation function of `x`."""
    if kind == Activation.SILU:
        return graph.op("Mul", x, graph.op("Sigmoid", x))
    if kind == Activation.RELU:
        return graph.op("Relu", x)
    return graph.op("Gelu", x, approximate="tanh" if kind == Activation.GELU_TANH else "none")


def _softcap(graph: Graph, x: str, cap: float) -> str:
    """Return `cap * tanh(x / cap)`; `x` itself if `cap` is 0."""
    if not cap:
        return x
    limit = graph.constant(cap)
    return graph.op("Mul", graph.op("Tanh", graph.op("Div", x, limit)), limit)
