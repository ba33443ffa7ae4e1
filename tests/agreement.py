"""When two implementations of DecodeNMS agree: the rule of the design, stated exactly.

Implementations may differ where a score, an overlap or the top-k cut lies within 1e-6 of a tie or a threshold, and in
what follows from that. A result is therefore not compared with the reference's result but held to what defines it:

- every detection is a pair of anchor and class that the reference scores and decodes the same, whose score is above
  the threshold and which is within the top-k and large enough, each unless the decision was that close;
- detections come in order of score, equal to 1e-6 in any order;
- no detection overlaps a better one of its class (of any, if agnostic) by more than the IoU threshold plus 1e-6;
- every pair that is a candidate beyond doubt is a detection, or is overlapped by a better detection by more than the
  IoU threshold less 1e-6, or found the outputs full of better ones;
- places beyond the detections hold box 0, score 0, class -1.

Overlaps are of rounded boxes. What a relative error of 5e-7 of the coordinates can do to an overlap is added to its
1e-6: next to nothing for most boxes, much for those that are tiny and far from the origin.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import box_areas, clip_boxes, pairwise_overlaps
from boxwright.core.decode import DecodeNmsOutput, decode_boxes, score_candidates
from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from tolerances import BOX_COORDINATES, DECISION

# Products of sides beyond this may overflow in one implementation and not in another.
NEAR_OVERFLOW = 1e37


@dataclasses.dataclass(frozen=True)
class Candidates:
    """All pairs of one image that might be candidates, with what is certain about them."""

    anchors: NDArray[np.int64]  # (M,)
    classes: NDArray[np.int64]  # (M,) background counted
    class_ids: NDArray[np.int64]  # (M,) background not counted
    scores: NDArray[np.float32]  # (M,)
    boxes: NDArray[np.float32]  # (M, 4)
    errors: NDArray[np.float32]  # (M,) of a coordinate, in pixels
    certain: NDArray[np.bool_]  # (M,) whether no close decision was needed


def assert_agrees(actual: DecodeNmsOutput, **inputs: Any) -> None:
    """Fail with the first disagreement of a result with the reference, for the arguments of `decode_nms`."""
    disagreement = find_disagreement(actual, **inputs)
    assert not disagreement, disagreement


def find_disagreement(
    actual: DecodeNmsOutput,
    *,
    box_regression: NDArray[Any],
    class_logits: NDArray[Any],
    attributes: DecodeNmsAttributes,
    score_threshold: float,
    iou_threshold: float,
    objectness: NDArray[Any] | None = None,
    priors: NDArray[Any] | None = None,
    image_size_hw: NDArray[Any] | None = None,
) -> str:
    """What is wrong with a result, "" where it agrees with the reference."""
    batch_size, top = len(class_logits), attributes.max_detections
    shapes = [array.shape for array in actual]
    expected_shapes = [(batch_size, 1), (batch_size, top, 4), (batch_size, top), (batch_size, top)]
    if shapes != expected_shapes:
        return f"shapes {shapes}, expected {expected_shapes}"
    for item in range(batch_size):
        candidates = possible_candidates(
            box_regression[item],
            class_logits[item],
            None if objectness is None else objectness[item],
            None if priors is None else priors if priors.ndim == 2 else priors[item],
            None if image_size_hw is None else image_size_hw[item],
            attributes,
            score_threshold,
        )
        found = _check_item(actual, item, candidates, attributes, iou_threshold)
        if found:
            return f"item {item}: {found}"
    return ""


def possible_candidates(
    box_regression: NDArray[Any],
    class_logits: NDArray[Any],
    objectness: NDArray[Any] | None,
    priors: NDArray[Any] | None,
    image_size_hw: NDArray[Any] | None,
    attributes: DecodeNmsAttributes,
    score_threshold: float,
) -> Candidates:
    """The pairs of one image that are candidates, or would be if a close decision went the other way."""
    scores, certain_pair = _scores_with_certainty(class_logits, objectness, attributes)
    slack = _slack(scores)
    anchors, classes = np.nonzero(scores > np.float32(score_threshold) - slack)
    values = scores[anchors, classes]
    certain = certain_pair[anchors, classes] & (values > np.float32(score_threshold) + _slack(values))
    if attributes.pre_nms_top_k > 0:
        scope = {
            "image": np.zeros_like(anchors),
            "class": classes,
            "level": np.searchsorted(np.cumsum(attributes.level_sizes), anchors, side="right"),
        }[attributes.top_k_scope]
        possible, within = _top_k_with_certainty(values, certain, scope, attributes.pre_nms_top_k)
        certain &= within
        anchors, classes, values, certain = (array[possible] for array in (anchors, classes, values, certain))
    boxes = decode_boxes(box_regression.astype(np.float32), priors, anchors, classes, attributes)
    largest = np.abs(boxes).max(axis=1, initial=0)
    errors = (largest * np.float32(BOX_COORDINATES)).astype(np.float32)
    possible = np.isfinite(boxes).all(axis=1)
    certain &= largest < NEAR_OVERFLOW
    if attributes.clip_to_image:
        assert image_size_hw is not None
        boxes = clip_boxes(boxes, image_size_hw)
        possible &= np.isfinite(boxes).all(axis=1)
    if attributes.min_size > 0:
        with np.errstate(all="ignore"):
            shorter_side = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf)
            possible &= shorter_side >= attributes.min_size - 2 * errors
            certain &= shorter_side >= attributes.min_size + 2 * errors
    class_ids = classes - ((attributes.background_class >= 0) & (classes > attributes.background_class))
    return Candidates(*(array[possible] for array in (anchors, classes, class_ids, values, boxes, errors, certain)))


def _scores_with_certainty(
    class_logits: NDArray[Any], objectness: NDArray[Any] | None, attributes: DecodeNmsAttributes
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores (N, C), -inf for pairs that cannot be candidates, and whether the others are so beyond doubt."""
    as_float = [None if array is None else array.astype(np.float32) for array in (class_logits, objectness)]
    scores = score_candidates(as_float[0], as_float[1], dataclasses.replace(attributes, multi_label=True))
    if attributes.multi_label or 0 in scores.shape:
        return scores, np.ones(scores.shape, dtype=bool)
    best = scores.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        might_be_best = (scores >= best - _slack(best)) & np.isfinite(scores)
    is_alone = might_be_best.sum(axis=1, keepdims=True) == 1
    return np.where(might_be_best, scores, np.float32(-np.inf)), np.broadcast_to(is_alone, scores.shape)


def _top_k_with_certainty(
    scores: NDArray[np.float32], certain: NDArray[np.bool_], scope: NDArray[np.int64], count: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each candidate might be, and must be, among the best `count` of its scope."""
    possible, within = np.zeros(len(scores), dtype=bool), np.zeros(len(scores), dtype=bool)
    for value in np.unique(scope):
        members = np.flatnonzero(scope == value)
        member_scores = scores[members]
        slack = _slack(member_scores)
        all_sorted, certain_sorted = np.sort(member_scores), np.sort(member_scores[certain[members]])
        num_certainly_better = len(certain_sorted) - np.searchsorted(certain_sorted, member_scores + slack, "right")
        num_maybe_better = len(all_sorted) - np.searchsorted(all_sorted, member_scores - slack, "left") - 1
        possible[members] = num_certainly_better < count
        within[members] = num_maybe_better < count
    return possible, within


def _slack(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """1e-6; of the score itself where scores are no probabilities and larger than 1."""
    with np.errstate(invalid="ignore"):
        magnitude = np.where(np.isfinite(scores), np.maximum(np.abs(scores), 1), 1)
    return (magnitude * DECISION).astype(np.float32)


def _check_item(
    actual: DecodeNmsOutput,
    item: int,
    candidates: Candidates,
    attributes: DecodeNmsAttributes,
    iou_threshold: float,
) -> str:
    count = int(actual.num_detections[item, 0])
    if not 0 <= count <= attributes.max_detections:
        return f"{count} detections, expected 0 to {attributes.max_detections}"
    is_padded = (
        not actual.boxes[item, count:].any()
        and not actual.scores[item, count:].any()
        and (actual.class_ids[item, count:] == -1).all()
    )
    if not is_padded:
        return "the padding is not box 0, score 0, class -1"
    kept: list[int] = []
    taken = np.zeros(len(candidates.scores), dtype=bool)
    for place in range(count):
        box, score, class_id = (
            actual.boxes[item, place],
            actual.scores[item, place],
            actual.class_ids[item, place],
        )
        match = _matching_candidate(candidates, taken, box, score, class_id)
        if match is None:
            return f"detection {place} (class {class_id}, score {score}, box {box}) is no candidate of the reference"
        taken[match] = True
        kept.append(match)
    found = _check_order(actual.scores[item, :count])
    if not found and attributes.with_nms:
        found = _check_kept(candidates, np.array(kept, dtype=np.int64), attributes, iou_threshold)
    return found or _check_absent(candidates, np.array(kept, dtype=np.int64), taken, attributes, iou_threshold)


def _matching_candidate(
    candidates: Candidates,
    taken: NDArray[np.bool_],
    box: NDArray[np.float32],
    score: np.float32,
    class_id: np.int32,
) -> int | None:
    score_gaps = np.abs(candidates.scores - score)
    near = np.flatnonzero(~taken & (candidates.class_ids == class_id) & (score_gaps <= _slack(candidates.scores)))
    with np.errstate(all="ignore"):
        distances = np.abs(candidates.boxes[near] - box).max(axis=1, initial=0)
    is_match = distances <= 2 * candidates.errors[near]
    near, distances = near[is_match], distances[is_match]
    # By distance first: all scores that come into question are equal, and some tolerances of boxes are wide.
    return int(near[np.lexsort((score_gaps[near], distances))[0]]) if len(near) else None


def _check_order(scores: NDArray[np.float32]) -> str:
    rises = np.flatnonzero(np.diff(scores) > _slack(scores[:-1]))
    return f"scores rise after detection {rises[0]}" if len(rises) else ""


def _overlaps(
    candidates: Candidates, rows: NDArray[np.int64], columns: NDArray[np.int64], attributes: DecodeNmsAttributes
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Overlaps (R, C) of boxes that can suppress each other (0 for others), and their slack."""
    boxes_a, boxes_b = candidates.boxes[rows], candidates.boxes[columns]
    overlaps = pairwise_overlaps(boxes_a, boxes_b, kind=attributes.overlap)
    if not attributes.class_agnostic:
        overlaps = np.where(
            candidates.classes[rows][:, None] == candidates.classes[columns][None, :], overlaps, np.float32(0)
        )
    with np.errstate(all="ignore"):
        unions = np.maximum(box_areas(boxes_a)[:, None], box_areas(boxes_b)[None, :]).astype(np.float64)
        sides_a, sides_b = (
            np.maximum(b[:, 2:] - b[:, :2], 0).sum(axis=1).astype(np.float64) for b in (boxes_a, boxes_b)
        )
        errors = candidates.errors[rows][:, None] + candidates.errors[columns][None, :]
        slack = DECISION + 4 * errors * (sides_a[:, None] + sides_b[None, :]) / unions
        slack = np.where(unions < NEAR_OVERFLOW, slack, np.inf)
    return overlaps, np.nan_to_num(slack, nan=np.inf, posinf=np.inf)


def _half_perimeters(boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).sum(axis=1).astype(np.float64)
    return result


def _check_kept(
    candidates: Candidates, kept: NDArray[np.int64], attributes: DecodeNmsAttributes, iou_threshold: float
) -> str:
    overlaps, slack = _overlaps(candidates, kept, kept, attributes)
    with np.errstate(invalid="ignore"):
        too_much = np.triu(overlaps > np.float32(iou_threshold) + slack, k=1)
    if not too_much.any():
        return ""
    better, worse = np.argwhere(too_much)[0]
    return f"detection {worse} overlaps detection {better} by {overlaps[better, worse]} > {iou_threshold}"


def _check_absent(
    candidates: Candidates,
    kept: NDArray[np.int64],
    taken: NDArray[np.bool_],
    attributes: DecodeNmsAttributes,
    iou_threshold: float,
) -> str:
    absent = np.flatnonzero(candidates.certain & ~taken)
    if len(kept) == attributes.max_detections:
        last = candidates.scores[kept].min()
        absent = absent[candidates.scores[absent] > last + _slack(last)]
    for chunk in np.array_split(absent, max(1, len(absent) // 4096)):
        if not len(chunk):
            continue
        explained = np.zeros(len(chunk), dtype=bool)
        if attributes.with_nms and len(kept):
            overlaps, slack = _overlaps(candidates, kept, chunk, attributes)
            scores = candidates.scores[chunk]
            with np.errstate(invalid="ignore"):
                overlapped = overlaps > np.float32(iou_threshold) - slack
            is_better = candidates.scores[kept][:, None] >= (scores - _slack(scores))[None, :]
            explained = (overlapped & is_better).any(axis=0)
        if not explained.all():
            pair = chunk[np.argmin(explained)]
            return (
                f"anchor {candidates.anchors[pair]}, class {candidates.classes[pair]} with score "
                f"{candidates.scores[pair]} is missing"
            )
    return ""
