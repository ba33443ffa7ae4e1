"""How far a quantized model still finds what the float model finds: at the detections, not at the tensors.

With tens of images mAP moves by half a point by luck alone. The agreement looks at every detection, not only at those
that an annotation happens to lie under, so it tells candidates apart that mAP cannot. 1 is the float model itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boxwright.core.boxes import FloatArray, pairwise_overlaps
from boxwright.core.detections import Detections

# Boxes that both models score lower hardly move mAP.
LEAST_SCORE = 0.02
# Two boxes of a class that overlap less are not the same object.
_LEAST_OVERLAP = 0.5
_SURE_SCORE = 0.3


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What a comparison found.

    Attributes:
        value: 0 to 1: over all detections of either model, the overlap of two partners times the smaller of their
            scores, as a part of the larger scores; who has no partner counts nothing in the first sum.
        box_change: mean of 1 - IoU of partners, weighted by the float model's score.
        score_change: mean change of the scores of the float model's sure detections (> 0.3), the lost ones as 0.
    """

    value: float
    box_change: float
    score_change: float


def compare_detections(reference: Sequence[Detections], candidate: Sequence[Detections]) -> Agreement:
    """Compare what two models found in the same images.

    Args:
        reference: of the float model.
        candidate: of the other.
    """
    common = total = moved = weight = 0.0
    changes: list[FloatArray] = []
    for before, after in zip(reference, candidate, strict=True):
        before, after = _kept(before), _kept(after)
        partners, overlaps = _match(before, after)
        found = partners >= 0
        scores = np.zeros(len(before), dtype=np.float32)
        scores[found] = after.scores[partners[found]]
        alone = np.ones(len(after), dtype=bool)
        alone[partners[found]] = False
        common += float((overlaps * np.minimum(before.scores, scores)).sum())
        total += float(np.maximum(before.scores, scores).sum() + after.scores[alone].sum())
        moved += float(((1 - overlaps) * before.scores)[found].sum())
        weight += float(before.scores[found].sum())
        changes.append((scores - before.scores)[before.scores > _SURE_SCORE])
    sure = np.concatenate(changes) if changes else np.zeros(0, dtype=np.float32)
    return Agreement(
        value=common / total if total > 0 else 1.0,
        box_change=moved / weight if weight > 0 else 0.0,
        score_change=float(sure.mean()) if len(sure) else 0.0,
    )


def _kept(found: Detections) -> Detections:
    count = int(np.searchsorted(-found.scores, -LEAST_SCORE))  # scores descend
    return Detections.unchecked(found.boxes_xyxy[:count], found.scores[:count], found.class_ids[:count])


def _match(before: Detections, after: Detections) -> tuple[np.ndarray, FloatArray]:
    """The partner of each detection, -1 where there is none, and the overlap with it; the best scored choose first."""
    partners = np.full(len(before), -1, dtype=np.int64)
    overlaps = np.zeros(len(before), dtype=np.float32)
    if not len(before) or not len(after):
        return partners, overlaps
    pairs = np.nan_to_num(pairwise_overlaps(before.boxes_xyxy, after.boxes_xyxy))
    pairs[before.class_ids[:, None] != after.class_ids[None]] = 0
    for row in range(len(before)):
        best = int(pairs[row].argmax())
        if pairs[row, best] >= _LEAST_OVERLAP:
            partners[row], overlaps[row] = best, pairs[row, best]
            pairs[:, best] = 0
    return partners, overlaps
