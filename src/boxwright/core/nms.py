"""Greedy non-maximum suppression, the reference that every other implementation is held to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import FloatArray, pairwise_overlaps

IntArray = NDArray[np.int64]


def greedy_nms(
    boxes_xyxy: FloatArray,
    class_ids: NDArray[np.integer],
    *,
    iou_threshold: float,
    class_agnostic: bool = False,
    overlap: str = "iou",
) -> IntArray:
    """Indices of the boxes that no better box suppresses.

    Args:
        boxes_xyxy: (N, 4) float32, already in rank order, best first.
        class_ids: (N,) integers.
        iou_threshold: a box is suppressed by a better kept one at overlap > this.
        class_agnostic: whether a box of another class suppresses too.
        overlap: "iou" or "diou".

    Returns:
        (K,) int64 in rank order.
    """
    threshold = np.float32(iou_threshold)
    alive = np.ones(len(boxes_xyxy), dtype=bool)
    kept: list[int] = []
    for index in range(len(boxes_xyxy)):
        if not alive[index]:
            continue
        kept.append(index)
        rivals = np.flatnonzero(alive[index + 1 :]) + index + 1
        if not class_agnostic:
            rivals = rivals[class_ids[rivals] == class_ids[index]]
        overlaps = pairwise_overlaps(boxes_xyxy[index : index + 1], boxes_xyxy[rivals], kind=overlap)[0]
        alive[rivals[overlaps > threshold]] = False
    return np.array(kept, dtype=np.int64)
