"""Which classes a detector takes for which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import pairwise_overlaps
from boxwright.core.detections import Detections
from boxwright.data.dataset import Sample


def confusion_matrix(
    samples: Sequence[Sample],
    detections: Sequence[Detections],
    *,
    num_classes: int,
    score_threshold: float = 0.25,
    iou_threshold: float = 0.5,
) -> NDArray[np.int64]:
    """Count annotated against detected classes.

    Pairs of a box and a detection are matched one to one, the largest overlap first, whatever their classes. Crowds
    are left out, and so are the detections that match nothing else and lie mostly in one.

    Args:
        samples: the images with their annotated boxes.
        detections: of each of those images; class ids below `num_classes`.
        num_classes: of the data set.
        score_threshold: detections with a score > this take part.
        iou_threshold: a pair matches at overlap >= this.

    Returns:
        (C + 1, C + 1) counts: a row for each annotated class and a last one for detections of nothing, a column for
        each detected class and a last one for boxes that were missed.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for sample, found in zip(samples, detections, strict=True):
        kept = found.above(score_threshold)
        is_truth = ~sample.is_crowd
        truth_classes = sample.class_ids[is_truth]
        overlaps = pairwise_overlaps(kept.boxes_xyxy, sample.boxes_xyxy[is_truth])  # (D, G)
        rows, columns = _match(overlaps, iou_threshold)
        missed = np.setdiff1d(np.arange(len(truth_classes)), columns)
        spurious = np.setdiff1d(np.arange(len(kept)), rows)
        spurious = spurious[~_lies_in_crowd(kept, sample)[spurious]]
        for truth, detected in zip(truth_classes[columns].tolist(), kept.class_ids[rows].tolist(), strict=True):
            counts[truth, detected] += 1
        counts[:num_classes, num_classes] += np.bincount(truth_classes[missed], minlength=num_classes)
        counts[num_classes, :num_classes] += np.bincount(kept.class_ids[spurious], minlength=num_classes)
    return counts


def _match(overlaps: NDArray[np.float32], iou_threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the pairs, greedily by falling overlap, each used once."""
    rows, columns = np.nonzero(overlaps >= iou_threshold)
    order = np.argsort(-overlaps[rows, columns], kind="stable")
    free_rows, free_columns = np.ones(overlaps.shape[0], dtype=bool), np.ones(overlaps.shape[1], dtype=bool)
    pairs = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if free_rows[row] and free_columns[column]:
            free_rows[row] = free_columns[column] = False
            pairs.append((row, column))
    matched = np.array(pairs, dtype=np.int64).reshape(-1, 2)  # (P, 2)
    return matched[:, 0], matched[:, 1]


def _lies_in_crowd(found: Detections, sample: Sample) -> NDArray[np.bool_]:
    """Whether at least half of each detection's area lies in one crowd box, (D,)."""
    crowds = sample.boxes_xyxy[sample.is_crowd]
    if len(crowds) == 0 or len(found) == 0:
        return np.zeros(len(found), dtype=bool)
    top_left = np.maximum(found.boxes_xyxy[:, None, :2], crowds[None, :, :2])  # (D, crowds, 2)
    bottom_right = np.minimum(found.boxes_xyxy[:, None, 2:], crowds[None, :, 2:])
    inside = np.maximum(bottom_right - top_left, 0).prod(axis=2)  # (D, crowds)
    areas = (found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]).prod(axis=1)
    lies: NDArray[np.bool_] = (inside >= 0.5 * areas[:, None]).any(axis=1)
    return lies
