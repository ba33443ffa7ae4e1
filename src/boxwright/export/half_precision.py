"""A graph whose network computes in half precision, its types saying so: what a strongly typed engine is built from.

    float32 -> [Cast] -> Conv, Relu, ... in float16 -> [Cast] -> decoding and NMS in float32

Inputs and outputs of the graph stay as they are. In float32 stay the operator DecodeNMS, written out or not, and what
places boxes: everything that is made from the proposals of a two-stage detector until their features are cut out, for
half precision cannot count the pixels of an image. Which further nodes lose too much is for `float_layers.py` to find.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import onnx_ir as ir

from boxwright.core.decode_spec import RAW_HEAD_NAMES
from boxwright.export.decode_nms.function import OP_TYPE

LARGEST_HALF = 65504.0
# Nodes that Boxwright writes begin with these: the operator, preprocessing, what fits a foreign head.
_OWN_PREFIXES = ("decode_nms/", "canvas/", "preprocess/", "postprocess/", "adopt/", "hog/")
# They sort, count or look up places, or are part of the operator itself.
_PLACES = frozenset("TopK NonMaxSuppression RoiAlign GridSample Range CumSum NonZero ArgMax ArgMin".split())
# Inputs that say where or how much, which stay in float32, by the place of the first such.
_FIRST_PARAMETER = {"Resize": 1, "QuantizeLinear": 0, "DequantizeLinear": 0}
_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def half_candidates(model: ir.Model) -> tuple[str, ...]:
    """The names of the nodes that may compute in half precision, in the order of the graph.

    Args:
        model: from `with_types`.
    """
    graph = model.graph
    heads = {value for node in graph for value in node.outputs if value.name in RAW_HEAD_NAMES}
    behind: set[ir.Value] = set()  # what is made from boxes, or comes after the raw heads
    names = []
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        own = node.op_type == OP_TYPE or str(node.name).startswith(_OWN_PREFIXES)
        follows = any(value in behind or (value in heads and value.uses()) for value in inputs) or own
        if follows and node.op_type != "RoiAlign":
            behind.update(node.outputs)
        if not follows and node.op_type not in _PLACES and _touches_float(node) and not _is_quantization(node):
            names.append(str(node.name))
    return tuple(names)


def to_half(model: ir.Model, names: Collection[str]) -> tuple[ir.Model, tuple[str, ...]]:
    """A copy in which nodes compute in float16.

    Args:
        model: from `with_types`; left as it is.
        names: of the nodes, from `half_candidates`.

    Returns:
        The copy, and the names of nodes that stayed in float32 since a constant of theirs is too large.
    """
    copy = ir.from_proto(ir.to_proto(model))
    converter = _Converter(copy.graph)
    too_large = []
    for node in list(copy.graph):
        if str(node.name) in names:
            if converter.has_too_large_constant(node):
                too_large.append(str(node.name))
            else:
                converter.convert(node)
    converter.restore_outputs()
    converter.drop_unused_constants()
    copy.graph.sort()
    return copy, tuple(too_large)


def with_types(model: ir.Model) -> ir.Model:
    """A copy in which the types of values are known, and every node has a name of its own."""
    copy = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))
    seen: set[str | None] = {None, ""}
    for index, node in enumerate(copy.graph):
        if node.name in seen:
            node.name = f"{node.op_type}_{index}"
        seen.add(node.name)
    return copy


def _touches_float(node: ir.Node) -> bool:
    """Whether a node makes float32 numbers; a Constant alone does not compute."""
    return node.op_type != "Constant" and any(value.dtype == _FLOAT for value in node.outputs)


def _is_quantization(node: ir.Node) -> bool:
    return node.op_type in ("QuantizeLinear", "DequantizeLinear")


class _Converter:
    """Changes nodes of a graph one by one, in the order of the graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._halves: dict[ir.Value, ir.Value] = {}  # of float32 values
        self._floats: dict[ir.Value, ir.Value] = {}  # of float16 values

    def has_too_large_constant(self, node: ir.Node) -> bool:
        tensors = [ir.convenience.get_const_tensor(value) for value in self._converted_inputs(node).values()]
        return any(tensor is not None and _exceeds_half(tensor.numpy()) for tensor in tensors)

    def convert(self, node: ir.Node) -> None:
        """Let a node take and give float16; its readers get float32 again until they are converted themselves."""
        for index, value in self._converted_inputs(node).items():
            node.replace_input_with(index, self._half_of(value, node))
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", int(_HALF))
        if node.op_type == "ConstantOfShape":
            tensor = node.attributes["value"].as_tensor() if "value" in node.attributes else ir.tensor([0.0])
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(tensor.numpy().astype(np.float16)))
        for output in node.outputs:
            if output.dtype == _FLOAT:
                self._give_half(node, output)

    def restore_outputs(self) -> None:
        """Give the graph's outputs their names and types back, and drop casts that nothing reads."""
        for half, full in self._floats.items():
            producer = full.producer()
            assert producer is not None
            if full.is_graph_output():
                name = half.name
                half.name, full.name = f"{name}/half", name
            elif not full.uses():
                self._graph.remove(producer, safe=True)

    def drop_unused_constants(self) -> None:
        """Leave out the float32 weights that float16 ones took the place of."""
        for name, value in list(self._graph.initializers.items()):
            if not value.uses() and not value.is_graph_input() and not value.is_graph_output():
                del self._graph.initializers[name]

    def _converted_inputs(self, node: ir.Node) -> dict[int, ir.Value]:
        end = _FIRST_PARAMETER.get(node.op_type, len(node.inputs))
        return {
            index: value for index, value in enumerate(node.inputs[:end]) if value is not None and value.dtype == _FLOAT
        }

    def _half_of(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        if value not in self._halves:
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is not None:
                self._halves[value] = self._half_constant(str(value.name), tensor.numpy())
            else:
                self._halves[value] = self._cast(value, _HALF, f"{value.name}/half")
        return self._halves[value]

    def _half_constant(self, name: str, numbers: np.ndarray) -> ir.Value:
        tensor = ir.tensor(numbers.astype(np.float16), name=f"{name}/half")
        value = ir.Value(name=tensor.name, shape=ir.Shape(numbers.shape), type=ir.TensorType(_HALF), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def _give_half(self, node: ir.Node, output: ir.Value) -> None:
        """Make an output float16, and let what reads it read a cast of it."""
        full = ir.Value(name=f"{output.name}/float", shape=output.shape, type=ir.TensorType(_FLOAT))
        cast = ir.node("Cast", [output], attributes={"to": int(_FLOAT)}, outputs=[full], name=f"{output.name}/to_float")
        ir.convenience.replace_all_uses_with(output, full, replace_graph_outputs=True)
        cast.replace_input_with(0, output)
        output.type = ir.TensorType(_HALF)
        self._graph.insert_after(node, cast)
        self._halves[full], self._floats[output] = output, full

    def _cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        result = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
        node = ir.node("Cast", [value], attributes={"to": int(dtype)}, outputs=[result], name=f"{name}/cast")
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)
        return result


def _exceeds_half(numbers: np.ndarray) -> bool:
    finite = numbers[np.isfinite(numbers)]
    return bool(finite.size) and float(np.abs(finite).max()) > LARGEST_HALF
