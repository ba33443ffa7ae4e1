"""Whether an exported artifact detects what its source detects: matched by class and overlap, on the same images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import pairwise_overlaps
from boxwright.core.detections import Detections
from boxwright.core.errors import VerificationError
from boxwright.core.manifest import VerificationRecord
from boxwright.core.preprocess import Preprocess
from boxwright.runtimes.detector import Detector

FEWEST_BOXES = 50
# Tried in this order until there are enough boxes: a network that finds nothing still ranks its guesses.
SCORE_THRESHOLDS = (0.25, 0.05, 0.01, 0.001, 0.0)
_MATCHING_IOU = 0.5
_SAME_PLACE = 1e-2  # pixels of the image


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an artifact may be from its source.

    Attributes:
        matched_fraction: at least this part of the boxes of either side has a partner on the other.
        box_difference: of matched boxes, in pixels of the network's input.
        score_difference: of matched boxes.
    """

    matched_fraction: float
    box_difference: float
    score_difference: float


TOLERANCES = {
    # The same arithmetic in another order: a few float32 roundings, seldom a box that changes sides of a threshold.
    "fp32": Tolerance(matched_fraction=0.99, box_difference=0.5, score_difference=0.005),
    # 11 and 8 bits of mantissa.
    "fp16": Tolerance(matched_fraction=0.97, box_difference=4.0, score_difference=0.03),
    "bf16": Tolerance(matched_fraction=0.90, box_difference=16.0, score_difference=0.1),
    # Of a quantized graph: one rounding in another direction moves a number by a 256th of its range.
    "int8": Tolerance(matched_fraction=0.90, box_difference=16.0, score_difference=0.1),
}


# Opens the same model with another score threshold.
OpenDetector = Callable[[float], Detector]


def compare(
    reference: OpenDetector,
    artifact: OpenDetector,
    images: Sequence[NDArray[np.uint8]],
    preprocess: Preprocess,
    *,
    reference_name: str,
    max_detections: int,
    least_score: float = 0.0,
) -> VerificationRecord:
    """Compare two models at the detections.

    Args:
        reference: the source.
        artifact: what was made of it.
        images: uint8 BGR.
        preprocess: of both, to measure boxes in pixels of the network's input.
        reference_name: for the record.
        max_detections: of both; a box at the end of a full list has no fixed place.
        least_score: threshold that is built into the artifact.

    Returns:
        What was found at the highest score threshold that gives enough boxes.
    """
    thresholds = (*(threshold for threshold in SCORE_THRESHOLDS if threshold > least_score), least_score)
    for threshold in thresholds:
        wanted = reference(threshold)(list(images))
        num_boxes = sum(len(detections) for detections in wanted)
        if num_boxes >= FEWEST_BOXES or threshold == least_score:
            found = artifact(threshold)(list(images))
            return _record(wanted, found, images, preprocess, threshold, reference_name, max_detections)
    raise AssertionError("the last threshold returns")


def check(record: VerificationRecord, precision: str, what: str) -> None:
    """Raise `VerificationError` where the comparison found more difference than the precision explains."""
    tolerance = TOLERANCES[precision]
    complaints = []
    if record.num_boxes == 0:
        return
    if record.matched_fraction < tolerance.matched_fraction:
        complaints.append(
            f"{record.matched_fraction:.1%} of the boxes matched (at least {tolerance.matched_fraction:.0%})"
        )
    if record.worst_box_difference > tolerance.box_difference:
        complaints.append(f"a box {record.worst_box_difference:.3g} pixels off (at most {tolerance.box_difference:g})")
    if record.worst_score_difference > tolerance.score_difference:
        complaints.append(f"a score {record.worst_score_difference:.3g} off (at most {tolerance.score_difference:g})")
    if complaints:
        raise VerificationError(
            f"{what} does not detect what {record.reference} detects: {'; '.join(complaints)}, "
            f"{record.num_boxes} boxes in {record.num_images} images compared; nothing was written"
        )


def describe(record: VerificationRecord) -> str:
    """One line for people."""
    numbers = (
        f"{record.matched_fraction:.1%} of {record.num_boxes} boxes in {record.num_images} images matched with "
        f"{record.reference}; worst difference {record.worst_box_difference:.2g} px, score "
        f"{record.worst_score_difference:.2g}"
    )
    return numbers if record.proven else f"unproven (fewer than {FEWEST_BOXES} boxes to compare): {numbers}"


def _record(
    wanted: list[Detections],
    found: list[Detections],
    images: Sequence[NDArray[np.uint8]],
    preprocess: Preprocess,
    threshold: float,
    reference_name: str,
    max_detections: int,
) -> VerificationRecord:
    num_boxes, num_matched, num_counted = 0, 0, 0
    worst_box, worst_score = 0.0, 0.0
    for reference, artifact, image in zip(wanted, found, images, strict=True):
        scale = np.array(preprocess.plan((image.shape[0], image.shape[1])).scale_xy * 2, dtype=np.float32)
        pairs = match(reference, artifact)
        num_boxes += len(reference)
        for one, other, column in ((reference, artifact, 0), (artifact, reference, 1)):
            counted = _counted(one, other, threshold, max_detections)
            num_counted += int(counted.sum())
            num_matched += int(counted[pairs[:, column]].sum())
        if len(pairs):
            boxes = np.abs(reference.boxes_xyxy[pairs[:, 0]] - artifact.boxes_xyxy[pairs[:, 1]]) * scale
            scores = np.abs(reference.scores[pairs[:, 0]] - artifact.scores[pairs[:, 1]])
            worst_box, worst_score = max(worst_box, float(boxes.max())), max(worst_score, float(scores.max()))
    return VerificationRecord(
        reference=reference_name,
        num_images=len(images),
        num_boxes=num_boxes,
        matched_fraction=num_matched / num_counted if num_counted else 1.0,
        worst_box_difference=worst_box,
        worst_score_difference=worst_score,
        proven=num_boxes >= FEWEST_BOXES,
    )


def _counted(one: Detections, other: Detections, threshold: float, max_detections: int) -> NDArray[np.bool_]:
    """Which boxes must have a partner: not those whose score is a rounding away from the threshold or the cut."""
    limit = threshold
    if len(one) >= max_detections or len(other) >= max_detections:
        ends = [float(side.scores[-1]) for side in (one, other) if len(side) >= max_detections]
        limit = max([limit, *ends])
    counted: NDArray[np.bool_] = one.scores > limit + max(1e-3 * limit, 1e-6)
    return counted


def match(reference: Detections, artifact: Detections) -> NDArray[np.int64]:
    """Pairs of rows (P, 2) of the same class, the best overlaps first, each row in one pair at most."""
    overlaps = pairwise_overlaps(reference.boxes_xyxy, artifact.boxes_xyxy)  # (R, A)
    # A box that lay in the padding was clipped to nothing, and overlaps nothing, itself included.
    offsets = np.abs(reference.boxes_xyxy[:, None] - artifact.boxes_xyxy[None]).max(axis=2, initial=0)  # (R, A)
    overlaps = np.where(offsets <= _SAME_PLACE, 1, overlaps)
    overlaps = np.where(reference.class_ids[:, None] == artifact.class_ids[None], overlaps, 0)
    # Of equal boxes the one with the nearer score is the partner.
    nearness = np.abs(reference.scores[:, None] - artifact.scores[None])
    rows, columns = np.nonzero(overlaps >= _MATCHING_IOU)
    order = np.lexsort((nearness[rows, columns], -np.round(overlaps[rows, columns], 3)))
    free_rows, free_columns = np.ones(len(reference), dtype=bool), np.ones(len(artifact), dtype=bool)
    pairs = []
    for row, column in zip(rows[order], columns[order], strict=True):
        if free_rows[row] and free_columns[column]:
            free_rows[row] = free_columns[column] = False
            pairs.append((row, column))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
