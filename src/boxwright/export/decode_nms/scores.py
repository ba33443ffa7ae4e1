"""Step 1 of DecodeNMS in ONNX: scores of pairs of anchor and class.

Activation is monotone, so candidates are compared by their cheap, unactivated values first and activated late. A value
that is no candidate becomes -inf, which no threshold in [0, 1] lets pass, activated or not.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.export.decode_nms.builder import DecodeNmsBuilder


def drop_non_finite(builder: DecodeNmsBuilder, values: ir.Value) -> ir.Value:
    """NaN and +inf become -inf; NaN compares false, so one comparison finds both."""
    return builder.op("Where", builder.op("Less", values, math.inf), values, -math.inf)


def is_finite(builder: DecodeNmsBuilder, values: ir.Value) -> ir.Value:
    """Whether each value is finite, as booleans."""
    return builder.op("Less", builder.op("Abs", values), math.inf)


def needs_early_product(attributes: DecodeNmsAttributes) -> bool:
    """Whether class and objectness must be multiplied before classes are compared.

    A negative objectness turns the order of negative class scores around; only unactivated scores can be negative.
    """
    return (
        attributes.score_combination != "none"
        and attributes.score_activation == "none"
        and attributes.objectness_activation == "none"
    )


def comparable_values(builder: DecodeNmsBuilder, class_logits: ir.Value, objectness: ir.Value | None) -> ir.Value:
    """Values (B, N, C) that order the classes of an anchor as their scores do, -inf where there is no candidate."""
    attributes = builder.attributes
    values = class_logits
    allowed = None
    if attributes.score_activation == "softmax":
        finite = builder.to_float(is_finite(builder, class_logits))
        row_is_finite = builder.reduce("ReduceMin", finite, keep_axis=True)  # (B, N, 1)
        allowed = builder.op("Greater", row_is_finite, 0.5)
        values = builder.op("Softmax", class_logits, axis=2)
    elif needs_early_product(attributes):
        assert objectness is not None
        values = builder.op("Mul", class_logits, builder.op("Unsqueeze", objectness, [2]))
    if allowed is None:
        allowed = builder.op("Less", values, math.inf)
    if attributes.background_class >= 0:
        class_indices = builder.class_indices(builder.dimension(class_logits, 2))
        is_background = builder.op("Equal", class_indices, float(attributes.background_class))
        allowed = builder.op("And", allowed, builder.op("Not", is_background))
    return builder.op("Where", allowed, values, -math.inf)


def final_scores(builder: DecodeNmsBuilder, values: ir.Value, objectness: ir.Value | None) -> ir.Value:
    """Scores from comparable values and the objectness of their anchors, shapes as they broadcast."""
    attributes = builder.attributes
    scores = _sigmoid(builder, values) if attributes.score_activation == "sigmoid" else values
    if attributes.score_combination == "none":
        return scores
    if not needs_early_product(attributes):
        assert objectness is not None
        if attributes.score_activation == "softmax":
            # What was -inf may be a large negative number by now (OpenVINO's maximum of nothing but -inf); times a
            # negative objectness it would pass.
            scores = builder.op("Max", scores, 0.0)
        objectness = drop_non_finite(builder, objectness)
        if attributes.objectness_activation == "sigmoid":
            objectness = _sigmoid(builder, objectness)
        scores = builder.op("Mul", scores, objectness)
    if attributes.score_combination == "sqrt":
        scores = builder.op("Sqrt", scores)
    return drop_non_finite(builder, scores)


def _sigmoid(builder: DecodeNmsBuilder, logits: ir.Value) -> ir.Value:
    """The sigmoid, exact in its tail too where a square root is to be taken of it.

    ONNX Runtime's own is off by 1e-8 there, which the root of a score of 1e-6 makes 1e-5.
    """
    if builder.attributes.score_combination != "sqrt":
        return builder.op("Sigmoid", logits)
    return builder.op("Reciprocal", builder.op("Add", builder.op("Exp", builder.op("Neg", logits)), 1.0))
