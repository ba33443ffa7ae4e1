"""`boxwright::DecodeNMS` as an ONNX local function, one for every set of attributes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import onnx_ir as ir

from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.core.errors import InputError
from boxwright.export.decode_nms.boxes import decode_candidates
from boxwright.export.decode_nms.builder import EXACT_IN_FLOAT, DecodeNmsBuilder
from boxwright.export.decode_nms.output import Outputs, collect
from boxwright.export.decode_nms.selection import in_rank_order, select_candidates
from boxwright.export.decode_nms.suppression import keep_mask, rank_keys

DOMAIN = "boxwright"
OP_TYPE = "DecodeNMS"
THRESHOLD_NAMES = ("score_threshold", "iou_threshold")
OUTPUT_NAMES = ("num_detections", "boxes", "scores", "class_ids")
# Overloads of functions, which tell the sets of attributes apart, came with this version of ONNX's format.
FUNCTION_IR_VERSION = 10
# The newest that TensorRT 8.5 reads.
OLDEST_OPSET = 17


def input_names(attributes: DecodeNmsAttributes, *, has_priors: bool) -> tuple[str, ...]:
    """The inputs of a DecodeNMS node, in order; an input that the attributes do not call for is left out."""
    names = ["box_regression", "class_logits", *THRESHOLD_NAMES]
    if attributes.score_combination != "none":
        names.append("objectness")
    if attributes.clip_to_image:
        names.append("image_size_hw")
    if has_priors:
        names.append("priors")
    return tuple(names)


def decode_nms_function(
    attributes: DecodeNmsAttributes,
    *,
    has_priors: bool,
    logits_shape: tuple[int, int] | None = None,
    opset: int = OLDEST_OPSET,
) -> ir.Function:
    """The local function that does what DecodeNMS does with these attributes, in standard operators.

    It takes any batch size and, unless `logits_shape` is given, any number of anchors and classes.

    Args:
        attributes: of the operator.
        has_priors: whether there is an input `priors`.
        logits_shape: anchors and classes, where they are known: TensorRT 8.5 needs to sort in float32, which more
            than float32 can count does not allow, and OpenVINO sorts in int32, for which the keys of many are split.
        opset: of the operators, 17 or newer.

    Raises:
        InputError: where the coding needs priors and there are none.
    """
    if not has_priors and attributes.box_coding not in ("xyxy", "cxcywh"):
        raise InputError(
            "DecodeNMS input priors",
            expected=f"priors (N, 4) for coding {attributes.box_coding!r}",
            got="none",
            fix="pass the priors",
        )
    names = input_names(attributes, has_priors=has_priors)
    inputs = {name: ir.Value(name=name) for name in names}
    most_sorted = None if logits_shape is None else _most_sorted(attributes, *logits_shape)
    is_exact = logits_shape is not None and sorts_in_float(attributes, *logits_shape)
    key_type = ir.DataType.FLOAT if is_exact else ir.DataType.INT64
    builder = DecodeNmsBuilder(attributes, key_type=key_type, opset=opset, most_sorted=most_sorted)
    outputs = _body(builder, inputs)
    for name, output in zip(OUTPUT_NAMES, outputs, strict=True):
        output.name = name
    graph = ir.Graph(list(inputs.values()), list(outputs), nodes=builder.nodes, opset_imports={"": opset})
    declared = [ir.Attr(name, ir.AttributeType.UNDEFINED, None) for name in node_attributes(attributes)]
    return ir.Function(
        DOMAIN, OP_TYPE, overload_name(attributes, has_priors=has_priors), graph=graph, attributes=declared
    )


def call_decode_nms(
    model: ir.Model, operands: Mapping[str, ir.Value], attributes: DecodeNmsAttributes, *, name: str, suffix: str = ""
) -> ir.Node:
    """A node that calls the operator, whose body is added to the model as a local function.

    Args:
        model: gets the function; the node is left to the caller to place.
        operands: inputs by name; others than the operator's are passed over.
        attributes: of the operator.
        name: of the node.
        suffix: tells the function from those of other nodes with the same attributes.
    """
    has_priors = "priors" in operands
    shape = operands["class_logits"].shape
    logits_shape = None
    if shape is not None and isinstance(shape[1], int) and isinstance(shape[2], int):
        logits_shape = shape[1], shape[2]
    function = decode_nms_function(
        attributes, has_priors=has_priors, logits_shape=logits_shape, opset=model.graph.opset_imports[""]
    )
    function.overload += suffix
    node = ir.node(
        OP_TYPE,
        [operands[input_name] for input_name in input_names(attributes, has_priors=has_priors)],
        attributes=node_attributes(attributes),
        domain=DOMAIN,
        overload=function.overload,
        num_outputs=len(OUTPUT_NAMES),
        name=name,
    )
    model.functions[function.identifier()] = function
    model.graph.opset_imports[DOMAIN] = 1
    return node


def node_attributes(attributes: DecodeNmsAttributes) -> dict[str, int | float | str | list[int] | list[float]]:
    """The attributes as an ONNX node carries them: booleans as 0 and 1, tuples as lists, empty ones left out."""
    result: dict[str, int | float | str | list[int] | list[float]] = {}
    for field in dataclasses.fields(attributes):
        value = getattr(attributes, field.name)
        if isinstance(value, tuple):
            if value:
                result[field.name] = list(value)
        else:
            result[field.name] = int(value) if isinstance(value, bool) else value
    return result


def overload_name(attributes: DecodeNmsAttributes, *, has_priors: bool) -> str:
    """A name for this set of attributes, the same in every export."""
    text = json.dumps([node_attributes(attributes), has_priors], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sorts_in_float(attributes: DecodeNmsAttributes, num_anchors: int, num_classes: int) -> bool:
    """Whether float32 can count what is sorted, of so many anchors and classes, the background counted."""
    greatest = max(num_anchors * num_classes, _most_sorted(attributes, num_anchors, num_classes) ** 2)
    return greatest <= EXACT_IN_FLOAT


def _most_sorted(attributes: DecodeNmsAttributes, num_anchors: int, num_classes: int) -> int:
    """The most candidates that are sorted at once."""
    available, groups = num_anchors * num_classes, 1
    if attributes.top_k_scope == "level":
        groups = len(attributes.level_sizes)
    elif attributes.top_k_scope == "class" and (attributes.class_agnostic or attributes.overlap == "diou"):
        groups = available
    elif attributes.top_k_scope == "class":  # each class by itself
        available = num_anchors
    kept = min(available, groups * (attributes.pre_nms_top_k or available))
    return max(kept, attributes.max_detections)


def _body(builder: DecodeNmsBuilder, inputs: dict[str, ir.Value]) -> Outputs:
    attributes, class_logits = builder.attributes, inputs["class_logits"]
    candidates = select_candidates(builder, class_logits, inputs.get("objectness"))
    by_class = attributes.top_k_scope == "class"
    if by_class and attributes.with_nms and (attributes.class_agnostic or attributes.overlap == "diou"):
        candidates, by_class = in_rank_order(builder, candidates), False
    boxes, usable = decode_candidates(
        builder, candidates, inputs["box_regression"], inputs.get("priors"), inputs.get("image_size_hw")
    )
    valid = builder.op("And", builder.op("Greater", candidates.scores, inputs["score_threshold"]), usable)
    if attributes.with_nms:
        num_classes = builder.dimension(class_logits, 2)
        valid = keep_mask(builder, candidates, boxes, valid, num_classes, inputs["iou_threshold"])
    # Candidates in rank order need no more than their places for keys; those that come class by class their scores.
    keys = builder.op("Where", valid, candidates.scores, -1.0) if by_class else rank_keys(builder, valid)
    return collect(builder, candidates, boxes, keys, keys_tie=by_class)
