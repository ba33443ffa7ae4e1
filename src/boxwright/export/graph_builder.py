"""A small builder of ONNX nodes, so that generated graphs read like formulas."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

# What `GraphBuilder.op` takes: a value, or a number or list that becomes a constant.
Operand = ir.Value | float | int | list[int] | list[float] | None


class GraphBuilder:
    """Collects nodes in the order in which they are made.

    Args:
        prefix: of the names of all nodes and values.
    """

    def __init__(self, prefix: str) -> None:
        self.nodes: list[ir.Node] = []
        self._prefix = prefix
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def op(self, op_type: str, *inputs: Operand, **attributes: Any) -> ir.Value:
        """Add a node with one output and return that output."""
        return self.ops(op_type, inputs, 1, attributes)[0]

    def top_k(self, values: ir.Value, k: Operand, *, largest: bool = True) -> tuple[ir.Value, ir.Value]:
        """Sorted values and their indices along the last axis; `k` is a one-element int64 vector."""
        top, indices = self.ops("TopK", (values, k), 2, {"axis": -1, "largest": int(largest), "sorted": 1})
        return top, indices

    def ops(
        self, op_type: str, inputs: Sequence[Operand], num_outputs: int, attributes: dict[str, Any]
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs and return them."""
        operands = [value if value is None else self.value(value) for value in inputs]
        node = ir.node(op_type, operands, attributes=attributes, num_outputs=num_outputs)
        self._append(node)
        return node.outputs

    def value(self, operand: ir.Value | float | int | list[int] | list[float]) -> ir.Value:
        """A value as it is; a float as a float32 scalar, an int as an int64 scalar, a list as a vector of these."""
        if isinstance(operand, ir.Value):
            return operand
        first = operand[0] if isinstance(operand, list) and operand else operand
        return self.constant(np.array(operand, dtype=np.float32 if isinstance(first, float) else np.int64))

    def constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        """A Constant node's output, the same one for equal arrays."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            node = ir.node("Constant", [], attributes={"value": ir.tensor(array)})
            self._append(node)
            self._constants[key] = node.outputs[0]
        return self._constants[key]

    def _append(self, node: ir.Node) -> None:
        number = len(self.nodes)
        node.name = f"{self._prefix}/{node.op_type}_{number}"
        for index, output in enumerate(node.outputs):
            output.name = f"{self._prefix}/{node.op_type.lower()}_{number}" + (f"_{index}" if index else "")
        self.nodes.append(node)


def free_names(graph: ir.Graph, names: Collection[str], owners: Sequence[ir.Value] = ()) -> None:
    """Rename whatever has one of these names and is not among the owners."""
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.name in names and not any(value is owner for owner in owners):
            value.name = f"source/{value.name}"
