"""Writing Q/DQ pairs into a graph: what goes into a layer, its weights and its bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from boxwright.calibration.float_model import Layer
from boxwright.calibration.layer_quantization import InputQuantization, WeightQuantization
from boxwright.core.boxes import FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedLayer:
    """A layer and the numbers of its quantization."""

    layer: Layer
    input: InputQuantization
    weight: WeightQuantization


def insert_qdq(model: ir.Model, layers: Mapping[str, QuantizedLayer]) -> None:
    """Quantize the inputs and weights of layers, in place.

    Layers that share an `InputQuantization` (the same object) share its Q/DQ pair, so that the engine quantizes the
    tensor once; other readers of the tensor keep the float one.

    Args:
        model: with the layers' nodes by name.
        layers: to quantize, by the name of their node.
    """
    writer = QdqWriter(model)
    for node in list(model.graph):
        if node.name in layers:
            quantized = layers[node.name]
            writer.quantize_input(node, quantized)
            writer.quantize_weight(node, quantized)
            writer.change_bias(node, quantized)
    writer.remove_unused_initializers()


class QdqWriter:
    """Adds nodes and initializers to a graph, each once."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._dequantized: dict[tuple[ir.Value, int], ir.Value] = {}

    def quantize_input(self, node: ir.Node, quantized: QuantizedLayer) -> None:
        value = node.inputs[0]
        assert value is not None
        key = (value, id(quantized.input))
        if key not in self._dequantized:
            self._dequantized[key] = self._add_pair(node, value, quantized)
        node.replace_input_with(0, self._dequantized[key])

    def quantize_weight(self, node: ir.Node, quantized: QuantizedLayer) -> None:
        name, weight = f"{node.name}/weight", quantized.weight
        values, axis = weight.values, 0
        if _has_inputs_first(node):
            values, axis = np.ascontiguousarray(values.T), 1
        scales = self.initializer(f"{name}_scale", weight.scales)
        zeros = self.initializer(f"{name}_zero_point", np.zeros(len(weight.scales), dtype=np.int8))
        integers = self.initializer(f"{name}_quantized", values)
        node.replace_input_with(1, self.insert(node, "DequantizeLinear", [integers, scales, zeros], name, axis=axis))

    def change_bias(self, node: ir.Node, quantized: QuantizedLayer) -> None:
        change = quantized.weight.bias_change
        if not change.any() or node.op_type == "MatMul":
            return
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        tensor = None if bias is None else ir.convenience.get_const_tensor(bias)
        if bias is not None and tensor is None:
            return  # computed by the graph
        old: FloatArray = np.zeros_like(change) if tensor is None else tensor.numpy().astype(np.float32)
        new = self.initializer(f"{node.name}/bias", old + change.reshape(old.shape))
        if len(node.inputs) > 2:
            node.replace_input_with(2, new)
        else:
            node.resize_inputs(3)
            node.replace_input_with(2, new)

    def remove_unused_initializers(self) -> None:
        for name, value in list(self._graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del self._graph.initializers[name]

    def _add_pair(self, node: ir.Node, value: ir.Value, quantized: QuantizedLayer) -> ir.Value:
        """Q and DQ of a tensor, and before them the factors of its channels."""
        layer, quantization = quantized.layer, quantized.input
        name = f"{value.name}/{layer.kind}"
        if quantization.factors is not None:
            value = self.insert(node, "Mul", [value, self._inverse_factors(name, value, quantized)], f"{name}_scaled")
        scale = self.initializer(f"{name}_scale", np.array(quantization.scale, dtype=np.float32))
        zero_point = np.array(quantization.zero_point, dtype=quantization.activation_type)
        zero = self.initializer(f"{name}_zero_point", zero_point)
        integers = self.insert(node, "QuantizeLinear", [value, scale, zero], f"{name}_quantized")
        return self.insert(node, "DequantizeLinear", [integers, scale, zero], f"{name}_dequantized")

    def _inverse_factors(self, name: str, value: ir.Value, quantized: QuantizedLayer) -> ir.Value:
        assert quantized.input.factors is not None
        inverse = (1 / quantized.input.factors).astype(np.float32)
        if quantized.layer.kind != "matmul":
            inverse = inverse.reshape(1, -1, *[1] * (quantized.layer.weight.ndim - 2))
        return self.initializer(f"{name}_inverse_factors", inverse)

    def insert(
        self, before: ir.Node, op_type: str, inputs: list[ir.Value], output: str, axis: int | None = None
    ) -> ir.Value:
        attributes = {} if axis is None else {"axis": axis}
        node = ir.node(op_type, inputs, attributes=attributes, name=f"{output}/{op_type}")
        node.outputs[0].name = output
        self._graph.insert_before(before, node)
        return node.outputs[0]

    def initializer(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value


def _has_inputs_first(node: ir.Node) -> bool:
    """Whether the weight of this node is (I, O) rather than (O, I, ...)."""
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 0)
