"""The operator's schema for the onnx package, whose checker and shape inference then know DecodeNMS.

`onnx.checker.check_model(model, full_check=True)` refuses attributes that are unknown, of another type or without
meaning, shapes that fit neither each other nor the attributes, and constant thresholds outside [0, 1].
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
from onnx.defs import OpSchema
from onnx.shape_inference import InferenceContext, InferenceError

from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.core.errors import InputError
from boxwright.export.decode_nms.function import DOMAIN, OP_TYPE, OUTPUT_NAMES, THRESHOLD_NAMES, input_names

VERSION = 1
# A size that is not known: a name of the graph's, or nothing.
Dimension = int | str | None
_BOX_NUMBERS = 4


def register_schema() -> None:
    """Tell the onnx package of the operator; a second call does nothing."""
    if not onnx.defs.has(OP_TYPE, DOMAIN):
        onnx.defs.register_schema(_schema())


def _schema() -> OpSchema:
    fixed = [
        OpSchema.FormalParameter("box_regression", "T", "(B, N, 4) or, with a box for each class, (B, N, C*4)"),
        OpSchema.FormalParameter("class_logits", "T", "(B, N, C), background included"),
        OpSchema.FormalParameter("score_threshold", "T", "one number"),
        OpSchema.FormalParameter("iou_threshold", "T", "one number"),
        OpSchema.FormalParameter(
            "others",
            "T",
            "objectness (B, N), image_size_hw (B, 2) and priors, those that the attributes call for",
            param_option=OpSchema.FormalParameterOption.Variadic,
            min_arity=0,
        ),
    ]
    outputs = [OpSchema.FormalParameter(name, "T" if name in ("boxes", "scores") else "I") for name in OUTPUT_NAMES]
    schema = OpSchema(
        OP_TYPE,
        DOMAIN,
        VERSION,
        doc=DecodeNmsAttributes.__doc__ or "",
        inputs=fixed,
        outputs=outputs,
        type_constraints=[("T", ["tensor(float)"], "scores and boxes"), ("I", ["tensor(int32)"], "counts and classes")],
        attributes=[_attribute(field) for field in dataclasses.fields(DecodeNmsAttributes)],
    )
    schema.set_type_and_shape_inference_function(_infer)
    return schema


def _attribute(field: dataclasses.Field[Any]) -> OpSchema.Attribute:
    if field.name == "box_coding":
        return OpSchema.Attribute(field.name, OpSchema.AttrType.STRING, required=True)
    example = field.default[0] if isinstance(field.default, tuple) and field.default else field.default
    is_float = isinstance(example, float) or field.name in ("level_strides", "level_scale_xy")
    types = OpSchema.AttrType
    if isinstance(field.default, tuple):
        kind = types.FLOATS if is_float else types.INTS
    else:
        kind = types.STRING if isinstance(example, str) else types.FLOAT if is_float else types.INT
    return OpSchema.Attribute(field.name, kind, required=False)


def _infer(context: InferenceContext) -> None:
    """Check the node and give its outputs their shapes.

    Raises:
        InferenceError: where something does not fit, in the words of `InputError`.
    """
    try:
        attributes = _attributes(context)
        _check_and_infer(context, attributes)
    except InputError as error:
        raise InferenceError(str(error)) from error


def _attributes(context: InferenceContext) -> DecodeNmsAttributes:
    given: dict[str, Any] = {}
    for field in dataclasses.fields(DecodeNmsAttributes):
        attribute = context.get_attribute(field.name)
        if attribute is None:
            continue
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(field.default, bool):
            value = {0: False, 1: True}.get(value, value)
        given[field.name] = tuple(value) if isinstance(field.default, tuple) else value
    return DecodeNmsAttributes(**given)


def _check_and_infer(context: InferenceContext, attributes: DecodeNmsAttributes) -> None:
    count = context.get_num_inputs()
    names = input_names(attributes, has_priors=False)
    needs_priors = attributes.box_coding not in ("xyxy", "cxcywh")
    if count == len(names) + 1:
        names = input_names(attributes, has_priors=True)
    elif count != len(names) or needs_priors:
        expected = len(names) + int(needs_priors)
        raise InputError(
            "DecodeNMS", expected=f"{expected} inputs for these attributes", got=str(count), fix="connect them all"
        )
    for index, name in enumerate(names):
        if name in THRESHOLD_NAMES:
            _check_threshold(name, context.get_input_data(index))
    shapes = dict(zip(names, (_shape(context, index) for index in range(count)), strict=True))
    batch = _check_shapes(shapes, attributes)
    top = attributes.max_detections
    for index, shape in enumerate(([batch, 1], [batch, top, _BOX_NUMBERS], [batch, top], [batch, top])):
        kind = onnx.TensorProto.INT32 if index in (0, 3) else onnx.TensorProto.FLOAT
        context.set_output_type(index, onnx.helper.make_tensor_type_proto(kind, shape))


def _check_threshold(name: str, constant: onnx.TensorProto | None) -> None:
    """A threshold that is fed when the graph runs is not known here."""
    if constant is None:
        return
    values = onnx.numpy_helper.to_array(constant)
    if values.size != 1 or not bool(np.all((values >= 0) & (values <= 1))):
        raise InputError(
            f"DecodeNMS input {name}", expected="one number in [0, 1]", got=str(values.tolist()), fix="correct it"
        )


def _shape(context: InferenceContext, index: int) -> list[Dimension] | None:
    """Of an input; None where nothing is known."""
    given = context.get_input_type(index)
    if given is None or not given.tensor_type.HasField("shape"):
        return None
    dimensions: list[Dimension] = []
    for dimension in given.tensor_type.shape.dim:
        dimensions.append(dimension.dim_value if dimension.HasField("dim_value") else dimension.dim_param or None)
    return dimensions


def _check_shapes(shapes: dict[str, list[Dimension] | None], attributes: DecodeNmsAttributes) -> Dimension:
    """Sizes that are known must be the same wherever they stand; returns what is known of the batch's."""
    known: dict[str, Dimension] = {}
    if attributes.level_sizes:
        known["N"] = sum(attributes.level_sizes)
    _match("class_logits", shapes["class_logits"], ["B", "N", "C"], known)
    classes = known.get("C")
    width: Dimension = _BOX_NUMBERS
    if attributes.class_specific_boxes:
        width = classes * _BOX_NUMBERS if isinstance(classes, int) else None
    _match("box_regression", shapes["box_regression"], ["B", "N", width], known)
    if "objectness" in shapes:
        _match("objectness", shapes["objectness"], ["B", "N"], known)
    if "image_size_hw" in shapes:
        _match("image_size_hw", shapes["image_size_hw"], ["B", 2], known)
    priors = shapes.get("priors")
    if priors is not None:
        _match("priors", priors, ["N", 4] if len(priors) == 2 else ["B", "N", 4], known)
    for name in THRESHOLD_NAMES:
        shape = shapes[name]
        if shape not in (None, [], [1], [None]) and not (len(shape) == 1 and isinstance(shape[0], str)):
            raise _misfit(name, "one number", shape)
    return known.get("B")


def _match(name: str, shape: list[Dimension] | None, wanted: list[Dimension], known: dict[str, Dimension]) -> None:
    """Compare a shape with the wanted one, in which letters stand for sizes that `known` learns."""
    if shape is None:
        return
    expected = [known.get(size, size) if isinstance(size, str) else size for size in wanted]
    if len(shape) != len(wanted):
        raise _misfit(name, expected, shape)
    for size, letter, wanted_size in zip(shape, wanted, expected, strict=True):
        if isinstance(size, int) and isinstance(wanted_size, int) and size != wanted_size:
            raise _misfit(name, expected, shape)
        if isinstance(letter, str) and (isinstance(size, int) or letter not in known):
            known[letter] = size


def _misfit(name: str, expected: list[Dimension] | str, got: list[Dimension]) -> InputError:
    def text(shape: list[Dimension]) -> str:
        return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"

    wanted = expected if isinstance(expected, str) else f"shape {text(expected)}"
    return InputError(f"DecodeNMS input {name}", expected=wanted, got=f"shape {text(got)}", fix="reshape it")
