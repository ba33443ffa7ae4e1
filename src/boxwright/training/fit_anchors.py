"""Anchors from the training boxes, for every family whose anchors depend on the data."""

from __future__ import annotations

import numpy as np

from boxwright.core.boxes import FloatArray
from boxwright.core.errors import InputError
from boxwright.core.preprocess import Preprocess
from boxwright.data import Dataset
from boxwright.models import DetectionModel
from boxwright.models.common.auto_anchor import auto_anchors, best_possible_recall
from boxwright.models.common.kmeans_anchors import kmeans_anchors, mean_best_overlap
from boxwright.training.config import AnchorSource

# AutoAnchor leaves anchors alone that at least this part of the boxes may learn from.
SUFFICIENT_RECALL = 0.98


def fit_anchors(
    module: DetectionModel, dataset: Dataset, preprocess: Preprocess, source: AnchorSource, seed: int
) -> tuple[str, ...]:
    """Give a detector anchors of the sizes that its training boxes have.

    Args:
        module: to change.
        dataset: to train on.
        preprocess: tells how large a box is on the network's input.
        source: "kmeans", "auto", which keeps anchors that nearly all boxes fit, or "family" to leave them as they are.
        seed: of the run.

    Returns:
        Notes for people.

    Raises:
        InputError: where the family's anchors do not depend on the data, or there are too few boxes.
    """
    if source == "family":
        return ()
    count = module.num_anchor_sizes
    if count == 0:
        raise InputError(
            f"--anchors {source}",
            expected="a family whose anchors depend on the data",
            got=module.variant,
            fix="leave --anchors out",
        )
    sizes_wh = network_sizes_wh(dataset, preprocess)
    if source == "auto":
        assert preprocess.size_hw is not None  # families with such anchors have a fixed input
        recall = best_possible_recall(sizes_wh, np.array(module.anchor_sizes_wh(preprocess.size_hw)))
        if recall >= SUFFICIENT_RECALL:
            return (f"the anchors are kept: best possible recall {recall:.3f} on {len(sizes_wh)} training boxes",)
    anchors = kmeans_anchors(sizes_wh, count, seed) if source == "kmeans" else auto_anchors(sizes_wh, count, seed)
    module.set_anchors([(float(width), float(height)) for width, height in anchors])
    shown = ", ".join(f"{width:.0f}x{height:.0f}" for width, height in anchors)
    fit = f"mean best IoU {mean_best_overlap(sizes_wh, anchors):.3f}"
    share = f"best possible recall {best_possible_recall(sizes_wh, anchors):.3f}"
    return (f"anchors from {len(sizes_wh)} training boxes, {fit}, {share}: {shown}",)


def network_sizes_wh(dataset: Dataset, preprocess: Preprocess) -> FloatArray:
    """Widths and heights (M, 2) of all training boxes in pixels of the network's input; crowds are left out."""
    sizes = [np.zeros((0, 2), dtype=np.float32)]
    for sample in dataset.samples:
        boxes = sample.boxes_xyxy[~sample.is_crowd]
        if len(boxes):
            scale_xy = np.array(preprocess.plan(sample.size_hw).scale_xy, dtype=np.float32)
            sizes.append((boxes[:, 2:] - boxes[:, :2]) * scale_xy)
    return np.concatenate(sizes)
