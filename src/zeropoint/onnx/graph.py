"""`Graph`, a builder of ONNX graphs that shares equal nodes and equal constants.

Two calls with the same operation and inputs return the same node. For example, the query, key and value projections
each call for the limbs of the same input, and the graph computes them once.
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
    """An ONNX graph under construction. A value is represented by its name in the graph, a `str`."""

    def __init__(self, data: DataWriter) -> None:
        self._data = data
        self._nodes: list[NodeProto] = []
        self._tensors: dict[str, TensorProto] = {}
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []
        self._names: dict[Hashable, str] = {}

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Declare an input of the graph and return its name. A `str` in `shape` is a symbolic dimension."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Declare an output of the graph and return its name. A `str` in `shape` is a symbolic dimension."""
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Return the output of an operation with one output. Adds a node unless the graph has an equal one."""
        key = (kind, inputs, domain, repr(sorted(attributes.items())))
        if key not in self._names:
            self._names[key] = f"{kind}_{len(self._nodes)}"
            self.node(kind, inputs, [self._names[key]], domain=domain, **attributes)
        return self._names[key]

    def node(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> None:
        """Add a node with the given output names."""
        self._nodes.append(
            helper.make_node(kind, inputs, outputs, name=outputs[0], domain=domain, **attributes)
        )

    def constant(self, values: Any, dtype: type[np.generic] = np.float32) -> str:
        """Return the name of a small tensor stored in the graph itself. Adds one unless the graph has an equal one."""
        array = np.asarray(values, dtype)
        key = (array.tobytes(), array.shape, array.dtype.str)
        if key not in self._names:
            name = self._names[key] = f"constant_{len(self._tensors)}"
            self._tensors[name] = numpy_helper.from_array(array, name)
        return self._names[key]

    def tensor(self, name: str, make: Callable[[], NDArray[Any]]) -> str:
        """Return `name` after making sure that the data file holds the tensor: `make` runs on the first call only."""
        if name not in self._tensors:
            self._tensors[name] = self._data.add(name, make())
        return name

    def holds(self, name: str) -> bool:
        """Return whether the graph has a tensor of this name."""
        return name in self._tensors

    def model(self, producer: str, version: str) -> ModelProto:
        """Return the finished model."""
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
