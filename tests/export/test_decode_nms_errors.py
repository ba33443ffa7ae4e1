"""Heads that do not fit: an error where the operator is put in, and of ONNX where somebody wrote the node by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.core.decode_spec import AnchorDeltas, Boxes, DecodeSpec, Grid, GridLevel, NmsSpec
from boxwright.core.errors import InputError
from boxwright.export import ExportOptions
from boxwright.export.decode_nms.function import (
    DOMAIN,
    OP_TYPE,
    OUTPUT_NAMES,
    decode_nms_function,
    input_names,
    node_attributes,
    overload_name,
)
from boxwright.export.decode_nms.insert import insert_decode_nms

Shapes = dict[str, list[int]]
GRID = Grid(
    num_classes=3,
    box_coding="yolox",
    levels=(GridLevel(grid_hw=(3, 7), stride=8.0),),
    score_combination="multiply",
    nms=NmsSpec(),
)
BOXES = Boxes(num_classes=3, nms=NmsSpec())
CLASS_BOXES = AnchorDeltas(num_classes=3, background_class=0, score_activation="softmax", class_specific_boxes=True)
HEADS: Shapes = {"box_regression": [2, 21, 4], "class_logits": [2, 21, 3], "objectness": [2, 21]}
NUM_DETECTIONS = 300


@pytest.mark.parametrize(
    ("decode", "changes", "message"),
    [
        (GRID, {"box_regression": [2, 21, 3]}, r"box_regression: expected shape \(\?, 21, 4\), got \(2, 21, 3\)"),
        (GRID, {"class_logits": [2, 20, 3]}, r"class_logits: expected shape \(\?, 21, 3\), got \(2, 20, 3\)"),
        (GRID, {"class_logits": [2, 21, 4]}, "class_logits: expected shape"),
        (GRID, {"objectness": [2, 21, 1]}, "objectness: expected shape"),
        (BOXES, {"box_regression": [2, 20, 4]}, "box_regression: expected shape"),
        (CLASS_BOXES, {"class_logits": [2, 21, 4]}, r"box_regression: expected shape \(\?, 21, 16\)"),
    ],
)
def test_heads_that_do_not_fit_their_description(decode: DecodeSpec, changes: Shapes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        insert(decode, {**HEADS, **changes})


def test_a_head_that_is_not_there() -> None:
    with pytest.raises(InputError, match="raw head objectness: expected an output of that name, got none"):
        insert(GRID, {name: HEADS[name] for name in ("box_regression", "class_logits")})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box_coding": "polar"}, "box_coding"),
        ({"max_detections": 0}, "max_detections"),
        ({"score_activation": "tanh"}, "score_activation"),
        ({"box_coding": "yolov5", "level_sizes": (20,), "level_strides": (8.0, 16.0)}, "level_strides"),
    ],
)
def test_attributes_that_mean_nothing(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(DecodeNmsAttributes(box_coding="xyxy"), **changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conf": 1.5}, r"--conf: expected a number in \[0, 1\], got 1.5"),
        ({"iou": -0.1}, r"--iou: expected a number in \[0, 1\], got -0.1"),
        ({"conf": float("nan")}, "--conf"),
        ({"max_det": 0}, "--max-det: expected a number from 1 to 100000, got 0"),
        ({"max_det": 2**31}, "--max-det: expected a number from 1 to 100000, got 2147483648"),
        ({"batch": 0}, "--batch: expected at least 1"),
        ({"nms": "soft"}, "--nms: expected graph, plugin or none"),
        ({"opset": 16}, "--opset: expected at least 17"),
        ({"precision": "int4"}, "--precision for onnx"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExportOptions(**options)


@pytest.mark.parametrize(
    "changes",
    [
        {"box_regression": [2, 21, 3]},
        {"class_logits": [2, 21]},
        {"objectness": [2, 20]},
        {"priors": [20, 4]},
    ],
    ids=str,
)
def test_a_node_that_does_not_fit_its_inputs(changes: Shapes) -> None:
    """The body says so: to ONNX's own checks with sizes followed through, and to ONNX Runtime before the first run."""
    attributes = GRID.attributes()
    shapes = {**HEADS, "priors": [21, 4]}
    onnx.checker.check_model(node_model(attributes, shapes), full_check=True)
    wrong = node_model(attributes, {**shapes, **changes})
    with pytest.raises(Exception, match=r"[Ss]hape|[Tt]ype|[Dd]imension"):  # of classes that onnx does not export
        onnx.shape_inference.infer_shapes(wrong, check_type=True, strict_mode=True, data_prop=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match="ShapeInference"):
        onnxruntime.InferenceSession(wrong.SerializeToString(), options, providers=["CPUExecutionProvider"])


def insert(decode: DecodeSpec, shapes: Shapes) -> None:
    heads = [ir.val(f"{name}_given", ir.DataType.FLOAT, shape) for name, shape in shapes.items()]
    nodes = [ir.node("Identity", [value]) for value in heads]
    for node, (name, shape) in zip(nodes, shapes.items(), strict=True):
        node.outputs[0].name, node.outputs[0].shape = name, ir.Shape(shape)
    outputs = [node.outputs[0] for node in nodes]
    model = ir.Model(ir.Graph(heads, outputs, nodes=nodes, opset_imports={"": 17}, name="heads"), ir_version=8)
    insert_decode_nms(model, decode=decode, size_hw=(24, 56), score_threshold=0.1, iou_threshold=0.5, inline=False)


def node_model(attributes: DecodeNmsAttributes, shapes: Shapes) -> onnx.ModelProto:
    """The node with its body as a local function, on inputs of these shapes."""
    names = input_names(attributes, has_priors=True)
    inputs = [ir.val(name, ir.DataType.FLOAT, shapes.get(name, [])) for name in names]
    function = decode_nms_function(attributes, has_priors=True)
    node = ir.node(
        OP_TYPE,
        inputs,
        attributes=node_attributes(attributes),
        domain=DOMAIN,
        overload=overload_name(attributes, has_priors=True),
        num_outputs=len(OUTPUT_NAMES),
    )
    sizes = {"num_detections": [2, 1], "boxes": [2, NUM_DETECTIONS, 4]}
    for output, name in zip(node.outputs, OUTPUT_NAMES, strict=True):
        dtype = ir.DataType.INT32 if name in ("num_detections", "class_ids") else ir.DataType.FLOAT
        output.name, output.type = name, ir.TensorType(dtype)
        output.shape = ir.Shape(sizes.get(name, [2, NUM_DETECTIONS]))
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": 17, DOMAIN: 1}, name="node")
    return ir.to_proto(ir.Model(graph, ir_version=10, functions=[function]))
