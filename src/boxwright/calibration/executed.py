"""What an engine really executes in INT8, read from the graph that it made of a model."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from boxwright.calibration.float_model import FloatModel, Layer
from boxwright.core.manifest import Precision

_OPENVINO_INTEGERS = frozenset({"u8", "i8"})
_ONNXRUNTIME_INTEGER_OPS = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger"}
)
# Engines that fold constants into a layer rename it so.
_RENAMED_SUFFIXES = ("/WithoutBiases", "_nhwc", "_quant", "/MatMulAddFusion")
# What OpenVINO fuses into a layer of the quantization of the next one's input.
_OF_NEXT_INPUT = ("_scaled/Mul", "_quantized/QuantizeLinear")
# ONNX Runtime numbers the nodes that its layout passes replace.
_NUMBERED = re.compile(r"_token_\d+$")


@dataclass(frozen=True, kw_only=True)
class Executed:
    """Layers by how an engine executes them.

    Attributes:
        integer: names of the layers that run on integers.
        in_float: of the others.
        int8_share: of the multiplications, 0 to 1.
    """

    integer: frozenset[str]
    in_float: frozenset[str]
    int8_share: float


def executed_layers(
    engine: str, proto: onnx.ModelProto, model: FloatModel, macs: Mapping[str, int], *, precision: Precision = "fp32"
) -> Executed | None:
    """Let an engine make its own graph of a model, and read it.

    Args:
        engine: its name.
        proto: the quantized model, whole or up to the raw heads.
        model: that it was made from.
        macs: multiplications of each layer, by name.
        precision: of what is not quantized.

    Returns:
        None for an engine that does not show its graph.
    """
    if engine == "openvino":
        return _executed_by_openvino(proto, model.layers, macs, precision)
    if engine == "onnxruntime":
        return _executed_by_onnxruntime(proto, model.layers, macs)
    return None


def _executed_by_openvino(
    proto: onnx.ModelProto, layers: Iterable[Layer], macs: Mapping[str, int], precision: Precision
) -> Executed:
    import openvino

    hint = {"fp32": "f32", "fp16": "f16"}.get(precision, precision)
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(proto.SerializeToString()),
        "CPU",
        {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint},
    )
    integer: set[str] = set()
    for operation in compiled.get_runtime_model().get_ops():
        info = operation.get_rt_info()
        if _text(info, "layerType") not in ("Convolution", "FullyConnected", "MatMul", "GroupConvolution"):
            continue
        if _text(info, "runtimePrecision") in _OPENVINO_INTEGERS:
            names = _text(info, "originalLayersNames").split(",")
            integer |= _original_names(names, macs) or _layers_before(names, layers)
    return _executed(integer, macs)


def _executed_by_onnxruntime(proto: onnx.ModelProto, layers: Iterable[Layer], macs: Mapping[str, int]) -> Executed:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # warns that the file is for this machine alone, which it is meant to be
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(path)
    integer: set[str] = set()
    # Fused nodes lose their names more often than their outputs do.
    by_output = {layer.output_name: layer.name for layer in layers}
    for node in optimized.graph.node:
        if node.op_type in _ONNXRUNTIME_INTEGER_OPS:
            integer |= _original_names([node.name], macs)
            integer |= {
                layer for tensor, layer in by_output.items() if any(_is_form_of(name, tensor) for name in node.output)
            }
    return _executed(integer, macs)


def _executed(integer: set[str], macs: Mapping[str, int]) -> Executed:
    total = sum(macs.values())
    done = sum(macs[name] for name in integer)
    return Executed(
        integer=frozenset(integer),
        in_float=frozenset(macs.keys() - integer),
        int8_share=done / total if total else 0.0,
    )


def _original_names(names: Iterable[str], macs: Mapping[str, int]) -> set[str]:
    found = set()
    for name in names:
        plain = _NUMBERED.sub("", name.strip())
        for suffix in _RENAMED_SUFFIXES:
            plain = plain.removesuffix(suffix)
        if plain in macs:
            found.add(plain)
    return found


def _layers_before(names: Iterable[str], layers: Iterable[Layer]) -> set[str]:
    """Layers whose output is quantized by a node of these names: what is left of a layer that lost its own."""
    tensors = {name.rsplit("/", 2)[0] for name in names if name.endswith(_OF_NEXT_INPUT)}
    return {layer.name for layer in layers if layer.output_name in tensors}


def _is_form_of(name: str, tensor: str) -> bool:
    """Whether a tensor of the optimized graph is the quantized or reordered form of one of the original."""
    return name == tensor or name.startswith((f"{tensor}_", f"{tensor}/"))


def _text(info: Any, key: str) -> str:
    if key not in info:
        return ""
    value = info[key]
    return str(value.value if hasattr(value, "value") else value)
