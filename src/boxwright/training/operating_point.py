"""Precision and recall where they are best balanced, which mAP does not show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boxwright.bench.accuracy import Predictions
from boxwright.core.boxes import pairwise_overlaps
from boxwright.core.detections import Detections
from boxwright.data.dataset import Sample

MATCH_IOU = 0.5


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """The score threshold with the best balance, and what it gives over all classes together.

    Attributes:
        precision: part of the detections above the threshold that are right.
        recall: part of the objects that are found.
        threshold: lowest score that is kept.
    """

    precision: float
    recall: float
    threshold: float


def best_operating_point(predictions: Predictions) -> OperatingPoint:
    """The threshold with the highest F1; 0 for all where nothing right was found.

    A detection is right where it overlaps a still unmatched object of its class by at least IoU 0.5, detections of
    higher scores choosing first. One that lies on a crowd counts neither way.
    """
    scores, is_right = [np.zeros(0)], [np.zeros(0, dtype=bool)]
    num_objects = 0
    for sample, found in zip(predictions.samples, predictions.detections, strict=True):
        num_objects += int((~sample.is_crowd).sum())
        for class_scores, class_right in _matches(sample, found):
            scores.append(class_scores)
            is_right.append(class_right)
    all_scores = np.concatenate(scores)
    order = np.argsort(-all_scores, kind="stable")
    all_scores, right = all_scores[order], np.concatenate(is_right)[order]
    if num_objects == 0 or not right.any():
        return OperatingPoint(precision=0.0, recall=0.0, threshold=0.0)
    num_right = right.cumsum()
    precision = num_right / np.arange(1, len(right) + 1)
    recall = num_right / num_objects
    best = int(np.argmax(2 * precision * recall / np.maximum(precision + recall, 1e-12)))
    return OperatingPoint(
        precision=float(precision[best]), recall=float(recall[best]), threshold=float(all_scores[best])
    )


def _matches(sample: Sample, found: Detections) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Scores, and whether each detection is right, of each class that was detected in an image."""
    for class_id in np.unique(found.class_ids):
        own = found.class_ids == class_id
        boxes, scores = found.boxes_xyxy[own], found.scores[own]  # by falling score
        objects = sample.boxes_xyxy[(sample.class_ids == class_id) & ~sample.is_crowd]
        crowds = sample.boxes_xyxy[(sample.class_ids == class_id) & sample.is_crowd]
        overlaps = pairwise_overlaps(boxes, objects)  # (D, M)
        right = np.zeros(len(boxes), dtype=bool)
        free = np.ones(len(objects), dtype=bool)
        for row in range(len(boxes)):
            candidates = np.where(free, overlaps[row], -1.0)
            if len(objects) and candidates.max() >= MATCH_IOU:
                free[candidates.argmax()] = False
                right[row] = True
        on_crowd = np.zeros(len(boxes), dtype=bool)
        if len(crowds):
            on_crowd = pairwise_overlaps(boxes, crowds).max(axis=1) >= MATCH_IOU
        counted = right | ~on_crowd
        yield scores[counted].astype(np.float64), right[counted]
