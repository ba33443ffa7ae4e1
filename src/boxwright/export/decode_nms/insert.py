"""Puts DecodeNMS behind the raw heads, so that the graph gives detections.

box_regression, class_logits, objectness        box_regression, ... (now inside)
                                          ->          |
                                                DecodeNMS(priors, score_threshold, iou_threshold)
                                                      |
                                                num_detections, boxes, scores, class_ids
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from boxwright.core.decode_spec import RAW_HEAD_NAMES, DecodeSpec
from boxwright.core.errors import InputError
from boxwright.export.decode_nms.function import (
    DOMAIN,
    FUNCTION_IR_VERSION,
    OUTPUT_NAMES,
    THRESHOLD_NAMES,
    call_decode_nms,
)
from boxwright.export.graph_builder import GraphBuilder, free_names
from boxwright.export.passes import fold_constants


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

    Raises:
        InputError: where the raw heads are not those that `decode` describes.
    """
    graph = model.graph
    heads = {output.name: output for output in graph.outputs}
    if set(OUTPUT_NAMES) <= heads.keys():
        return False
    _check_heads(heads, decode)
    free_names(graph, (*OUTPUT_NAMES, *THRESHOLD_NAMES))
    attributes = decode.attributes()
    operands: dict[str, ir.Value] = {name: value for name, value in heads.items() if name is not None}
    priors = decode.priors()
    if priors is not None:
        operands["priors"] = _initializer(graph, "priors", priors)
    for name in THRESHOLD_NAMES:
        operands[name] = ir.val(name, ir.DataType.FLOAT, [])
        graph.inputs.append(operands[name])
    nodes: list[ir.Node] = []
    if attributes.clip_to_image and "image_size_hw" not in operands:
        operands["image_size_hw"] = _canvas_size(graph, heads["class_logits"], size_hw, nodes)
    node = call_decode_nms(model, operands, attributes, name="decode_nms")
    graph.extend([*nodes, node])
    model.ir_version = max(model.ir_version, FUNCTION_IR_VERSION)
    graph.outputs.clear()
    graph.outputs.extend(node.outputs)
    _name_outputs(node.outputs, heads["class_logits"], attributes.max_detections)
    if inline:
        InlinePass()(model)
        graph.opset_imports.pop(DOMAIN, None)
        # Sizes become constants, among them the k of each TopK, which TensorRT 8.5 wants as an initializer. Folding
        # keeps the names of outputs alone, and would make one Reshape of a head's own and that of the decoding.
        raw_heads = [value for name, value in heads.items() if name in RAW_HEAD_NAMES]
        graph.outputs.extend(raw_heads)
        fold_constants.run(model)
        for _ in raw_heads:
            graph.outputs.pop()
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for name, value in zip(THRESHOLD_NAMES, (score_threshold, iou_threshold), strict=True):
        # Only now, or folding would take the defaults for constants.
        operands[name].const_value = ir.tensor(np.array(value, dtype=np.float32), name=name)
        graph.register_initializer(operands[name])
    return True


def _check_heads(heads: Mapping[str | None, ir.Value], decode: DecodeSpec) -> None:
    """Sizes that are known must fit each other; an engine would not say so clearly, or not at all."""
    priors = decode.priors()
    logits = heads["class_logits"].shape if "class_logits" in heads else None
    num_anchors = (
        len(priors) if priors is not None else (logits[1] if logits is not None and len(logits) == 3 else None)
    )
    width = 4 * decode.num_logits if decode.attributes().class_specific_boxes else 4
    expected: dict[str, tuple[object, ...]] = {
        "box_regression": (None, num_anchors, width),
        "class_logits": (None, num_anchors, decode.num_logits),
    }
    if decode.has_objectness:
        expected["objectness"] = (None, num_anchors)
    for name, sizes in expected.items():
        if name not in heads:
            raise InputError(
                f"raw head {name}", expected="an output of that name", got="none", fix="export the model again"
            )
        shape = heads[name].shape
        if shape is not None and not _fits(shape, sizes):
            raise InputError(
                f"raw head {name}",
                expected="shape (" + ", ".join(str(size) if isinstance(size, int) else "?" for size in sizes) + ")",
                got=str(tuple(shape)),
                fix="correct the model or its decoding",
            )


def _fits(shape: ir.Shape, sizes: tuple[object, ...]) -> bool:
    return len(shape) == len(sizes) and all(
        not isinstance(got, int) or not isinstance(wanted, int) or got == wanted
        for got, wanted in zip(shape, sizes, strict=True)
    )


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
    graph.register_initializer(value)
    return value


def _canvas_size(graph: ir.Graph, class_logits: ir.Value, size_hw: tuple[int, int], nodes: list[ir.Node]) -> ir.Value:
    """The input's height and width for every image of the batch, (B, 2)."""
    builder = GraphBuilder("canvas")
    batch = builder.op("Slice", builder.op("Shape", class_logits), [0], [1], [0])
    size = builder.constant(np.array([size_hw], dtype=np.float32))  # (1, 2)
    sizes = builder.op("Expand", size, builder.op("Concat", batch, [2], axis=0))
    nodes.extend(builder.nodes)
    return sizes


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
