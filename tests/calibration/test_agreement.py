"""How far one model's detections are those of another."""

from __future__ import annotations

import numpy as np
import pytest

from boxwright.calibration.agreement import compare_detections
from boxwright.core.detections import Detections


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    array = np.array(rows, dtype=np.float32).reshape(-1, 6)
    return Detections.sorted(array[:, :4], array[:, 4], array[:, 5].astype(np.int32))


BOX = (10.0, 10.0, 50.0, 50.0)


@pytest.mark.parametrize(
    ("after", "value"),
    [
        (found((*BOX, 0.8, 0)), 1.0),
        (found((*BOX, 0.4, 0)), 0.5),
        (found((*BOX, 0.8, 1)), 0.0),
        (found(), 0.0),
        (found((10, 10, 50, 30, 0.8, 0)), 0.5),
        (found((10, 10, 50, 25, 0.8, 0)), 0.0),
        (found((*BOX, 0.8, 0), (100, 100, 120, 120, 0.2, 0)), 0.8),
        (found((*BOX, 0.8, 0), (100, 100, 120, 120, 0.01, 0)), 1.0),
    ],
    ids=["same", "half as sure", "other class", "lost", "half the box", "another box", "new", "new but nothing"],
)
def test_value(after: Detections, value: float) -> None:
    assert compare_detections([found((*BOX, 0.8, 0))], [after]).value == pytest.approx(value, abs=1e-5)


def test_a_box_is_the_partner_of_one_alone() -> None:
    before = found((*BOX, 0.8, 0), (12, 12, 52, 52, 0.6, 0))
    agreement = compare_detections([before], [found((*BOX, 0.8, 0))])
    assert agreement.value == pytest.approx(0.8 / 1.4, abs=1e-5)
    assert agreement.score_change == pytest.approx(-0.3, abs=1e-5)  # 0 of the first, 0.6 of the second


def test_nothing_in_either_is_agreement() -> None:
    assert compare_detections([found()], [found()]).value == 1.0
    assert compare_detections([], []).value == 1.0
