"""Writing Q/DQ pairs into a graph: what goes into a layer, its weights and its bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

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
        if node.name is not None and node.name in layers:
            quantized = layers[node.name]
            coarse, fine = writer.quantize_input(node, quantized)
            weight, fine_weight = writer.quantize_weight(node, quantized)
            if fine_weight is not None:
                writer.run_again(node, coarse, fine_weight, "fine_weight")
            if fine is not None:
                writer.run_again(node, fine, weight, "fine_input")
            writer.change_bias(node, quantized)
    writer.remove_unused_initializers()


class QdqWriter:
    """Adds nodes and initializers to a graph, each once."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._dequantized: dict[tuple[ir.Value, int], tuple[ir.Value, ir.Value | None]] = {}

    def quantize_input(self, node: ir.Node, quantized: QuantizedLayer) -> tuple[ir.Value, ir.Value | None]:
        """Let a layer read integers; returns these, and those of the second step where there is one."""
        value = node.inputs[0]
        assert value is not None
        key = (value, id(quantized.input))
        if key not in self._dequantized:
            self._dequantized[key] = self._add_pair(node, value, quantized)
        coarse, fine = self._dequantized[key]
        node.replace_input_with(0, coarse)
        return coarse, fine

    def quantize_weight(self, node: ir.Node, quantized: QuantizedLayer) -> tuple[ir.Value, ir.Value | None]:
        """Let a layer multiply with integers; returns these, and what they leave over where that is kept."""
        weight = quantized.weight
        coarse = self._add_weight(node, f"{node.name}/weight", weight.values, weight.scales)
        node.replace_input_with(1, coarse)
        if weight.fine_values is None:
            return coarse, None
        return coarse, self._add_weight(node, f"{node.name}/fine_weight", weight.fine_values, weight.fine_scales)

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

    def run_again(self, node: ir.Node, value: ir.Value, weight: ir.Value, what: str) -> None:
        """Add to a layer's result what it makes of another input or other weights, without its bias."""
        result = node.outputs[0]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        again = ir.node(node.op_type, [value, weight], attributes=attributes, name=f"{node.name}_{what}")
        again.outputs[0].name = f"{result.name}/{what}"
        added = ir.node("Add", [result, again.outputs[0]], name=f"{node.name}_with_{what}")
        added.outputs[0].name = f"{result.name}/with_{what}"
        for use in list(result.uses()):
            if use.node is not added:
                use.node.replace_input_with(use.idx, added.outputs[0])
        self._graph.insert_after(node, [again, added])

    def remove_unused_initializers(self) -> None:
        for name, value in list(self._graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del self._graph.initializers[name]

    def _add_weight(self, node: ir.Node, name: str, values: NDArray[np.int8], scales: FloatArray) -> ir.Value:
        axis = 0
        if _has_inputs_first(node):
            values, axis = np.ascontiguousarray(values.T), 1
        inputs = [
            self.initializer(f"{name}_quantized", values),
            self.initializer(f"{name}_scale", scales),
            self.initializer(f"{name}_zero_point", np.zeros(len(scales), dtype=np.int8)),
        ]
        return self.insert(node, "DequantizeLinear", inputs, name, axis=axis)

    def _add_pair(self, node: ir.Node, value: ir.Value, quantized: QuantizedLayer) -> tuple[ir.Value, ir.Value | None]:
        """Q and DQ of a tensor, and before them the factors of its channels; the same of what that leaves over."""
        layer, quantization = quantized.layer, quantized.input
        name = f"{value.name}/{layer.kind}{'' if quantization.fine_scale is None else '_twice'}"
        if quantization.factors is not None:
            value = self.insert(node, "Mul", [value, self._inverse_factors(name, value, quantized)], f"{name}_scaled")
        coarse = self._add_plain_pair(node, value, name, quantization, quantization.scale, quantization.zero_point)
        if quantization.fine_scale is None:
            return coarse, None
        rest = self.insert(node, "Sub", [value, coarse], f"{name}_rest")
        middle = 128 if quantization.activation_type == "uint8" else 0
        return coarse, self._add_plain_pair(node, rest, f"{name}_fine", quantization, quantization.fine_scale, middle)

    def _add_plain_pair(
        self, node: ir.Node, value: ir.Value, name: str, quantization: InputQuantization, scale: float, zero_point: int
    ) -> ir.Value:
        inputs = [
            self.initializer(f"{name}_scale", np.array(scale, dtype=np.float32)),
            self.initializer(f"{name}_zero_point", np.array(zero_point, dtype=quantization.activation_type)),
        ]
        integers = self.insert(node, "QuantizeLinear", [value, *inputs], f"{name}_quantized")
        return self.insert(node, "DequantizeLinear", [integers, *inputs], f"{name}_dequantized")

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
