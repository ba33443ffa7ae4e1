"""Step 3 of DecodeNMS in ONNX: boxes of the candidates; formulas and sources in `boxwright.core.decode`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.export.decode_nms.builder import DecodeNmsBuilder
from boxwright.export.decode_nms.scores import is_finite
from boxwright.export.decode_nms.selection import Candidates


class DecodedBoxes(NamedTuple):
    """Boxes of the candidates, and whether each is finite and large enough."""

    boxes_xyxy: ir.Value  # (B, M, 4)
    usable: ir.Value  # (B, M) bool


def decode_candidates(
    builder: DecodeNmsBuilder,
    candidates: Candidates,
    box_regression: ir.Value,
    priors: ir.Value | None,
    image_size_hw: ir.Value | None,
) -> DecodedBoxes:
    """Boxes of all candidates, clipped where the attributes say so."""
    attributes = builder.attributes
    raw = _gather_raw(builder, candidates, box_regression)  # (B, M, 4)
    prior = None if priors is None else _gather_priors(builder, candidates, priors, box_regression)
    coding = _Coding(builder, raw, prior, candidates.anchors)
    boxes = _CODINGS[attributes.box_coding](coding)
    finite = builder.op("And", is_finite(builder, raw), is_finite(builder, boxes))
    if prior is not None:
        finite = builder.op("And", finite, is_finite(builder, prior))
    if attributes.clip_to_image:
        assert image_size_hw is not None
        upper = builder.op("Gather", image_size_hw, [1, 0, 1, 0], axis=1)  # (B, 4) as x, y, x, y
        boxes = builder.op("Min", builder.op("Max", boxes, 0.0), builder.op("Unsqueeze", upper, [1]))
        finite = builder.op("And", finite, is_finite(builder, boxes))  # not where the image's size is no number
    usable = _all_of_row(builder, finite)
    if attributes.min_size > 0:
        extents = builder.op("Sub", builder.columns(boxes, 2, 4), builder.columns(boxes, 0, 2))
        large = builder.op("GreaterOrEqual", extents, float(attributes.min_size))
        usable = builder.op("And", usable, _all_of_row(builder, large))
    return DecodedBoxes(boxes, usable)


def _gather_raw(builder: DecodeNmsBuilder, candidates: Candidates, box_regression: ir.Value) -> ir.Value:
    if not builder.attributes.class_specific_boxes:
        return builder.gather_rows(box_regression, candidates.anchors)
    num_classes = builder.op("Div", builder.dimension(box_regression, 2), [4])
    per_class = builder.reshape(box_regression, builder.dimensions(box_regression, 0, 2), num_classes, [4])
    classes = builder.op("Cast", candidates.classes, to=ir.DataType.INT64)
    columns = [builder.op("Unsqueeze", part, [2]) for part in (candidates.anchors, classes)]
    return builder.op("GatherND", per_class, builder.op("Concat", *columns, axis=2), batch_dims=1)


def _gather_priors(
    builder: DecodeNmsBuilder, candidates: Candidates, priors: ir.Value, box_regression: ir.Value
) -> ir.Value:
    """Priors of the candidates (B, M, 4), of (N, 4) or (B, N, 4)."""
    shape = builder.op("Concat", builder.dimensions(box_regression, 0, 2), [4], axis=0)
    return builder.gather_rows(builder.op("Expand", priors, shape), candidates.anchors)


def _all_of_row(builder: DecodeNmsBuilder, flags: ir.Value) -> ir.Value:
    """(B, M) bool, true where all of (B, M, D) are."""
    return builder.op("Greater", builder.reduce("ReduceMin", builder.to_float(flags)), 0.5)


class _Coding(NamedTuple):
    """What a box coding may use. All is four columns wide, x, y, x, y, so that formulas hold for both corners."""

    builder: DecodeNmsBuilder
    raw: ir.Value  # (B, M, 4)
    prior: ir.Value | None  # (B, M, 4)
    anchors: ir.Value  # (B, M)

    @property
    def attributes(self) -> DecodeNmsAttributes:
        return self.builder.attributes

    def first_two(self, values: ir.Value) -> ir.Value:
        return self.builder.op("Gather", values, [0, 1, 0, 1], axis=2)

    def last_two(self, values: ir.Value) -> ir.Value:
        return self.builder.op("Gather", values, [2, 3, 2, 3], axis=2)

    @property
    def point(self) -> ir.Value:
        """First two columns of the prior."""
        assert self.prior is not None
        return self.first_two(self.prior)

    @property
    def scale(self) -> ir.Value:
        """Last two columns of the prior."""
        assert self.prior is not None
        return self.last_two(self.prior)

    def per_level(self, values: tuple[float, ...]) -> ir.Value | float:
        """The value of each candidate's level, (B, M, 1), or one number where all levels share it."""
        if len(set(values)) == 1:
            return float(values[0])
        ends = np.cumsum(np.array(self.attributes.level_sizes, dtype=np.int64))[:-1]
        column = self.builder.op("Unsqueeze", self.anchors, [2])
        passed = self.builder.op("GreaterOrEqual", column, self.builder.constant(ends))  # (B, M, levels - 1)
        counted = self.builder.op("ReduceSum", self.builder.to_float(passed), [2], keepdims=1)
        level = self.builder.op("Cast", counted, to=ir.DataType.INT64)
        return self.builder.op("Gather", self.builder.constant(np.array(values, dtype=np.float32)), level, axis=0)

    def moved(self, start: ir.Value, offset: ir.Value, scale: ir.Value | float) -> ir.Value:
        return self.builder.op("Add", start, self.builder.op("Mul", offset, scale))

    def corners(self, centres: ir.Value, sizes: ir.Value) -> ir.Value:
        return self.moved(centres, sizes, self.builder.value([-0.5, -0.5, 0.5, 0.5]))


def _anchor_delta(c: _Coding) -> ir.Value:
    b = c.builder
    deltas = c.raw
    if c.attributes.box_weights != (1.0, 1.0, 1.0, 1.0):
        deltas = b.op("Div", c.raw, [float(weight) for weight in c.attributes.box_weights])
    low = c.point
    sizes = b.op("Sub", c.scale, low)
    centres = c.moved(low, sizes, 0.5)
    log_scales = c.last_two(deltas)
    if c.attributes.delta_clip > 0:
        log_scales = b.op("Min", log_scales, float(c.attributes.delta_clip))
    return c.corners(c.moved(centres, c.first_two(deltas), sizes), b.op("Mul", b.op("Exp", log_scales), sizes))


def _exponential_size(c: _Coding) -> ir.Value:
    return c.builder.op("Mul", c.builder.op("Exp", c.last_two(c.raw)), c.scale)


def _yolov1(c: _Coding) -> ir.Value:
    b = c.builder
    roots = c.last_two(c.raw)
    centres = c.moved(c.point, c.first_two(c.raw), c.per_level(c.attributes.level_strides))
    return c.corners(centres, b.op("Mul", b.op("Mul", roots, roots), c.scale))


def _yolov2(c: _Coding) -> ir.Value:
    offset = c.builder.op("Sigmoid", c.first_two(c.raw))
    return c.corners(c.moved(c.point, offset, c.per_level(c.attributes.level_strides)), _exponential_size(c))


def _yolov4(c: _Coding) -> ir.Value:
    b = c.builder
    scales = c.attributes.level_scale_xy or (1.0,) * len(c.attributes.level_sizes)
    margins = tuple(float((np.float32(scale) - np.float32(1)) * np.float32(0.5)) for scale in scales)
    stretched = b.op("Mul", b.op("Sigmoid", c.first_two(c.raw)), c.per_level(scales))
    offset = b.op("Sub", stretched, c.per_level(margins))
    return c.corners(c.moved(c.point, offset, c.per_level(c.attributes.level_strides)), _exponential_size(c))


def _yolov5(c: _Coding) -> ir.Value:
    b = c.builder
    doubled = b.op("Mul", b.op("Sigmoid", c.raw), 2.0)
    offset = b.op("Sub", c.first_two(doubled), 0.5)
    factor = c.last_two(doubled)
    sizes = b.op("Mul", b.op("Mul", factor, factor), c.scale)
    return c.corners(c.moved(c.point, offset, c.per_level(c.attributes.level_strides)), sizes)


def _yolox(c: _Coding) -> ir.Value:
    return c.corners(c.moved(c.point, c.first_two(c.raw), c.scale), _exponential_size(c))


def _distances(c: _Coding) -> ir.Value:
    outwards = c.builder.op("Mul", c.builder.op("Mul", c.raw, c.scale), [-1.0, -1.0, 1.0, 1.0])
    return c.builder.op("Add", c.point, outwards)


def _xyxy(c: _Coding) -> ir.Value:
    return c.raw if c.prior is None else c.moved(c.point, c.raw, c.scale)


def _cxcywh(c: _Coding) -> ir.Value:
    if c.prior is None:
        return c.corners(c.first_two(c.raw), c.last_two(c.raw))
    centres = c.moved(c.point, c.first_two(c.raw), c.scale)
    return c.corners(centres, c.builder.op("Mul", c.last_two(c.raw), c.scale))


_CODINGS: dict[str, Callable[[_Coding], ir.Value]] = {
    "anchor_delta": _anchor_delta,
    "yolov1": _yolov1,
    "yolov2": _yolov2,
    "yolov4": _yolov4,
    "yolov5": _yolov5,
    "yolox": _yolox,
    "distances": _distances,
    "xyxy": _xyxy,
    "cxcywh": _cxcywh,
}
