"""How far a quantized model's raw heads are off, candidate by candidate, before any is suppressed.

NMS answers the smallest change by picking another of two boxes that are as good: what is left after it jumps. Before it
every box and score moves a little with every layer's rounding, and the squares of what independent layers do add up. So
this tells layers and ranges apart on a dozen images, where the agreement after NMS needs a hundred.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import FloatArray
from boxwright.core.decode import decode_boxes, score_candidates
from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.core.manifest import Manifest

# Candidates that the float model scores lower are background, in both models.
_LEAST_SCORE = 0.02


@dataclass(frozen=True, kw_only=True, eq=False)
class SureCandidates:
    """What the float model sees in an image: one class for each of its candidates.

    Attributes:
        anchors: (M,) rows of the raw heads.
        class_ids: (M,).
        scores: (M,).
        boxes_xyxy: (M, 4) in pixels of the network's input.
    """

    anchors: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    scores: FloatArray
    boxes_xyxy: FloatArray


class HeadReader:
    """Reads scores and boxes from raw heads.

    Args:
        manifest: of the model.
    """

    def __init__(self, manifest: Manifest) -> None:
        # All classes of an anchor: the float model's best need not be the other's.
        self._attributes: DecodeNmsAttributes = replace(manifest.decode.attributes(), multi_label=True)
        self._priors = manifest.decode.priors()

    def candidates(self, outputs: Mapping[str, NDArray[np.float32]], row: int) -> SureCandidates:
        """The candidates of an image of the batch."""
        scores = self._scores(outputs, row)  # (N, C)
        best = scores.argmax(axis=1)
        top = scores[np.arange(len(scores)), best]
        anchors = np.flatnonzero(top > _LEAST_SCORE)
        class_ids = best[anchors]
        return SureCandidates(
            anchors=anchors,
            class_ids=class_ids,
            scores=top[anchors],
            boxes_xyxy=self._boxes(outputs, row, anchors, class_ids),
        )

    def errors(
        self, reference: SureCandidates, outputs: Mapping[str, NDArray[np.float32]], row: int
    ) -> tuple[float, float]:
        """Squared errors of another model's heads, weighted by the scores, and the sum of these weights.

        Of a candidate they are the relative change of the score and the part of the boxes that is not shared, each at
        most 1.
        """
        scores = self._scores(outputs, row)[reference.anchors, reference.class_ids]
        change = np.abs(scores - reference.scores) / reference.scores
        boxes = self._boxes(outputs, row, reference.anchors, reference.class_ids)
        error = np.minimum(change, 1) ** 2 + (1 - _overlaps(reference.boxes_xyxy, boxes)) ** 2
        weighted = np.where(np.isfinite(error), error, 2.0) * reference.scores
        return float(weighted.sum(dtype=np.float64)), float(reference.scores.sum(dtype=np.float64))

    def _scores(self, outputs: Mapping[str, NDArray[np.float32]], row: int) -> FloatArray:
        objectness = outputs["objectness"][row] if "objectness" in outputs else None
        return score_candidates(outputs["class_logits"][row], objectness, self._attributes)

    def _boxes(
        self,
        outputs: Mapping[str, NDArray[np.float32]],
        row: int,
        anchors: NDArray[np.int64],
        class_ids: NDArray[np.int64],
    ) -> FloatArray:
        priors = self._priors
        if priors is None and "priors" in outputs:
            given = outputs["priors"]
            priors = given if given.ndim == 2 else given[row]
        return decode_boxes(outputs["box_regression"][row], priors, anchors, class_ids, self._attributes)


def total_noise(errors: Sequence[tuple[float, float]]) -> float:
    """Mean squared error over the candidates of several images."""
    weight = sum(entry[1] for entry in errors)
    return sum(entry[0] for entry in errors) / weight if weight > 0 else 0.0


def _overlaps(first: FloatArray, second: FloatArray) -> NDArray[np.float64]:
    """IoU of each box with its partner, (M,)."""
    one, two = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(all="ignore"):
        sides = np.minimum(one[:, 2:], two[:, 2:]) - np.maximum(one[:, :2], two[:, :2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        areas = [np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1) for boxes in (one, two)]
        result: NDArray[np.float64] = shared / np.maximum(areas[0] + areas[1] - shared, 1e-12)
    return result
