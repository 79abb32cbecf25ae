"""A graph as it is written down: an operation asked for twice is one node, a constant asked for twice one tensor.

That is all the sharing there is: query, key and value projections ask for the digits of the same input and get one
set of nodes, without knowing of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from zeropoint.onnx.data import DataWriter

#: ONNX 1.16; ONNX Runtime reads it from 1.18 on.
OPSET, IR_VERSION = 21, 10
CONTRIB = "com.microsoft"


class Graph:
    """Nodes and tensors in the making. Values are the names of what a node computes."""

    def __init__(self, data: DataWriter) -> None:
        self._data = data
        self._nodes: list[NodeProto] = []
        self._tensors: dict[str, TensorProto] = {}
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []
        self._known: dict[Hashable, str] = {}

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """The value of an operation with one output."""
        key = (kind, inputs, domain, repr(sorted(attributes.items())))
        if key not in self._known:
            self._known[key] = f"{kind}_{len(self._nodes)}"
            self.node(kind, inputs, [self._known[key]], domain=domain, **attributes)
        return self._known[key]

    def node(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> None:
        """An operation whose outputs are named by the caller."""
        self._nodes.append(
            helper.make_node(kind, inputs, outputs, name=outputs[0], domain=domain, **attributes)
        )

    def constant(self, values: Any, dtype: type[np.generic] = np.float32) -> str:
        """A small tensor within the graph itself."""
        array = np.asarray(values, dtype)
        key = (array.tobytes(), array.shape, array.dtype.str)
        if key not in self._known:
            name = self._known[key] = f"constant_{len(self._tensors)}"
            self._tensors[name] = numpy_helper.from_array(array, name)
        return self._known[key]

    def tensor(self, name: str, make: Callable[[], NDArray[Any]]) -> str:
        """A tensor of the data file, made and written when first asked for."""
        if name not in self._tensors:
            self._tensors[name] = self._data.add(name, make())
        return name

    def holds(self, name: str) -> bool:
        return name in self._tensors

    def model(self, producer: str, version: str) -> ModelProto:
        graph: GraphProto = helper.make_graph(
            self._nodes, "decoder", self._inputs, self._outputs, list(self._tensors.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=IR_VERSION,
            producer_name=producer,
            producer_version=version,
        )
