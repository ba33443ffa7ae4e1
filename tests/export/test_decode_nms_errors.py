"""Heads that do not fit: an error where the operator is put in, and of ONNX where somebody wrote the node by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
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
from boxwright.export.decode_nms.schema import register_schema

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
NAN = float("nan")


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
        ({"max_candidates": 0}, "--max-candidates: expected at least 1, got 0"),
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


@pytest.mark.parametrize("with_body", [True, False])
@pytest.mark.parametrize(
    ("attributes", "shapes", "message"),
    [
        ({"box_coding": "polar"}, {}, "box_coding: expected one of anchor_delta.*got 'polar'"),
        ({"max_detections": 0}, {}, "max_detections: expected a number from 1 to 100000, got 0"),
        ({"score_activation": "tanh"}, {}, "score_activation: expected one of"),
        ({"multi_label": 7}, {}, "multi_label: expected True or False, got 7"),
        ({"max_detection": 3}, {}, "Unrecognized attribute: max_detection"),
        ({"level_strides": [8]}, {}, "level_strides"),
        ({"score_combination": "none"}, {}, "expected 5 inputs for these attributes, got 6"),
        ({}, {"priors": [20, 4]}, r"priors: expected shape \(21, 4\), got shape \(20, 4\)"),
        ({}, {"box_regression": [2, 21, 3]}, r"box_regression: expected shape \(2, 21, 4\)"),
        ({}, {"class_logits": [2, 20, 3]}, r"class_logits: expected shape \(B, 21, C\)"),
        ({}, {"objectness": [3, 21]}, r"objectness: expected shape \(2, 21\), got shape \(3, 21\)"),
        ({}, {"score_threshold": [2]}, "score_threshold: expected one number"),
    ],
    ids=str,
)
def test_the_checker_of_onnx_says_what_is_wrong(
    attributes: dict[str, Any], shapes: Shapes, message: str, with_body: bool
) -> None:
    register_schema()
    right = node_model(GRID.attributes(), {**HEADS, "priors": [21, 4]})
    onnx.checker.check_model(right, full_check=True)
    model = node_model(GRID.attributes(), {**HEADS, "priors": [21, 4], **shapes})
    (node,) = model.graph.node
    kept = [attribute for attribute in node.attribute if attribute.name not in attributes]
    del node.attribute[:]
    node.attribute.extend([*kept, *(onnx.helper.make_attribute(name, value) for name, value in attributes.items())])
    if not with_body:
        del model.functions[:]
        node.overload = ""
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError), match=message):
        onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize(("name", "value"), [("score_threshold", 2.0), ("iou_threshold", -0.5), ("iou_threshold", NAN)])
def test_the_checker_of_onnx_sees_constant_thresholds(name: str, value: float) -> None:
    register_schema()
    model = node_model(GRID.attributes(), {**HEADS, "priors": [21, 4]})
    inputs = [entry for entry in model.graph.input if entry.name != name]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.5, np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
    with pytest.raises(onnx.shape_inference.InferenceError, match=rf"{name}: expected one number in \[0, 1\], got"):
        onnx.checker.check_model(model, full_check=True)


def test_shapes_follow_from_the_schema() -> None:
    register_schema()
    model = node_model(GRID.attributes(), {**HEADS, "priors": [21, 4]})
    del model.functions[:]
    model.graph.node[0].overload = ""
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    shapes = [[size.dim_value for size in output.type.tensor_type.shape.dim] for output in inferred.graph.output]
    assert shapes == [[2, 1], [2, NUM_DETECTIONS, 4], [2, NUM_DETECTIONS], [2, NUM_DETECTIONS]]


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
