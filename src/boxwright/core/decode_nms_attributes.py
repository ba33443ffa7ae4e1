"""The attributes of the operator `boxwright::DecodeNMS`, validated once for every implementation."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from boxwright.core.errors import InputError

BoxCoding = Literal["anchor_delta", "yolov1", "yolov2", "yolov4", "yolov5", "yolox", "distances", "xyxy", "cxcywh"]
ScoreActivation = Literal["none", "sigmoid", "softmax"]
ObjectnessActivation = Literal["none", "sigmoid"]
ScoreCombination = Literal["none", "multiply", "sqrt"]
TopKScope = Literal["image", "level", "class"]
Overlap = Literal["iou", "diou"]

# Codings that place the centre inside a grid cell need the stride of the level that a box comes from.
STRIDE_CODINGS: frozenset[str] = frozenset({"yolov1", "yolov2", "yolov4", "yolov5"})
# ONNX domain of the operator inside a network that has just been traced; its attribute `attributes` is the JSON of
# `DecodeNmsAttributes`, and its inputs are `TRACED_INPUTS`. No exported file has it.
TRACED_DOMAIN = "boxwright.traced"
TRACED_INPUTS = ("box_regression", "class_logits", "priors", "image_size_hw")

# Room is kept for all of them in every result.
MOST_DETECTIONS = 100_000

_FLAGS = ("class_specific_boxes", "multi_label", "with_nms", "class_agnostic", "clip_to_image")
_INTEGERS = ("background_class", "pre_nms_top_k", "max_detections")
_NUMBERS = ("delta_clip", "min_size")
_LISTS_OF_NUMBERS = ("box_weights", "level_strides", "level_scale_xy")


@dataclass(frozen=True, kw_only=True)
class DecodeNmsAttributes:
    """How raw heads become detections; see `boxwright.core.decode.decode_nms` for the exact meaning.

    Attributes:
        box_coding: how four numbers and a prior make a box.
        box_weights: divisors of the four deltas (`anchor_delta` alone).
        delta_clip: upper bound of the width and height deltas before `exp` (`anchor_delta` alone); 0 for none.
        level_sizes: number of anchors of each pyramid level, in order; they sum to N. Needed by the top-k scope
            `level` and by the codings in `STRIDE_CODINGS`.
        level_strides: pixels a grid cell of each level, for `STRIDE_CODINGS`.
        level_scale_xy: YOLOv4's `scale_x_y` of each level; empty means 1.
        score_activation: of the class logits.
        objectness_activation: of the objectness or centerness, where there is one.
        score_combination: `none`, `multiply` (class times objectness) or `sqrt` (square root of that product).
        background_class: index in the logits that is no object; -1 for none. Class ids are counted without it.
        class_specific_boxes: whether the regression is (B, N, C*4), a box for each class.
        multi_label: every class of an anchor is a candidate, not the best alone.
        with_nms: False leaves a plain top-k by score.
        class_agnostic: a box suppresses boxes of other classes too.
        overlap: `iou` or `diou`.
        pre_nms_top_k: candidates kept before decoding in each `top_k_scope`; 0 for all.
        top_k_scope: over the image, each pyramid level, or each class.
        clip_to_image: whether boxes are clipped to `image_size_hw` before NMS.
        min_size: boxes narrower or lower than this many pixels are dropped before NMS.
        max_detections: K of the outputs.
    """

    box_coding: BoxCoding
    box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    delta_clip: float = 0.0
    level_sizes: tuple[int, ...] = ()
    level_strides: tuple[float, ...] = ()
    level_scale_xy: tuple[float, ...] = ()
    score_activation: ScoreActivation = "sigmoid"
    objectness_activation: ObjectnessActivation = "sigmoid"
    score_combination: ScoreCombination = "none"
    background_class: int = -1
    class_specific_boxes: bool = False
    multi_label: bool = False
    with_nms: bool = True
    class_agnostic: bool = False
    overlap: Overlap = "iou"
    pre_nms_top_k: int = 0
    top_k_scope: TopKScope = "image"
    clip_to_image: bool = False
    min_size: float = 0.0
    max_detections: int = 300

    def __post_init__(self) -> None:
        self._set_types()
        _require_member("box_coding", self.box_coding, get_args(BoxCoding))
        _require_member("score_activation", self.score_activation, get_args(ScoreActivation))
        _require_member("objectness_activation", self.objectness_activation, get_args(ObjectnessActivation))
        _require_member("score_combination", self.score_combination, get_args(ScoreCombination))
        _require_member("top_k_scope", self.top_k_scope, get_args(TopKScope))
        _require_member("overlap", self.overlap, get_args(Overlap))
        _require(len(self.box_weights) == 4, "box_weights", "four positive numbers", self.box_weights)
        _require(all(w > 0 for w in self.box_weights), "box_weights", "four positive numbers", self.box_weights)
        _require(self.delta_clip >= 0, "delta_clip", "a number >= 0", self.delta_clip)
        _require(self.background_class >= -1, "background_class", "-1 or a class index", self.background_class)
        _require(self.pre_nms_top_k >= 0, "pre_nms_top_k", "a number >= 0", self.pre_nms_top_k)
        _require(self.min_size >= 0, "min_size", "a number >= 0", self.min_size)
        in_range = 1 <= self.max_detections <= MOST_DETECTIONS
        _require(in_range, "max_detections", f"a number from 1 to {MOST_DETECTIONS}", self.max_detections)
        _require(all(n >= 0 for n in self.level_sizes), "level_sizes", "numbers >= 0", self.level_sizes)
        if self.box_coding in STRIDE_CODINGS:
            same_length = len(self.level_strides) == len(self.level_sizes) > 0
            _require(same_length, "level_strides", "one stride for each of level_sizes", self.level_strides)
        if self.level_scale_xy:
            same_length = len(self.level_scale_xy) == len(self.level_sizes)
            _require(same_length, "level_scale_xy", "one number for each of level_sizes", self.level_scale_xy)
        if self.top_k_scope == "level":
            _require(len(self.level_sizes) > 0, "level_sizes", "the size of each level", self.level_sizes)

    def _set_types(self) -> None:
        """Make floats where files carry floats, also of 8 for 8.0; anything else of another type is an error."""
        for name in _FLAGS:
            _require(isinstance(getattr(self, name), bool), name, "True or False", getattr(self, name))
        for name in _INTEGERS:
            is_integer = isinstance(getattr(self, name), int) and not isinstance(getattr(self, name), bool)
            _require(is_integer, name, "an integer", getattr(self, name))
        for name in (*_NUMBERS, *_LISTS_OF_NUMBERS):
            value = getattr(self, name)
            try:
                converted = float(value) if name in _NUMBERS else tuple(float(number) for number in value)
            except (TypeError, ValueError):
                _require(False, name, "a number" if name in _NUMBERS else "numbers", value)
            object.__setattr__(self, name, converted)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DecodeNmsAttributes:
        """What `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        for name, value in fields.items():
            if isinstance(value, list):
                fields[name] = tuple(value)
        return cls(**fields)


def _require_member(name: str, value: str, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, name, "one of " + ", ".join(allowed), value)


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise InputError(f"DecodeNMS attribute {name}", expected=expected, got=repr(got), fix="correct the attribute")
