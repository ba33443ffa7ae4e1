"""Step 4 of DecodeNMS in ONNX: which candidates no better one suppresses.

NonMaxSuppression is given ranks instead of scores: they never tie, so no engine has to choose.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.export.decode_nms.builder import DecodeNmsBuilder
from boxwright.export.decode_nms.selection import Candidates

# One float32 step; and the smallest normal float32, since engines may flush smaller ones to 0.
_STEP_UP = 1.0 + 2.0**-23
_SMALLEST = float(np.finfo(np.float32).tiny)


def rank_keys(builder: DecodeNmsBuilder, valid: ir.Value) -> ir.Value:
    """M for the first candidate down to 1 for the last, -1 where not valid; (..., M) float32 of (..., M) bool.

    The keys are exact in float32 up to 2^24 candidates.
    """
    count = builder.scalar(builder.op("Gather", builder.shape(valid), [-1], axis=0))
    descending = builder.op("Range", count, 0, -1)  # (M,)
    return builder.op("Where", valid, builder.to_float(descending), -1.0)


def keep_mask(
    builder: DecodeNmsBuilder,
    candidates: Candidates,
    boxes_xyxy: ir.Value,
    valid: ir.Value,
    num_classes: ir.Value,
    iou_threshold: ir.Value,
) -> ir.Value:
    """(B, M) bool: the valid candidates that survive; candidates come in rank order, or class by class.

    Args:
        num_classes: one-element vector, the background counted.
    """
    if builder.attributes.overlap == "diou":
        return _keep_by_diou(builder, candidates, boxes_xyxy, valid, iou_threshold)
    boxes = _that_can_overlap(builder, boxes_xyxy, iou_threshold)
    if builder.attributes.class_agnostic:
        keys = builder.op("Unsqueeze", rank_keys(builder, valid), [1])  # (B, 1, M)
        return _mask_of_selected(builder, _nms(builder, boxes, keys, iou_threshold), valid)
    if builder.attributes.top_k_scope == "class":
        # Candidates come class by class: each class is a batch item of its own.
        num_kept = builder.op("Div", builder.dimension(valid, 1), num_classes)
        num_rows = builder.op("Mul", builder.dimension(valid, 0), num_classes)
        by_class = builder.reshape(valid, num_rows, [1], num_kept)  # (B * C, 1, K)
        class_boxes = builder.reshape(boxes, num_rows, num_kept, [4])  # (B * C, K, 4)
        selected = _nms(builder, class_boxes, rank_keys(builder, by_class), iou_threshold)
        mask = _mask_of_selected(builder, selected, builder.op("Squeeze", by_class, [1]))
        return builder.reshape(mask, builder.shape(valid))
    column = builder.op("Unsqueeze", builder.class_indices(num_classes), [1])  # (C, 1)
    of_class = builder.op("Equal", builder.op("Unsqueeze", candidates.classes, [1]), column)  # (B, C, M)
    keys = builder.op("Where", of_class, builder.op("Unsqueeze", rank_keys(builder, valid), [1]), -1.0)
    return _mask_of_selected(builder, _nms(builder, boxes, keys, iou_threshold), valid)


def _that_can_overlap(builder: DecodeNmsBuilder, boxes_xyxy: ir.Value, iou_threshold: ir.Value) -> ir.Value:
    """The boxes, those that overlap no other by more than the threshold replaced by the empty box 0.

    These are boxes whose area is not positive and finite: NonMaxSuppression would flip the corners of a box of
    negative extent, and engines differ over infinite areas. At threshold 1 it is all boxes.
    """
    low, high = builder.columns(boxes_xyxy, 0, 2), builder.columns(boxes_xyxy, 2, 4)
    extents = builder.op("Max", builder.op("Sub", high, low), 0.0)
    widths, heights = builder.columns(extents, 0, 1), builder.columns(extents, 1, 2)
    areas = builder.op("Mul", widths, heights)  # (B, M, 1)
    has_area = builder.op("And", builder.op("Greater", areas, 0.0), builder.op("Less", areas, math.inf))
    can_overlap = builder.op("And", has_area, builder.op("Less", iou_threshold, 1.0))
    return builder.op("Where", can_overlap, boxes_xyxy, 0.0)


def _nms(builder: DecodeNmsBuilder, boxes: ir.Value, keys: ir.Value, iou_threshold: ir.Value) -> ir.Value:
    """Indices (S, 3) of batch item, class and box of the survivors with a positive key.

    OpenVINO suppresses at overlap == threshold, ONNX above it; a threshold one step higher makes the two one, to a
    step. ONNX Runtime takes no threshold above 1.
    """
    raised = builder.op("Add", builder.op("Mul", iou_threshold, _STEP_UP), _SMALLEST)
    bounded = builder.op("Min", raised, 1.0)
    return builder.op("NonMaxSuppression", boxes, keys, [builder.attributes.max_detections], bounded, [0.0])


def _mask_of_selected(builder: DecodeNmsBuilder, selected: ir.Value, like: ir.Value) -> ir.Value:
    """Bool of the shape of `like` (B, M), true at the batch item and box of each row of `selected` (S, 3)."""
    zeros = builder.op("ConstantOfShape", builder.shape(like), value=ir.tensor(np.zeros(1, np.float32)))
    places = builder.op("Gather", selected, [0, 2], axis=1)  # (S, 2)
    num_selected = builder.dimension(selected, 0)
    ones = builder.op("ConstantOfShape", num_selected, value=ir.tensor(np.ones(1, np.float32)))
    return builder.op("Greater", builder.op("ScatterND", zeros, places, ones), 0.5)


def _keep_by_diou(
    builder: DecodeNmsBuilder, candidates: Candidates, boxes_xyxy: ir.Value, valid: ir.Value, iou_threshold: ir.Value
) -> ir.Value:
    """Greedy suppression by DIoU, which NonMaxSuppression does not know: a loop over the detections.

    Each step keeps the best box that is alive, in every batch item, and suppresses those that it overlaps.
    """
    steps = builder.op("Min", builder.scalar(builder.dimension(valid, 1)), builder.attributes.max_detections)
    alive_keys = rank_keys(builder, valid)
    zeros = builder.op("ConstantOfShape", builder.shape(valid), value=ir.tensor(np.zeros(1, np.float32)))
    step = _diou_step(builder.attributes, builder.opset, candidates.classes, boxes_xyxy, iou_threshold)
    _, kept = builder.ops("Loop", (steps, builder.constant(np.array(True)), alive_keys, zeros), 2, {"body": step})
    return builder.op("Greater", kept, 0.5)


def _diou_step(
    attributes: DecodeNmsAttributes, opset: int, classes: ir.Value, boxes_xyxy: ir.Value, iou_threshold: ir.Value
) -> ir.Graph:
    """Body of the loop: rank keys of those alive (B, M), -1 for the others, and a mask of those kept (B, M)."""
    inside = DecodeNmsBuilder(attributes, key_type=ir.DataType.FLOAT, opset=opset, prefix="decode_nms/step")
    float_type, bool_type = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.BOOL)
    open_shape = ir.Shape([None, None])
    iteration = ir.Value(name="decode_nms/iteration", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    condition = ir.Value(name="decode_nms/condition", type=bool_type, shape=ir.Shape([]))
    keys = ir.Value(name="decode_nms/alive", type=float_type, shape=open_shape)
    kept = ir.Value(name="decode_nms/kept", type=float_type, shape=open_shape)

    best_key, best = inside.top_k(keys, [1])  # (B, 1)
    found = inside.op("Greater", best_key, 0.0)
    is_best = inside.op("And", inside.op("Equal", keys, best_key), found)  # (B, M)
    overlaps = _diou(inside, inside.gather_rows(boxes_xyxy, best), boxes_xyxy)
    suppressed = inside.op("Less", iou_threshold, overlaps)  # to OpenVINO, NaN is greater than anything
    if not attributes.class_agnostic:
        same_class = inside.op("Equal", classes, inside.gather_columns(classes, best))
        suppressed = inside.op("And", suppressed, same_class)
    suppressed = inside.op("And", suppressed, found)
    keys_left = inside.op("Where", inside.op("Or", suppressed, is_best), -1.0, keys)
    kept_now = inside.op("Where", is_best, 1.0, kept)
    most = inside.op("ReduceMax", keys_left, keepdims=0)
    goes_on = inside.op("Greater", most, 0.0)

    for value in (keys_left, kept_now):
        value.type, value.shape = float_type, open_shape
    goes_on.type, goes_on.shape = bool_type, ir.Shape([])
    outputs = [goes_on, keys_left, kept_now]
    return ir.Graph([iteration, condition, keys, kept], outputs, nodes=inside.nodes, name="decode_nms_step")


def _diou(builder: DecodeNmsBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    """DIoU (B, M) of boxes (B, 1, 4) and (B, M, 4), 0 where either has no area.

    Source: Zheng et al., Distance-IoU Loss, AAAI 2020, eq. 7.
    """

    def area(extents: ir.Value) -> ir.Value:
        positive = builder.op("Max", extents, 0.0)
        sides = builder.columns(positive, 0, 1), builder.columns(positive, 1, 2)
        return builder.op("Squeeze", builder.op("Mul", *sides), [2])

    def squared_length(vectors: ir.Value) -> ir.Value:
        return builder.op("ReduceSum", builder.op("Mul", vectors, vectors), [2], keepdims=0)

    low_a, high_a, low_b, high_b = (builder.columns(boxes, i, i + 2) for boxes in (first, second) for i in (0, 2))
    area_a, area_b = area(builder.op("Sub", high_a, low_a)), area(builder.op("Sub", high_b, low_b))
    intersection = area(builder.op("Sub", builder.op("Min", high_a, high_b), builder.op("Max", low_a, low_b)))
    union = builder.op("Sub", builder.op("Add", area_a, area_b), intersection)
    centre_a, centre_b = (
        builder.op("Mul", builder.op("Add", low, high), 0.5) for low, high in ((low_a, high_a), (low_b, high_b))
    )
    enclosing = builder.op("Sub", builder.op("Max", high_a, high_b), builder.op("Min", low_a, low_b))
    distance = squared_length(builder.op("Sub", centre_a, centre_b))
    penalty = builder.op("Div", distance, squared_length(enclosing))
    overlap = builder.op("Sub", builder.op("Div", intersection, union), penalty)
    have_area = builder.op("And", builder.op("Greater", area_a, 0.0), builder.op("Greater", area_b, 0.0))
    return builder.op("Where", have_area, overlap, 0.0)
