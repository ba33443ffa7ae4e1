"""NNCF's post-training quantization, as it comes: its choice of ranges, its placement, its bias correction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx

from boxwright.calibration.float_model import FloatModel
from boxwright.calibration.methods import MethodInputs, MethodResult
from boxwright.calibration.sessions import Tensors
from boxwright.calibration.statistics import collect_statistics
from boxwright.core.errors import InputError, ModelFileError
from boxwright.core.nncf_import import import_nncf, quiet_nncf
from boxwright.core.placement import ActivationType, rules_for

# TensorRT takes no zero points; the other engines gain by them where an activation function gives few negative numbers.
_PRESETS = {"tensorrt": "performance"}
_USUAL_PRESET = "mixed"
_SHIFT = 128  # from int8 to uint8
_LARGEST_INT8, _LARGEST_UINT8 = 127, 255


def run(inputs: MethodInputs) -> MethodResult:
    """Quantize up to the layers that predict with `nncf.quantize`.

    Raises:
        MissingDependencyError: where NNCF is not installed.
        InputError: where what the float model gives is not finite.
        ModelFileError: where NNCF cannot quantize the model.
    """
    nncf = import_nncf("calibrate --method nncf")
    # NNCF looks at no raw head, and its ranges pass over what is not finite.
    collect_statistics(inputs.model, ((arrays, count, 0) for arrays, count in inputs.batches()), tensors={})
    preset = _PRESETS.get(inputs.engine, _USUAL_PRESET)
    with quiet_nncf():
        try:
            quantized = nncf.quantize(
                inputs.model.raw_proto,
                nncf.Dataset(_Images(inputs)),
                preset=nncf.QuantizationPreset(preset),
                target_device=nncf.TargetDevice.ANY,
                subset_size=max(inputs.num_images, 1),
                ignored_scope=nncf.IgnoredScope(names=_predictions(inputs.model), validate=False),
                advanced_parameters=_advanced(nncf, inputs.engine),
            )
        except InputError:  # of ours: an image that cannot be read
            raise
        except Exception as error:  # NNCF raises what it meets inside
            raise ModelFileError(
                inputs.model.source,
                expected="a graph that NNCF can quantize",
                got=(str(error).strip().splitlines() or [type(error).__name__])[0][:300],
                fix="leave --method out",
            ) from error
    change_activation_type(quantized, rules_for(inputs.engine).activation_type)
    return MethodResult(
        proto=graft(inputs.model, quantized),
        description=f"NNCF {nncf.__version__}, preset {preset}",
        layers_in_float=_layers_in_float(inputs.model, quantized),
    )


def _advanced(nncf: Any, engine: str) -> Any:
    """One scale for all channels of an activation where the engine knows no other."""
    if engine == "openvino":
        return None
    one_scale = nncf.quantization.advanced_parameters.QuantizationParameters(per_channel=False)
    return nncf.AdvancedQuantizationParameters(activations_quantization_params=one_scale)


class _Images:
    """The network's inputs, which NNCF may go through several times."""

    def __init__(self, inputs: MethodInputs) -> None:
        self._inputs = inputs

    def __iter__(self) -> Iterator[Tensors]:
        done = 0
        for tensors, count in self._inputs.batches():
            done += count
            self._inputs.on_progress(done)
            yield tensors


def change_activation_type(proto: onnx.ModelProto, wanted: ActivationType) -> None:
    """Let all activations be uint8 or all be int8, in place; weights stay what they are.

    NNCF writes int8 where numbers may be negative, else uint8, whatever the engine. OpenVINO 2026.4 computes int8 maps
    wrongly where they are concatenated, ONNX Runtime wants uint8, and TensorRT takes int8 without a zero point alone,
    of which numbers that are never negative use the upper half.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    pairs = {
        tuple(node.input[1:3])
        for node in proto.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] not in constants
    }
    for scale_name, zero_name in pairs:
        zero_point = onnx.numpy_helper.to_array(constants[zero_name])
        if zero_point.dtype == np.dtype(wanted):
            continue
        if wanted == "uint8":
            moved = (zero_point.astype(np.int16) + _SHIFT).astype(np.uint8)
        else:
            moved = np.zeros_like(zero_point, dtype=np.int8)
            scale = onnx.numpy_helper.to_array(constants[scale_name])
            wider = (scale * (_LARGEST_UINT8 / _LARGEST_INT8)).astype(scale.dtype)
            constants[scale_name].CopyFrom(onnx.numpy_helper.from_array(wider, scale_name))
        constants[zero_name].CopyFrom(onnx.numpy_helper.from_array(moved, zero_name))


def graft(model: FloatModel, quantized: onnx.ModelProto) -> onnx.ModelProto:
    """The whole model with another graph up to its raw heads.

    Args:
        model: the float model.
        quantized: computes the same heads, under the same names.
    """
    replaced = {node.name for node in model.raw_proto.graph.node}
    behind = [node for node in model.proto.graph.node if node.name not in replaced]
    result = onnx.ModelProto()
    result.CopyFrom(model.proto)
    graph = result.graph
    del graph.node[:], graph.initializer[:]
    graph.node.extend(quantized.graph.node)
    graph.node.extend(behind)
    graph.initializer.extend(quantized.graph.initializer)
    own = {tensor.name for tensor in quantized.graph.initializer}
    read = _names_read(behind)
    graph.initializer.extend(
        tensor for tensor in model.proto.graph.initializer if tensor.name in read and tensor.name not in own
    )
    for entry in quantized.opset_import:
        if entry.domain not in {known.domain for known in result.opset_import}:
            result.opset_import.add(domain=entry.domain, version=entry.version)
    # Types of tensors that the quantized graph no longer has, or computes otherwise.
    del graph.value_info[:]
    return result


def _names_read(nodes: list[onnx.NodeProto]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        names.update(node.input)
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                names |= _names_read(list(graph.node)) | {value.name for value in graph.output}
    return names


def _predictions(model: FloatModel) -> list[str]:
    return [layer.name for layer in model.layers if layer.is_prediction]


def _layers_in_float(model: FloatModel, quantized: onnx.ModelProto) -> tuple[str, ...]:
    """Layers whose weights are not dequantized integers; activations may be so before a pooling or a concatenation."""
    dequantized = {node.output[0] for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    nodes = {node.name: node for node in quantized.graph.node}
    return tuple(
        layer.name for layer in model.layers if layer.name not in nodes or nodes[layer.name].input[1] not in dequantized
    )
