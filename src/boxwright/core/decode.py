"""The numpy reference of `boxwright::DecodeNMS`: raw heads in, detections out.

Everything here is float32 and follows the definition below step by step; speed is the business of the C++ kernel.

1. Scores are activated (`score_activation`, `objectness_activation`) and combined. A candidate is a pair of anchor
   and class (the background excluded); with `multi_label` off only the best class of an anchor, the lowest index at
   a tie. A candidate whose class logit (any logit of the anchor under softmax), objectness or score is not finite is
   none, and neither is one whose score is not > the score threshold.
2. Candidates are ranked by score descending, then class, then anchor index; the first `pre_nms_top_k` of each scope
   are kept.
3. Their boxes are decoded, clipped and dropped where a raw number, a prior or a coordinate (decoded or clipped) is not
   finite, or where a side is shorter than `min_size`.
4. A box is suppressed by a better kept one of its class (of any, if agnostic) at overlap > the IoU threshold.
5. The first `max_detections` fill the outputs; the rest is padding: box 0, score 0, class -1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import FloatArray, clip_boxes, cxcywh_to_xyxy
from boxwright.core.decode_nms_attributes import STRIDE_CODINGS, DecodeNmsAttributes
from boxwright.core.errors import InputError
from boxwright.core.nms import IntArray, greedy_nms


class DecodeNmsOutput(NamedTuple):
    """Detections of a batch in the EfficientNMS layout; K is `max_detections`."""

    num_detections: NDArray[np.int32]  # (B, 1)
    boxes: FloatArray  # (B, K, 4) xyxy in pixels of the network input
    scores: FloatArray  # (B, K)
    class_ids: NDArray[np.int32]  # (B, K)


def decode_nms(
    box_regression: FloatArray,
    class_logits: FloatArray,
    *,
    attributes: DecodeNmsAttributes,
    score_threshold: float,
    iou_threshold: float,
    objectness: FloatArray | None = None,
    priors: FloatArray | None = None,
    image_size_hw: FloatArray | None = None,
) -> DecodeNmsOutput:
    """Turn the raw heads of a batch into detections.

    Args:
        box_regression: (B, N, 4), or (B, N, C*4) with `class_specific_boxes`.
        class_logits: (B, N, C), the background class included where there is one.
        attributes: of the operator.
        score_threshold: in [0, 1]; kept are scores > this.
        iou_threshold: in [0, 1]; suppressed are overlaps > this.
        objectness: (B, N) objectness or centerness, for a `score_combination` other than `none`.
        priors: (N, 4) or (B, N, 4). For `anchor_delta` anchors xyxy; for every other coding a reference point x, y and
            a scale w, h: the cell's origin or centre and the anchor, stride or image size. `xyxy` and `cxcywh` take
            their numbers as they are where there are none.
        image_size_hw: (B, 2) pixels to clip to, for `clip_to_image`.

    Returns:
        A `DecodeNmsOutput`.

    Raises:
        InputError: where shapes do not fit each other or the attributes, or a threshold is outside [0, 1].
    """
    check_inputs(
        box_regression, class_logits, attributes, score_threshold, iou_threshold, objectness, priors, image_size_hw
    )
    batch_size, _, _ = class_logits.shape
    top = attributes.max_detections
    output = DecodeNmsOutput(
        num_detections=np.zeros((batch_size, 1), dtype=np.int32),
        boxes=np.zeros((batch_size, top, 4), dtype=np.float32),
        scores=np.zeros((batch_size, top), dtype=np.float32),
        class_ids=np.full((batch_size, top), -1, dtype=np.int32),
    )
    for item in range(batch_size):
        item_priors = priors if priors is None or priors.ndim == 2 else priors[item]
        boxes, scores, class_ids = _decode_nms_of_one(
            box_regression[item].astype(np.float32, copy=False),
            class_logits[item].astype(np.float32, copy=False),
            None if objectness is None else objectness[item].astype(np.float32, copy=False),
            None if item_priors is None else item_priors.astype(np.float32, copy=False),
            None if image_size_hw is None else image_size_hw[item],
            attributes,
            score_threshold,
            iou_threshold,
        )
        count = len(scores)
        output.num_detections[item, 0] = count
        output.boxes[item, :count] = boxes
        output.scores[item, :count] = scores
        output.class_ids[item, :count] = class_ids
    return output


def _decode_nms_of_one(
    box_regression: FloatArray,
    class_logits: FloatArray,
    objectness: FloatArray | None,
    priors: FloatArray | None,
    image_size_hw: FloatArray | None,
    attributes: DecodeNmsAttributes,
    score_threshold: float,
    iou_threshold: float,
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Boxes (K, 4), scores (K,) and class ids (K,) of one image."""
    candidate_scores = score_candidates(class_logits, objectness, attributes)  # (N, C), -inf where none
    anchors, classes, scores = _select_candidates(candidate_scores, attributes, score_threshold)
    boxes = decode_boxes(box_regression, priors, anchors, classes, attributes)  # (M, 4)
    usable = np.isfinite(boxes).all(axis=1)
    if attributes.clip_to_image:
        assert image_size_hw is not None
        boxes = clip_boxes(boxes, image_size_hw)
        usable &= np.isfinite(boxes).all(axis=1)  # none is where the image's size is no number
    if attributes.min_size > 0:
        with np.errstate(all="ignore"):
            usable &= (boxes[:, 2:] - boxes[:, :2] >= np.float32(attributes.min_size)).all(axis=1)
    boxes, scores, classes = boxes[usable], scores[usable], classes[usable]
    if attributes.with_nms:
        kept = greedy_nms(
            boxes,
            classes,
            iou_threshold=iou_threshold,
            class_agnostic=attributes.class_agnostic,
            overlap=attributes.overlap,
        )
        boxes, scores, classes = boxes[kept], scores[kept], classes[kept]
    top = attributes.max_detections
    class_ids = _without_background(classes, attributes.background_class)
    return boxes[:top], scores[:top], class_ids[:top]


def score_candidates(
    class_logits: FloatArray, objectness: FloatArray | None, attributes: DecodeNmsAttributes
) -> FloatArray:
    """Scores (N, C) float32 of all pairs of anchor and class, -inf for pairs that are no candidates."""
    with np.errstate(all="ignore"):
        finite = np.isfinite(class_logits)
        if attributes.score_activation == "softmax":
            finite = np.broadcast_to(finite.all(axis=1, keepdims=True), finite.shape)
        scores = activate(class_logits, attributes.score_activation)
        if attributes.score_combination != "none":
            assert objectness is not None
            finite = finite & np.isfinite(objectness)[:, None]
            scores = scores * activate(objectness, attributes.objectness_activation)[:, None]
            if attributes.score_combination == "sqrt":
                scores = np.sqrt(scores)
        scores = np.where(finite & np.isfinite(scores), scores, np.float32(-np.inf))
    if attributes.background_class >= 0:
        scores[:, attributes.background_class] = -np.inf
    if not attributes.multi_label and scores.shape[0] > 0 and scores.shape[1] > 1:
        is_best = np.arange(scores.shape[1])[None, :] == scores.argmax(axis=1)[:, None]
        scores = np.where(is_best, scores, np.float32(-np.inf))
    result: FloatArray = scores.astype(np.float32, copy=False)
    return result


def activate(logits: FloatArray, activation: str) -> FloatArray:
    """Sigmoid, softmax over the last axis, or nothing, in float32."""
    if activation == "none":
        return logits
    with np.errstate(all="ignore"):
        if activation == "sigmoid":
            result: FloatArray = np.float32(1) / (np.float32(1) + np.exp(-logits))
            return result
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
        softmax: FloatArray = exponentials / exponentials.sum(axis=-1, keepdims=True)
        return softmax


def _select_candidates(
    scores: FloatArray, attributes: DecodeNmsAttributes, score_threshold: float
) -> tuple[IntArray, IntArray, FloatArray]:
    """Anchors (M,), classes (M,) and scores (M,) in rank order, after the top-k."""
    anchors, classes = np.nonzero(scores > np.float32(score_threshold))
    values = scores[anchors, classes]
    rank = np.lexsort((anchors, classes, -values))
    anchors, classes, values = anchors[rank], classes[rank], values[rank]
    if attributes.pre_nms_top_k > 0:
        scope = {
            "image": np.zeros_like(anchors),
            "class": classes,
            "level": _levels_of(anchors, attributes.level_sizes),
        }[attributes.top_k_scope]
        kept = _first_of_each(scope, attributes.pre_nms_top_k)
        anchors, classes, values = anchors[kept], classes[kept], values[kept]
    return anchors, classes, values


def _first_of_each(groups: IntArray, count: int) -> NDArray[np.bool_]:
    """Mask (M,) of the first `count` members of every group, in the order given."""
    by_group = np.argsort(groups, kind="stable")
    sorted_groups = groups[by_group]
    starts = np.searchsorted(sorted_groups, sorted_groups, side="left")
    mask = np.zeros(len(groups), dtype=bool)
    within: NDArray[np.bool_] = np.arange(len(groups)) - starts < count
    mask[by_group] = within
    return mask


def _levels_of(anchors: IntArray, level_sizes: tuple[int, ...]) -> IntArray:
    ends = np.cumsum(np.array(level_sizes, dtype=np.int64))
    return np.searchsorted(ends, anchors, side="right").astype(np.int64)


def decode_boxes(
    box_regression: FloatArray,
    priors: FloatArray | None,
    anchors: IntArray,
    classes: IntArray,
    attributes: DecodeNmsAttributes,
) -> FloatArray:
    """Boxes (M, 4) xyxy of the chosen pairs; NaN where a raw number or a prior is not finite.

    Args:
        box_regression: (N, 4) or (N, C*4).
        priors: (N, 4) or None.
        anchors: (M,) row of each pair.
        classes: (M,) class of each pair.
        attributes: of the operator.
    """
    if attributes.class_specific_boxes:
        raw = box_regression.reshape(len(box_regression), box_regression.shape[1] // 4, 4)[anchors, classes]  # (M, 4)
    else:
        raw = box_regression[anchors]
    prior = None if priors is None else priors[anchors]
    with np.errstate(all="ignore"):
        boxes = _CODINGS[attributes.box_coding](raw, prior, anchors, attributes)
    finite = np.asarray(np.isfinite(raw).all(axis=1))
    if prior is not None:
        finite &= np.isfinite(prior).all(axis=1)
    result: FloatArray = np.where(finite[:, None], boxes, np.float32(np.nan)).astype(np.float32)
    return result


def _decode_anchor_delta(
    raw: FloatArray, prior: FloatArray | None, anchors: IntArray, attributes: DecodeNmsAttributes
) -> FloatArray:
    """R-CNN deltas to a corner-coded anchor. Source: Girshick et al., R-CNN, CVPR 2014, appendix C."""
    assert prior is not None
    deltas = raw / np.array(attributes.box_weights, dtype=np.float32)
    sizes = prior[:, 2:] - prior[:, :2]
    centres = prior[:, :2] + np.float32(0.5) * sizes
    log_scales = deltas[:, 2:]
    if attributes.delta_clip > 0:
        log_scales = np.minimum(log_scales, np.float32(attributes.delta_clip))
    decoded_centres = deltas[:, :2] * sizes + centres
    return _corners(decoded_centres, np.exp(log_scales) * sizes)


def _decode_yolov1(
    raw: FloatArray, prior: FloatArray | None, anchors: IntArray, attributes: DecodeNmsAttributes
) -> FloatArray:
    """Offset within the cell; square root of the size relative to the image. Source: Redmon et al., CVPR 2016."""
    assert prior is not None
    stride = _per_anchor(attributes.level_strides, anchors, attributes)
    return _corners(prior[:, :2] + raw[:, :2] * stride, np.square(raw[:, 2:]) * prior[:, 2:])


def _decode_yolov2(
    raw: FloatArray, prior: FloatArray | None, anchors: IntArray, attributes: DecodeNmsAttributes
) -> FloatArray:
    """Sigmoid offset, exponential size. Source: Redmon and Farhadi, YOLO9000, CVPR 2017, sec. 2."""
    assert prior is not None
    stride = _per_anchor(attributes.level_strides, anchors, attributes)
    offset = activate(raw[:, :2], "sigmoid")
    return _corners(prior[:, :2] + offset * stride, np.exp(raw[:, 2:]) * prior[:, 2:])


def _decode_yolov4(
    raw: FloatArray, prior: FloatArray | None, anchors: IntArray, attributes: DecodeNmsAttributes
) -> FloatArray:
    """As YOLOv2, the offset stretched about the cell's middle. Source: Bochkovskiy et al., YOLOv4, 2020, sec. 3.4."""
    assert prior is not None
    stride = _per_anchor(attributes.level_strides, anchors, attributes)
    scale = _per_anchor(attributes.level_scale_xy or (1.0,) * len(attributes.level_sizes), anchors, attributes)
    offset = activate(raw[:, :2], "sigmoid") * scale - (scale - np.float32(1)) * np.float32(0.5)
    return _corners(prior[:, :2] + offset * stride, np.exp(raw[:, 2:]) * prior[:, 2:])


def _decode_yolov5(
    raw: FloatArray, prior: FloatArray | None, anchors: IntArray, attributes: DecodeNmsAttributes
) -> FloatArray:
    """Offset in (-0.5, 1.5) cells, size up to four anchors. Source: the public YOLOv5 model description."""
    assert prior is not None
    stride = _per_anchor(attributes.level_strides, anchors, attributes)
    activated = activate(raw, "sigmoid")
    centres = prior[:, :2] + (activated[:, :2] * np.float32(2) - np.float32(0.5)) * stride
    return _corners(centres, np.square(activated[:, 2:] * np.float32(2)) * prior[:, 2:])


def _decode_yolox(
    raw: FloatArray, prior: FloatArray | None, anchors: IntArray, attributes: DecodeNmsAttributes
) -> FloatArray:
    """Linear offset from the cell's corner, exponential size. Source: Ge et al., YOLOX, 2021."""
    assert prior is not None
    return _corners(prior[:, :2] + raw[:, :2] * prior[:, 2:], np.exp(raw[:, 2:]) * prior[:, 2:])


def _decode_distances(
    raw: FloatArray, prior: FloatArray | None, anchors: IntArray, attributes: DecodeNmsAttributes
) -> FloatArray:
    """Distances left, top, right, bottom from a point. Source: Tian et al., FCOS, ICCV 2019, eq. 1."""
    assert prior is not None
    return np.concatenate([prior[:, :2] - raw[:, :2] * prior[:, 2:], prior[:, :2] + raw[:, 2:] * prior[:, 2:]], axis=1)


def _decode_xyxy(
    raw: FloatArray, prior: FloatArray | None, anchors: IntArray, attributes: DecodeNmsAttributes
) -> FloatArray:
    if prior is None:
        return raw
    return np.concatenate([prior[:, :2] + raw[:, :2] * prior[:, 2:], prior[:, :2] + raw[:, 2:] * prior[:, 2:]], axis=1)


def _decode_cxcywh(
    raw: FloatArray, prior: FloatArray | None, anchors: IntArray, attributes: DecodeNmsAttributes
) -> FloatArray:
    if prior is None:
        return cxcywh_to_xyxy(raw)
    return _corners(prior[:, :2] + raw[:, :2] * prior[:, 2:], raw[:, 2:] * prior[:, 2:])


_CODINGS = {
    "anchor_delta": _decode_anchor_delta,
    "yolov1": _decode_yolov1,
    "yolov2": _decode_yolov2,
    "yolov4": _decode_yolov4,
    "yolov5": _decode_yolov5,
    "yolox": _decode_yolox,
    "distances": _decode_distances,
    "xyxy": _decode_xyxy,
    "cxcywh": _decode_cxcywh,
}


def _corners(centres: FloatArray, sizes: FloatArray) -> FloatArray:
    half = sizes * np.float32(0.5)
    return np.concatenate([centres - half, centres + half], axis=1)


def _per_anchor(values: tuple[float, ...], anchors: IntArray, attributes: DecodeNmsAttributes) -> FloatArray:
    """The value of each anchor's level, (M, 1)."""
    levels = _levels_of(anchors, attributes.level_sizes)
    return np.array(values, dtype=np.float32)[levels][:, None]


def _without_background(classes: IntArray, background_class: int) -> IntArray:
    if background_class < 0:
        return classes
    return classes - (classes > background_class)


def check_inputs(
    box_regression: FloatArray,
    class_logits: FloatArray,
    attributes: DecodeNmsAttributes,
    score_threshold: float,
    iou_threshold: float,
    objectness: FloatArray | None = None,
    priors: FloatArray | None = None,
    image_size_hw: FloatArray | None = None,
) -> None:
    """Raise `InputError` where the inputs of DecodeNMS do not fit each other or the attributes."""
    if class_logits.ndim != 3:
        _wrong_shape("class_logits", "(B, N, C)", class_logits.shape)
    batch_size, num_anchors, num_classes = class_logits.shape
    if num_classes < 1:
        _wrong_shape("class_logits", "(B, N, C) with at least one class", class_logits.shape)
    width = 4 * num_classes if attributes.class_specific_boxes else 4
    _check_shape("box_regression", box_regression, [(batch_size, num_anchors, width)])
    if (attributes.score_combination != "none") != (objectness is not None):
        raise InputError(
            "DecodeNMS input objectness",
            expected=f"{'an' if objectness is None else 'no'} input for combination {attributes.score_combination!r}",
            got="none" if objectness is None else "one",
            fix="make the input and the attribute score_combination agree",
        )
    if objectness is not None:
        _check_shape("objectness", objectness, [(batch_size, num_anchors)])
    if priors is not None:
        _check_shape("priors", priors, [(num_anchors, 4), (batch_size, num_anchors, 4)])
    elif attributes.box_coding not in ("xyxy", "cxcywh"):
        raise InputError(
            "DecodeNMS input priors",
            expected=f"priors (N, 4) for coding {attributes.box_coding!r}",
            got="none",
            fix="pass the priors",
        )
    if attributes.clip_to_image:
        if image_size_hw is None:
            _wrong_shape("image_size_hw", f"({batch_size}, 2) for clip_to_image", ())
        else:
            _check_shape("image_size_hw", image_size_hw, [(batch_size, 2)])
    if attributes.background_class >= num_classes:
        raise InputError(
            "DecodeNMS attribute background_class",
            expected=f"an index below {num_classes}",
            got=str(attributes.background_class),
            fix="correct the attribute",
        )
    needs_levels = attributes.top_k_scope == "level" or attributes.box_coding in STRIDE_CODINGS
    if needs_levels and sum(attributes.level_sizes) != num_anchors:
        raise InputError(
            "DecodeNMS attribute level_sizes",
            expected=f"numbers that sum to N = {num_anchors}",
            got=str(attributes.level_sizes),
            fix="correct the attribute",
        )
    for name, threshold in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
        if not 0 <= threshold <= 1:
            raise InputError(
                f"DecodeNMS input {name}", expected="a number in [0, 1]", got=str(threshold), fix="correct it"
            )


def _check_shape(name: str, array: FloatArray, allowed: list[tuple[int, ...]]) -> None:
    if array.shape not in allowed:
        _wrong_shape(name, " or ".join(str(shape) for shape in allowed), array.shape)


def _wrong_shape(name: str, expected: str, got: tuple[int, ...]) -> None:
    raise InputError(f"DecodeNMS input {name}", expected=f"shape {expected}", got=str(got), fix="reshape or correct it")
