"""Average precision as PASCAL VOC defines it: by eleven points (2007) and by the area (2010 on)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import FloatArray, pairwise_overlaps
from boxwright.core.detections import Detections
from boxwright.data.dataset import Sample

DoubleArray = NDArray[np.float64]
VOC_IOU_THRESHOLD = 0.5


class VocMetrics(NamedTuple):
    """AP at IoU 0.5 of each class, NaN where it has no box that counts."""

    eleven_point: DoubleArray  # (C,)
    area: DoubleArray  # (C,)


class _Judged(NamedTuple):
    """Detections of one class over all images, those on ignored boxes left out."""

    scores: FloatArray
    is_hit: NDArray[np.bool_]


def compute_voc_metrics(samples: Sequence[Sample], detections: Sequence[Detections], *, num_classes: int) -> VocMetrics:
    """Compare detections with annotations as the VOC devkit does.

    Each detection, best first, looks at the box of its class that it overlaps most: a hit where that is at least 0.5
    and the box is not taken yet, a miss otherwise, and neither where the box is marked crowd (VOC's `difficult`).
    Boxes are continuous, without the devkit's addition of one pixel.

    Args:
        samples: the images with their annotated boxes.
        detections: of each of those images; class ids below `num_classes`.
        num_classes: of the data set.

    Source: Everingham et al., The PASCAL Visual Object Classes Challenge: A Retrospective, IJCV 2015, sec. 4.
    """
    scores: list[list[FloatArray]] = [[] for _ in range(num_classes)]
    hits: list[list[NDArray[np.bool_]]] = [[] for _ in range(num_classes)]
    positives = np.zeros(num_classes, dtype=np.int64)
    for sample, found in zip(samples, detections, strict=True):
        positives += np.bincount(sample.class_ids[~sample.is_crowd], minlength=num_classes)
        for class_id in np.unique(found.class_ids).tolist():
            judged = _judge(sample, found, class_id)
            scores[class_id].append(judged.scores)
            hits[class_id].append(judged.is_hit)
    eleven_point, area = np.full(num_classes, np.nan), np.full(num_classes, np.nan)
    for class_id in np.flatnonzero(positives).tolist():
        recall, precision = _curve(scores[class_id], hits[class_id], int(positives[class_id]))
        eleven_point[class_id] = _eleven_point_average(recall, precision)
        area[class_id] = _area_average(recall, precision)
    return VocMetrics(eleven_point, area)


def _judge(sample: Sample, found: Detections, class_id: int) -> _Judged:
    of_class = found.class_ids == class_id
    scores = found.scores[of_class]
    is_truth = sample.class_ids == class_id
    is_ignored = sample.is_crowd[is_truth]
    if not is_truth.any():
        return _Judged(scores, np.zeros(len(scores), dtype=bool))
    overlaps = pairwise_overlaps(found.boxes_xyxy[of_class], sample.boxes_xyxy[is_truth])  # (D, G)
    best = overlaps.argmax(axis=1)
    is_near = overlaps[np.arange(len(best)), best] >= VOC_IOU_THRESHOLD
    is_first = np.zeros(len(best), dtype=bool)
    taken: set[int] = set()
    for index in np.flatnonzero(is_near).tolist():  # detections are sorted by score
        is_first[index] = int(best[index]) not in taken
        taken.add(int(best[index]))
    counts = ~(is_near & is_ignored[best])
    return _Judged(scores[counts], (is_near & is_first)[counts])


def _curve(scores: list[FloatArray], hits: list[NDArray[np.bool_]], positives: int) -> tuple[DoubleArray, DoubleArray]:
    """Recall and precision after each detection of a class, best first."""
    if not scores:
        return np.zeros(0), np.zeros(0)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    true_positives = np.cumsum(np.concatenate(hits)[order]).astype(np.float64)
    return true_positives / positives, true_positives / np.arange(1, len(order) + 1)


def _eleven_point_average(recall: DoubleArray, precision: DoubleArray) -> float:
    """Mean over recall 0, 0.1 ... 1 of the best precision at that recall or more."""
    levels = np.arange(11) / 10
    return float(np.mean([precision[recall >= level].max(initial=0.0) for level in levels]))


def _area_average(recall: DoubleArray, precision: DoubleArray) -> float:
    """Area under the curve after making precision fall monotonically."""
    recall = np.concatenate([[0.0], recall])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope))
