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
    numbers = [raw, boxes] if prior is None else [raw, prior, boxes]
    finite = is_finite(builder, builder.op("Concat", *numbers, axis=2))
    usable = _all_of_row(builder, finite)
    if attributes.clip_to_image:
        assert image_size_hw is not None
        upper = builder.op("Gather", image_size_hw, [1, 0, 1, 0], axis=1)  # (B, 4) as x, y, x, y
        boxes = builder.op("Min", builder.op("Max", boxes, 0.0), builder.op("Unsqueeze", upper, [1]))
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
    return builder.op("Greater", builder.op("ReduceMin", builder.to_float(flags), axes=[2], keepdims=0), 0.5)


class _Coding(NamedTuple):
    """What a box coding may use."""

    builder: DecodeNmsBuilder
    raw: ir.Value  # (B, M, 4)
    prior: ir.Value | None  # (B, M, 4)
    anchors: ir.Value  # (B, M)

    @property
    def attributes(self) -> DecodeNmsAttributes:
        return self.builder.attributes

    def raw_columns(self, start: int, stop: int) -> ir.Value:
        return self.builder.columns(self.raw, start, stop)

    def prior_columns(self, start: int, stop: int) -> ir.Value:
        assert self.prior is not None
        return self.builder.columns(self.prior, start, stop)

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

    def corners(self, centres: ir.Value, sizes: ir.Value) -> ir.Value:
        half = self.builder.op("Mul", sizes, 0.5)
        low, high = self.builder.op("Sub", centres, half), self.builder.op("Add", centres, half)
        return self.builder.op("Concat", low, high, axis=2)


def _anchor_delta(c: _Coding) -> ir.Value:
    b = c.builder
    deltas = c.raw
    if c.attributes.box_weights != (1.0, 1.0, 1.0, 1.0):
        deltas = b.op("Div", c.raw, [float(weight) for weight in c.attributes.box_weights])
    low = c.prior_columns(0, 2)
    sizes = b.op("Sub", c.prior_columns(2, 4), low)
    centres = b.op("Add", low, b.op("Mul", sizes, 0.5))
    log_scales = b.columns(deltas, 2, 4)
    if c.attributes.delta_clip > 0:
        log_scales = b.op("Min", log_scales, float(c.attributes.delta_clip))
    moved = b.op("Add", b.op("Mul", b.columns(deltas, 0, 2), sizes), centres)
    return c.corners(moved, b.op("Mul", b.op("Exp", log_scales), sizes))


def _centre_in_cell(c: _Coding, offset: ir.Value, scale: ir.Value | float) -> ir.Value:
    return c.builder.op("Add", c.prior_columns(0, 2), c.builder.op("Mul", offset, scale))


def _exponential_size(c: _Coding) -> ir.Value:
    return c.builder.op("Mul", c.builder.op("Exp", c.raw_columns(2, 4)), c.prior_columns(2, 4))


def _yolov1(c: _Coding) -> ir.Value:
    b = c.builder
    roots = c.raw_columns(2, 4)
    sizes = b.op("Mul", b.op("Mul", roots, roots), c.prior_columns(2, 4))
    return c.corners(_centre_in_cell(c, c.raw_columns(0, 2), c.per_level(c.attributes.level_strides)), sizes)


def _yolov2(c: _Coding) -> ir.Value:
    offset = c.builder.op("Sigmoid", c.raw_columns(0, 2))
    return c.corners(_centre_in_cell(c, offset, c.per_level(c.attributes.level_strides)), _exponential_size(c))


def _yolov4(c: _Coding) -> ir.Value:
    b = c.builder
    scales = c.attributes.level_scale_xy or (1.0,) * len(c.attributes.level_sizes)
    margins = tuple(float((np.float32(scale) - np.float32(1)) * np.float32(0.5)) for scale in scales)
    stretched = b.op("Mul", b.op("Sigmoid", c.raw_columns(0, 2)), c.per_level(scales))
    offset = b.op("Sub", stretched, c.per_level(margins))
    return c.corners(_centre_in_cell(c, offset, c.per_level(c.attributes.level_strides)), _exponential_size(c))


def _yolov5(c: _Coding) -> ir.Value:
    b = c.builder
    doubled = b.op("Mul", b.op("Sigmoid", c.raw), 2.0)
    offset = b.op("Sub", b.columns(doubled, 0, 2), 0.5)
    size_factor = b.columns(doubled, 2, 4)
    sizes = b.op("Mul", b.op("Mul", size_factor, size_factor), c.prior_columns(2, 4))
    return c.corners(_centre_in_cell(c, offset, c.per_level(c.attributes.level_strides)), sizes)


def _yolox(c: _Coding) -> ir.Value:
    return c.corners(_centre_in_cell(c, c.raw_columns(0, 2), c.prior_columns(2, 4)), _exponential_size(c))


def _distances(c: _Coding) -> ir.Value:
    b = c.builder
    point, scale = c.prior_columns(0, 2), c.prior_columns(2, 4)
    low = b.op("Sub", point, b.op("Mul", c.raw_columns(0, 2), scale))
    return b.op("Concat", low, b.op("Add", point, b.op("Mul", c.raw_columns(2, 4), scale)), axis=2)


def _xyxy(c: _Coding) -> ir.Value:
    if c.prior is None:
        return c.raw
    low = _centre_in_cell(c, c.raw_columns(0, 2), c.prior_columns(2, 4))
    high = _centre_in_cell(c, c.raw_columns(2, 4), c.prior_columns(2, 4))
    return c.builder.op("Concat", low, high, axis=2)


def _cxcywh(c: _Coding) -> ir.Value:
    if c.prior is None:
        return c.corners(c.raw_columns(0, 2), c.raw_columns(2, 4))
    sizes = c.builder.op("Mul", c.raw_columns(2, 4), c.prior_columns(2, 4))
    return c.corners(_centre_in_cell(c, c.raw_columns(0, 2), c.prior_columns(2, 4)), sizes)


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
