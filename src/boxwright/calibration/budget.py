"""The budget: how much mAP a variant may lose, and when what was measured is taken as proof that it does not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from boxwright.calibration.evaluation import Evaluation
from boxwright.core.errors import InputError

# Points of mAP that go with a disagreement of 1 on images that a detector was not trained on, on the average, and the
# root of that for what chance adds on 80 of them (1.6 standard deviations): YOLOX-nano in float, its weights changed at
# random by 0.2 and 0.6 %, lost 0.46 (0.36) and 1.12 (0.48) points at disagreements of 0.083 and 0.214, 8 times each. On
# training images, which most are calibrated on, forms lost an eighth of that: mAP there alone would promise too much.
_POINTS_ON_THE_AVERAGE, _POINTS_BY_CHANCE = 6.0, 2.0


def feared_drop(disagreement: float) -> float:
    """Points that a form may lose on some tens of images it has not seen, by its disagreement with the float model."""
    return _POINTS_ON_THE_AVERAGE * disagreement + _POINTS_BY_CHANCE * math.sqrt(max(disagreement, 0.0))


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

    def feared_drop(self, evaluation: Evaluation) -> float:
        """Points that the disagreement with the float model's detections lets fear."""
        return feared_drop(1 - evaluation.agreement.value)

    def holds(self, evaluation: Evaluation) -> bool:
        """Whether both the measured drop and the one to be feared stay within the budget."""
        difference = evaluation.difference
        assert difference is not None
        return 100 * difference.drop <= self.max_drop and self.feared_drop(evaluation) <= self.max_drop

    def is_proven(self, evaluation: Evaluation) -> bool:
        """Whether even the upper end of the interval stays within it."""
        difference = evaluation.difference
        assert difference is not None
        return 100 * difference.high <= self.max_drop

    def excess(self, evaluation: Evaluation) -> float:
        """Points over the budget, by the worse of the two measures; negative within it."""
        difference = evaluation.difference
        measured = 0.0 if difference is None else 100 * difference.drop
        return max(measured, self.feared_drop(evaluation)) - self.max_drop
