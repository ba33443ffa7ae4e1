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
    """Detections, those on ignored boxes left out."""

    class_ids: NDArray[np.int32]
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
    positives = np.zeros(num_classes, dtype=np.int64)
    judged_images = []
    for sample, found in zip(samples, detections, strict=True):
        positives += np.bincount(sample.class_ids[~sample.is_crowd], minlength=num_classes)
        judged_images.append(_judge(sample, found))
    eleven_point, area = np.full(num_classes, np.nan), np.full(num_classes, np.nan)
    if judged_images:
        judged = _Judged(*map(np.concatenate, zip(*judged_images, strict=True)))
        order = np.lexsort((-judged.scores, judged.class_ids))  # stable: equal scores stay in the order of the images
        starts = np.searchsorted(judged.class_ids[order], np.arange(num_classes + 1))
        for class_id in np.flatnonzero(positives).tolist():
            is_hit = judged.is_hit[order[starts[class_id] : starts[class_id + 1]]]
            recall, precision = _curve(is_hit, int(positives[class_id]))
            eleven_point[class_id] = _eleven_point_average(recall, precision)
            area[class_id] = _area_average(recall, precision)
    return VocMetrics(eleven_point, area)


def _judge(sample: Sample, found: Detections) -> _Judged:
    """Hits and misses of one image."""
    if len(sample) == 0 or len(found) == 0:
        return _Judged(found.class_ids, found.scores, np.zeros(len(found), dtype=bool))
    overlaps = pairwise_overlaps(found.boxes_xyxy, sample.boxes_xyxy)  # (D, G)
    overlaps = np.where(found.class_ids[:, None] == sample.class_ids[None], overlaps, np.float32(-1))
    best = overlaps.argmax(axis=1)
    is_near = overlaps[np.arange(len(best)), best] >= VOC_IOU_THRESHOLD
    is_first = np.zeros(len(best), dtype=bool)
    taken: set[int] = set()
    for index in np.flatnonzero(is_near).tolist():  # detections are sorted by score
        is_first[index] = int(best[index]) not in taken
        taken.add(int(best[index]))
    counts = ~(is_near & sample.is_crowd[best])
    return _Judged(found.class_ids[counts], found.scores[counts], (is_near & is_first)[counts])


def _curve(is_hit: NDArray[np.bool_], positives: int) -> tuple[DoubleArray, DoubleArray]:
    """Recall and precision after each detection of a class, best first."""
    true_positives = np.cumsum(is_hit).astype(np.float64)
    return true_positives / positives, true_positives / np.arange(1, len(is_hit) + 1)


def _eleven_point_average(recall: DoubleArray, precision: DoubleArray) -> float:
    """Mean over recall 0, 0.1 ... 1 of the best precision at that recall or more."""
    levels = np.arange(11) / 10
    return float(np.mean([precision[recall >= level].max(initial=0.0) for level in levels]))


def _area_average(recall: DoubleArray, precision: DoubleArray) -> float:
    """Area under the curve after making precision fall monotonically."""
    recall = np.concatenate([[0.0], recall])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope))
