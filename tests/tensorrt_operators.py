"""What TensorRT's ONNX parsers read, as far as their list of operators and the conditions beside it say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

# Recorded from docs/operators.md of github.com/onnx/onnx-tensorrt, which the file names with its branches.
OPERATORS: dict[str, Any] = json.loads((Path(__file__).parent / "tensorrt_api" / "onnx_operators.json").read_text())
VERSIONS = ("8.5", "8.6", "10.0")
# addTopK of NvInfer.h: "currently only values up to 3840 are supported".
MOST_OF_TOP_K = 3840
# Inputs that must be known when an engine is built, by place. 10.0 says it of fewer.
_CONSTANT_INPUTS = {
    "CumSum": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "ReduceSum": (1,),
    "ReduceMin": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "TopK": (1,),
}
_RESIZE = {
    "coordinate_transformation_mode": {
        "half_pixel",
        "pytorch_half_pixel",
        "tf_half_pixel_for_nn",
        "asymmetric",
        "align_corners",
    },
    "mode": {"nearest", "linear"},
    "nearest_mode": {"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"},
}
_NAMES = {
    ir.DataType.FLOAT: "FP32",
    ir.DataType.FLOAT16: "FP16",
    ir.DataType.INT32: "INT32",
    ir.DataType.INT64: "INT64",
    ir.DataType.BOOL: "BOOL",
    ir.DataType.UINT8: "UINT8",
    ir.DataType.INT8: "INT8",
}
# Where the importers (onnxOpImporters, read in 8.5-GA and 10.1-GA) take more than the list says.
_MORE_TYPES = {
    "ConstantOfShape": {"INT32", "INT64", "BOOL"},  # whatever the value is of
    "Shape": set(_NAMES.values()),
    "Cast": {"INT64"},
    "Identity": set(_NAMES.values()),
}


def complaints(graph: ir.Model, version: str) -> list[str]:
    """What a parser of a version would not read, each in a line."""
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(graph)))
    found = []
    for node in inferred.graph:
        found += [f"{node.op_type} {node.name}: {what}" for what in _complaints_of(node, version)]
    return found


def _complaints_of(node: ir.Node, version: str) -> list[str]:
    if node.op_type == "DecodeNMS":
        return []  # Boxwright's plugin
    listed = OPERATORS[version]
    if node.op_type not in listed:
        return ["not among the operators"]
    found = []
    types = set(listed[node.op_type].split()) | _MORE_TYPES.get(node.op_type, set())
    for value in _data_of(node):
        name = _NAMES.get(value.dtype) if value.dtype is not None else None
        # The parsers of 8 make INT32 of INT64.
        if name is not None and name not in types and not (name == "INT64" and "INT32" in types and version[0] == "8"):
            found.append(f"{name} of {value.name}, {listed[node.op_type]} wanted")
    for place in _CONSTANT_INPUTS.get(node.op_type, ()):
        if len(node.inputs) > place and node.inputs[place] is not None and _constant(node, place) is None:
            if node.op_type != "TopK" or version == "8.5":
                found.append(f"input {place} is computed")
    found += _special(node, version)
    return found


def _data_of(node: ir.Node) -> list[ir.Value]:
    """The inputs that the listed types are about: the first ones, without indices and sizes."""
    if node.op_type == "Where":
        places: tuple[int, ...] = (1, 2)
    elif node.op_type in ("Concat", "Max", "Min", "Add", "Sub", "Mul", "Div", "Less", "Greater", "Equal", "And", "Or"):
        places = tuple(range(len(node.inputs)))
    else:
        places = (0,) if node.inputs and node.op_type != "ConstantOfShape" else ()
    return [value for place in places if (value := node.inputs[place]) is not None]


def _constant(node: ir.Node, place: int) -> np.ndarray | None:
    value = node.inputs[place]
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _special(node: ir.Node, version: str) -> list[str]:
    found = []
    if node.op_type == "TopK":
        k = _constant(node, 1)
        if k is not None and int(k.reshape(-1)[0]) > MOST_OF_TOP_K:
            found.append(f"k is {int(k.reshape(-1)[0])}, at most {MOST_OF_TOP_K} wanted")
    if node.op_type == "Resize":
        for name, allowed in _RESIZE.items():
            if name in node.attributes and node.attributes[name].as_string() not in allowed:
                found.append(f"{name} {node.attributes[name].as_string()}")
    if node.op_type in ("ScatterND", "ScatterElements") and node.attributes.get_string("reduction", "none") != "none":
        found.append("a reduction")
    if node.op_type == "MaxPool" and len(node.outputs) > 1 and node.outputs[1].uses():
        found.append("its indices are used")
    if node.op_type == "Cast" and version == "8.5" and node.inputs[0].dtype == ir.DataType.UINT8:  # type: ignore[union-attr]
        found.append("UINT8")
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.inputs) > 2:
        zero = _constant(node, 2)
        if zero is None or zero.any():
            found.append("a zero point other than 0")
    return found
