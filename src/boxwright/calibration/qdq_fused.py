"""Writing Q/DQ pairs for an engine that fuses a layer only where its output is quantized too: ONNX Runtime on a CPU.

On top of what `qdq` writes, everything between two quantized layers gets a pair (see `fused_regions`), and biases are
integers of the scale input * weight, as the engine's integer convolution adds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from boxwright.calibration.float_model import FloatModel
from boxwright.calibration.fused_regions import FusedRegions, find_regions
from boxwright.calibration.layer_quantization import InputQuantization
from boxwright.calibration.qdq import QdqWriter, QuantizedLayer
from boxwright.core.boxes import FloatArray
from boxwright.core.placement import LOWEST_BEFORE_SILU

_LARGEST_BIAS = 2**30
_SIGMOID = InputQuantization(factors=None, scale=float(np.float32(1 / 255)), zero_point=0, activation_type="uint8")


def fused_tensors(model: FloatModel) -> dict[str, int]:
    """The tensors, beside the layers' inputs, whose distribution `insert_fused` may ask for: axis of the channels."""
    regions = find_regions(ir.from_proto(model.raw_proto), {layer.name for layer in model.layers})
    own = {owner for owner in regions.owners.values() if owner not in regions.sigmoids}
    return {name: 1 for name in regions.owners if name in own}


def insert_fused(
    model: ir.Model, layers: Mapping[str, QuantizedLayer], ranges: Callable[[str], InputQuantization]
) -> None:
    """Quantize layers and what lies between them, in place.

    Args:
        model: with the layers' nodes by name.
        layers: to quantize, by the name of their node; factors for channels cost a way to float and back.
        ranges: gives the quantization of a tensor that `fused_tensors` names.
    """
    regions = find_regions(model, layers)
    quantizations = _quantizations(regions, layers, ranges)
    nodes = [node for node in model.graph if node.name in layers]
    values = {value.name or "": value for node in model.graph for value in node.outputs}
    writer = QdqWriter(model)
    for node in nodes:
        value = node.inputs[0]
        assert value is not None
        quantized = layers[node.name or ""]
        of_input = quantizations.get(value.name or "")
        if of_input is None or quantized.input.factors is not None:  # factors are its own, not the tensor's
            writer.quantize_input(node, quantized)
        else:
            quantized = replace(quantized, input=of_input)
        _quantize_parameters(writer, node, quantized)
    for name, quantization in quantizations.items():
        _quantize_output(model.graph, writer, values[name], quantization)
    writer.remove_unused_initializers()


def _quantizations(
    regions: FusedRegions, layers: Mapping[str, QuantizedLayer], ranges: Callable[[str], InputQuantization]
) -> dict[str, InputQuantization]:
    """Of each tensor in the regions; where a layer reads it, that layer's."""
    by_reader = {
        quantized.layer.input_name: quantized.input for quantized in layers.values() if quantized.input.factors is None
    }
    own: dict[str, InputQuantization] = {}
    for owner in dict.fromkeys(regions.owners.values()):
        if owner in regions.sigmoids:
            own[owner] = _SIGMOID
        elif owner in by_reader:
            own[owner] = by_reader[owner]
        elif owner in regions.before_silu:
            own[owner] = _without_flat_part(ranges(owner))
        else:
            own[owner] = ranges(owner)
    return {name: own[owner] for name, owner in regions.owners.items()}


def _without_flat_part(quantization: InputQuantization) -> InputQuantization:
    """The same down to where SiLU becomes flat."""
    low, high = quantization.bounds
    if low >= LOWEST_BEFORE_SILU or quantization.activation_type != "uint8":
        return quantization
    scale = float(np.float32((max(high, 0.0) - LOWEST_BEFORE_SILU) / 255))
    return replace(quantization, scale=scale, zero_point=round(-LOWEST_BEFORE_SILU / scale))


def _quantize_parameters(writer: QdqWriter, node: ir.Node, quantized: QuantizedLayer) -> None:
    """Weights, and the bias as integers, which takes up the correction."""
    change = quantized.weight.bias_change
    reader, index, bias = _bias_of(node, len(change))
    if reader is None or (bias is None and not change.any()):
        writer.quantize_weight(node, quantized)
        return
    old = np.zeros_like(change) if bias is None else bias
    new = np.broadcast_to(old, change.shape) + change
    quantized = _with_room_for(quantized, new)
    writer.quantize_weight(node, quantized)
    scales = (quantized.weight.scales * np.float32(quantized.input.scale)).astype(np.float32)
    integers = np.round(new.astype(np.float64) / scales).astype(np.int32)
    name = f"{node.name}/bias"
    inputs = [
        writer.initializer(f"{name}_quantized", integers),
        writer.initializer(f"{name}_scale", scales),
        writer.initializer(f"{name}_zero_point", np.zeros(len(scales), dtype=np.int32)),
    ]
    if len(reader.inputs) <= index:
        reader.resize_inputs(index + 1)
    reader.replace_input_with(index, writer.insert(reader, "DequantizeLinear", inputs, name, axis=0))


def _bias_of(node: ir.Node, num_outputs: int) -> tuple[ir.Node | None, int, FloatArray | None]:
    """Which node adds a layer's bias and as which input, and the bias (O,) where there is one.

    No node where there is none to change: the graph computes the bias, or nothing adds one to a MatMul. The engine
    makes one node of a MatMul and the Add behind it, which runs on integers only if both are quantized.
    """
    if node.op_type == "MatMul":
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type != "Add":
            return None, 0, None
        reader, index = uses[0].node, 1 - uses[0].idx
    else:
        reader, index = node, 2
    value = reader.inputs[index] if len(reader.inputs) > index else None
    if value is None:
        return reader, index, None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        return None, 0, None
    bias: FloatArray = tensor.numpy().astype(np.float32)
    if node.op_type == "MatMul" and bias.shape != (num_outputs,):
        return None, 0, None
    return reader, index, bias.reshape(-1)


def _with_room_for(quantized: QuantizedLayer, bias: FloatArray) -> QuantizedLayer:
    """The layer with coarser weights where a bias is too large for an integer of the fine scale."""
    weight = quantized.weight
    least = np.abs(bias) / (quantized.input.scale * _LARGEST_BIAS)
    scales = np.maximum(weight.scales, least).astype(np.float32)
    if np.array_equal(scales, weight.scales):
        return quantized
    ratio = (weight.scales / scales).reshape(-1, *[1] * (weight.values.ndim - 1))
    values = np.round(weight.values * ratio).astype(np.int8)
    return replace(quantized, weight=replace(weight, values=values, scales=scales))


def _quantize_output(graph: ir.Graph, writer: QdqWriter, value: ir.Value, quantization: InputQuantization) -> None:
    """A pair behind a tensor, which all its readers then read."""
    readers = list(value.uses())
    name = f"{value.name}/output"
    scale = writer.initializer(f"{name}_scale", np.array(quantization.scale, dtype=np.float32))
    zero_point = np.array(quantization.zero_point, dtype=quantization.activation_type)
    zero = writer.initializer(f"{name}_zero_point", zero_point)
    quantize = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}/QuantizeLinear")
    quantize.outputs[0].name = f"{name}_quantized"
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"{name}/DequantizeLinear")
    dequantize.outputs[0].name = f"{name}_dequantized"
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, [quantize, dequantize])
    for use in readers:
        use.node.replace_input_with(use.idx, dequantize.outputs[0])
