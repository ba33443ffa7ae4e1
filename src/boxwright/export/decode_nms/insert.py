"""Puts DecodeNMS behind the raw heads, so that the graph gives detections.

box_regression, class_logits, objectness        box_regression, ... (now inside)
                                          ->          |
                                                DecodeNMS(priors, score_threshold, iou_threshold)
                                                      |
                                                num_detections, boxes, scores, class_ids
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from boxwright.core.decode_spec import DecodeSpec
from boxwright.export.decode_nms.function import (
    DOMAIN,
    FUNCTION_IR_VERSION,
    OP_TYPE,
    OUTPUT_NAMES,
    decode_nms_function,
    input_names,
    node_attributes,
    overload_name,
)

THRESHOLD_NAMES = ("score_threshold", "iou_threshold")


def insert_decode_nms(
    model: ir.Model,
    *,
    decode: DecodeSpec,
    size_hw: tuple[int, int],
    score_threshold: float,
    iou_threshold: float,
    inline: bool,
) -> bool:
    """Insert the operator; the raw heads stay in the graph under their names.

    Args:
        model: with the raw heads as outputs; changed.
        decode: how they become detections.
        size_hw: of the input, which boxes are clipped to where the head asks for that.
        score_threshold: default of the input of that name.
        iou_threshold: likewise.
        inline: write the body into the graph; else keep the node, and the body as a local function.

    Returns:
        False where the graph gives detections already.
    """
    graph = model.graph
    heads = {output.name: output for output in graph.outputs}
    if set(OUTPUT_NAMES) <= heads.keys():
        return False
    attributes = decode.attributes()
    operands: dict[str, ir.Value] = {name: value for name, value in heads.items() if name is not None}
    priors = decode.priors()
    if priors is not None:
        operands["priors"] = _initializer(graph, "priors", priors)
    has_priors = "priors" in operands
    for name, value in zip(THRESHOLD_NAMES, (score_threshold, iou_threshold), strict=True):
        operands[name] = _threshold_input(graph, name, value)
    nodes: list[ir.Node] = []
    if attributes.clip_to_image and "image_size_hw" not in operands:
        operands["image_size_hw"] = _canvas_size(graph, heads["class_logits"], size_hw, nodes)
    shape = heads["class_logits"].shape
    num_pairs = (
        None if shape is None or not all(isinstance(n, int) for n in shape[1:]) else int(shape[1]) * int(shape[2])
    )
    function = decode_nms_function(attributes, has_priors=has_priors, num_pairs=num_pairs)
    node = ir.node(
        OP_TYPE,
        [operands[name] for name in input_names(attributes, has_priors=has_priors)],
        attributes=node_attributes(attributes),
        domain=DOMAIN,
        overload=overload_name(attributes, has_priors=has_priors),
        num_outputs=len(OUTPUT_NAMES),
        name="decode_nms",
    )
    graph.extend([*nodes, node])
    model.functions[function.identifier()] = function
    graph.opset_imports[DOMAIN] = 1
    model.ir_version = max(model.ir_version, FUNCTION_IR_VERSION)
    graph.outputs.clear()
    graph.outputs.extend(node.outputs)
    _name_outputs(node.outputs, heads["class_logits"], attributes.max_detections)
    if inline:
        InlinePass()(model)
        graph.opset_imports.pop(DOMAIN, None)
        LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=16)(model)
    return True


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
    graph.register_initializer(value)
    return value


def _threshold_input(graph: ir.Graph, name: str, default: float) -> ir.Value:
    """An input that need not be given: an initializer of the same name is its default."""
    value = _initializer(graph, name, np.array(default, dtype=np.float32))
    graph.inputs.append(value)
    return value


def _canvas_size(graph: ir.Graph, class_logits: ir.Value, size_hw: tuple[int, int], nodes: list[ir.Node]) -> ir.Value:
    """The input's height and width for every image of the batch, (B, 2)."""
    size = _initializer(graph, "canvas_size_hw", np.array([size_hw], dtype=np.float32))
    two = ir.Value(name="canvas_rank", const_value=ir.tensor(np.array([2], dtype=np.int64), name="canvas_rank"))
    graph.register_initializer(two)
    batch = ir.node("Shape", [class_logits], attributes={"start": 0, "end": 1}, name="canvas_batch")
    shape = ir.node("Concat", [batch.outputs[0], two], attributes={"axis": 0}, name="canvas_shape")
    expanded = ir.node("Expand", [size, shape.outputs[0]], name="canvas_of_batch")
    nodes.extend([batch, shape, expanded])
    for node in (batch, shape, expanded):
        node.outputs[0].name = node.name
    return expanded.outputs[0]


def _name_outputs(outputs: object, class_logits: ir.Value, max_detections: int) -> None:
    batch = "batch" if class_logits.shape is None else class_logits.shape[0]
    shapes = {
        "num_detections": ([batch, 1], ir.DataType.INT32),
        "boxes": ([batch, max_detections, 4], ir.DataType.FLOAT),
        "scores": ([batch, max_detections], ir.DataType.FLOAT),
        "class_ids": ([batch, max_detections], ir.DataType.INT32),
    }
    for output, (name, (shape, dtype)) in zip(outputs, shapes.items(), strict=True):  # type: ignore[call-overload]
        output.name, output.shape, output.type = name, ir.Shape(shape), ir.TensorType(dtype)
