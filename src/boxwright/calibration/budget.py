"""The budget: how much mAP a variant may lose, and when what was measured is taken as proof that it does not."""

from __future__ import annotations

from dataclasses import dataclass

from boxwright.calibration.evaluation import Evaluation
from boxwright.core.errors import InputError

# Points of mAP that go with a disagreement of 1 on images that a detector was not trained on: the mean over twenty
# forms of YOLOX-nano on coco-tiny val (from 2 to 10, since 80 images say little). On training images, which most are
# calibrated on, the same forms lost an eighth of that: mAP there alone would promise too much.
POINTS_PER_DISAGREEMENT = 6.0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may be lost.

    Attributes:
        max_drop: points of mAP (0 to 100).
    """

    max_drop: float

    def __post_init__(self) -> None:
        if not 0 < self.max_drop <= 100:
            raise InputError(
                "--max-drop",
                expected="points of mAP above 0 and at most 100, such as 0.5",
                got=f"{self.max_drop:g}",
                fix="correct it",
            )

    def expected_drop(self, evaluation: Evaluation) -> float:
        """Points that the disagreement with the float model's detections lets expect."""
        return POINTS_PER_DISAGREEMENT * (1 - evaluation.agreement.value)

    def holds(self, evaluation: Evaluation) -> bool:
        """Whether both the measured drop and the one to be expected stay within the budget."""
        difference = evaluation.difference
        assert difference is not None
        return 100 * difference.drop <= self.max_drop and self.expected_drop(evaluation) <= self.max_drop

    def is_proven(self, evaluation: Evaluation) -> bool:
        """Whether even the upper end of the interval stays within it."""
        difference = evaluation.difference
        assert difference is not None
        return 100 * difference.high <= self.max_drop

    def excess(self, evaluation: Evaluation) -> float:
        """Points over the budget, by the worse of the two measures; negative within it."""
        difference = evaluation.difference
        measured = 0.0 if difference is None else 100 * difference.drop
        return max(measured, self.expected_drop(evaluation)) - self.max_drop
