"""COCO's AP of two models on the same images, and how sure their difference is.

Detections are matched with annotations once, image by image; then AP is computed of any resampling of the images by
weighting them, which makes a bootstrap of hundreds of draws as cheap as one evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import box_areas
from boxwright.core.detections import Detections
from boxwright.data import Sample

DoubleArray = NDArray[np.float64]
_IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
_MOST_DETECTIONS = 100  # of a class in an image, as COCO has it
_DRAWS = 200
_SEED = 20
_ROUNDING = 1e-10


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """How much lower the mAP of a model is than that of another on the same images.

    Attributes:
        map_before: of the first, 0 to 1.
        map_after: of the second.
        drop: before less after.
        standard_error: of the drop, over resamplings of the images.
        low: of the interval that holds 90 % of the resampled drops.
        high: likewise.
        num_images: that both were measured on.
    """

    map_before: float
    map_after: float
    drop: float
    standard_error: float
    low: float
    high: float
    num_images: int


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchedDetections:
    """Detections that were held against annotations.

    Attributes:
        images: (D,) index of each detection's image.
        class_ids: (D,).
        scores: (D,).
        is_hit: (D, 10) at each IoU threshold.
        is_ignored: (D, 10) lies in a crowd there: counts neither way.
        num_boxes: (I, C) annotated boxes that count.
    """

    images: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    is_hit: NDArray[np.bool_]
    is_ignored: NDArray[np.bool_]
    num_boxes: NDArray[np.int64]


def match_detections(
    samples: Sequence[Sample], detections: Sequence[Detections], *, num_classes: int
) -> MatchedDetections:
    """Match as COCO's evaluation does: the best scored first, each with the best box that is still free.

    Args:
        samples: the images with their annotated boxes.
        detections: of each image.
        num_classes: of the data set.
    """
    rows: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.int8]]] = []
    num_boxes = np.zeros((len(samples), num_classes), dtype=np.int64)
    for index, (sample, found) in enumerate(zip(samples, detections, strict=True)):
        num_boxes[index] = np.bincount(sample.class_ids[~sample.is_crowd], minlength=num_classes)
        for class_id in np.unique(found.class_ids):
            chosen = np.flatnonzero(found.class_ids == class_id)[:_MOST_DETECTIONS]
            marks = _match_class(sample, found, chosen, int(class_id))
            full = np.full(len(chosen), index), np.full(len(chosen), int(class_id))
            rows.append((*full, found.scores[chosen], marks))
    if not rows:
        empty = np.zeros(0, dtype=np.int64)
        rows.append((empty, empty, np.zeros(0, np.float32), np.zeros((0, len(_IOU_THRESHOLDS)), np.int8)))
    images, class_ids, scores, marks = (np.concatenate(column) for column in zip(*rows, strict=True))
    return MatchedDetections(
        images=images,
        class_ids=class_ids,
        scores=scores,
        is_hit=marks == 1,
        is_ignored=marks == -1,
        num_boxes=num_boxes,
    )


def average_precision(matched: MatchedDetections, weights: DoubleArray | None = None) -> DoubleArray:
    """COCO's AP, the mean over classes and IoU 0.50 to 0.95, of each weighting of the images.

    Args:
        matched: of all images.
        weights: (W, I) how often each image counts; None for each once.

    Returns:
        (W,), NaN where a weighting holds no box.
    """
    if weights is None:
        weights = np.ones((1, len(matched.num_boxes)))
    totals = weights @ matched.num_boxes  # (W, C)
    sums = np.zeros(len(weights))
    for class_id in np.flatnonzero(matched.num_boxes.sum(axis=0)):
        rows = np.flatnonzero(matched.class_ids == class_id)
        rows = rows[np.argsort(-matched.scores[rows], kind="stable")]
        sums += _class_precision(matched, rows, weights, totals[:, class_id])
    counts = (totals > 0).sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def compare(before: MatchedDetections, after: MatchedDetections) -> PairedDifference:
    """The difference in mAP and its bootstrap interval, both models seeing the same resampled images."""
    num_images = len(before.num_boxes)
    random = np.random.default_rng(_SEED)
    draws = random.multinomial(num_images, np.full(num_images, 1 / num_images), size=_DRAWS).astype(np.float64)
    weights = np.concatenate([np.ones((1, num_images)), draws])
    first, second = average_precision(before, weights), average_precision(after, weights)
    drops = first[1:] - second[1:]
    drops = drops[np.isfinite(drops)]
    low, high = np.quantile(drops, (0.05, 0.95)) if len(drops) else (np.nan, np.nan)
    return PairedDifference(
        map_before=float(first[0]),
        map_after=float(second[0]),
        drop=float(first[0] - second[0]),
        standard_error=float(drops.std()) if len(drops) else float("nan"),
        low=float(low),
        high=float(high),
        num_images=num_images,
    )


def _match_class(sample: Sample, found: Detections, chosen: NDArray[np.int64], class_id: int) -> NDArray[np.int8]:
    """1 for a hit, -1 for ignored, 0 for a false alarm, of each detection and IoU threshold, (n, 10)."""
    marks = np.zeros((len(chosen), len(_IOU_THRESHOLDS)), dtype=np.int8)
    annotated = np.flatnonzero(sample.class_ids == class_id)
    if not len(annotated):
        return marks
    annotated = annotated[np.argsort(sample.is_crowd[annotated], kind="stable")]  # crowds last
    is_crowd = sample.is_crowd[annotated]
    overlaps = _coco_overlaps(found, chosen, sample, annotated)  # (n, m)
    for column, threshold in enumerate(_IOU_THRESHOLDS):
        is_free = np.ones(len(annotated), dtype=bool)
        for row in np.flatnonzero(overlaps.max(axis=1) >= threshold - _ROUNDING):
            usable = is_free & (overlaps[row] >= min(threshold, 1 - _ROUNDING))
            if not usable.any():
                continue
            # A plain box is taken before any crowd.
            candidates = usable & ~is_crowd if (usable & ~is_crowd).any() else usable
            best = int(np.where(candidates, overlaps[row], -1.0).argmax())
            marks[row, column] = -1 if is_crowd[best] else 1
            is_free[best] = is_crowd[best]
    return marks


def _coco_overlaps(
    found: Detections, chosen: NDArray[np.int64], sample: Sample, annotated: NDArray[np.int64]
) -> DoubleArray:
    """IoU; with a crowd, the part of the detection that lies in it, (n, m)."""
    boxes, others = found.boxes_xyxy[chosen].astype(np.float64), sample.boxes_xyxy[annotated].astype(np.float64)
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    areas = box_areas(boxes)[:, None]
    union = areas + box_areas(others)[None] - shared
    divisors = np.where(sample.is_crowd[annotated][None], areas, union)
    result: DoubleArray = shared / np.maximum(divisors, 1e-12)
    return result


def _class_precision(
    matched: MatchedDetections, rows: NDArray[np.int64], weights: DoubleArray, totals: DoubleArray
) -> DoubleArray:
    """AP of a class averaged over the IoU thresholds, of each weighting, (W,)."""
    if not len(rows):
        return np.zeros(len(weights))
    counted = weights[:, matched.images[rows]]  # (W, n)
    result = np.zeros(len(weights))
    for column in range(len(_IOU_THRESHOLDS)):
        is_hit = matched.is_hit[rows, column]
        if not is_hit.any():
            continue
        hits = np.cumsum(counted * is_hit, axis=1)[:, is_hit]  # (W, H): precision peaks at hits alone
        alarms = np.cumsum(counted * ~(is_hit | matched.is_ignored[rows, column]), axis=1)[:, is_hit]
        precision = hits / np.maximum(hits + alarms, 1e-12)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # How many of the recalls 0, 0.01 ... 1 are reached with each hit, and were not with the one before.
        recall = hits / np.maximum(totals, 1e-12)[:, None]
        reached = np.searchsorted(_RECALLS, recall, side="right")
        result += (np.diff(reached, axis=1, prepend=0) * envelope).sum(axis=1) / len(_RECALLS)
    return result / len(_IOU_THRESHOLDS)
