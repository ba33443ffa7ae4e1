"""Precision and recall at the best balance, by hand."""

from pathlib import Path

import numpy as np
import pytest

from boxwright.bench.accuracy import Predictions
from boxwright.core.detections import Detections
from boxwright.data import Sample
from boxwright.training.operating_point import OperatingPoint, best_operating_point


def sample(boxes: list[list[float]], class_ids: list[int], crowds: list[bool] | None = None) -> Sample:
    xyxy = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Sample(
        image_path=Path("a.jpg"),
        image_id=1,
        size_hw=(100, 100),
        boxes_xyxy=xyxy,
        class_ids=np.array(class_ids, dtype=np.int64),
        is_crowd=np.array(crowds or [False] * len(boxes), dtype=bool),
        areas=np.prod(xyxy[:, 2:] - xyxy[:, :2], axis=1),
    )


def found(boxes: list[list[float]], scores: list[float], class_ids: list[int]) -> Detections:
    return Detections(
        boxes_xyxy=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        scores=np.array(scores, dtype=np.float32),
        class_ids=np.array(class_ids, dtype=np.int32),
    )


A, B, C, FAR = [0.0, 0, 10, 10], [20.0, 20, 40, 40], [50.0, 50, 60, 70], [80.0, 80, 90, 90]


def test_by_hand() -> None:
    """Four objects; by falling score right, right, wrong (twice the same object), right, wrong: F1 is best after 4."""
    predictions = Predictions(
        samples=(sample([A, B], [0, 0]), sample([C, FAR], [1, 0])),
        detections=(found([A, B, A], [0.9, 0.8, 0.7], [0, 0, 0]), found([C, C], [0.6, 0.5], [1, 0])),
    )
    point = best_operating_point(predictions)
    assert (point.precision, point.recall) == (0.75, 0.75)
    assert point.threshold == pytest.approx(0.6)


def test_a_detection_of_another_class_or_place_is_wrong() -> None:
    predictions = Predictions(samples=(sample([A], [0]),), detections=(found([A, FAR], [0.9, 0.8], [1, 0]),))
    assert best_operating_point(predictions) == OperatingPoint(precision=0, recall=0, threshold=0)


def test_crowds_count_neither_way() -> None:
    predictions = Predictions(
        samples=(sample([A, B], [0, 0], [False, True]),), detections=(found([B, B, A], [0.9, 0.8, 0.7], [0, 0, 0]),)
    )
    point = best_operating_point(predictions)
    assert (point.precision, point.recall) == (1.0, 1.0)


def test_nothing_found_or_nothing_there() -> None:
    nothing = OperatingPoint(precision=0, recall=0, threshold=0)
    assert best_operating_point(Predictions(samples=(sample([A], [0]),), detections=(found([], [], []),))) == nothing
    assert best_operating_point(Predictions(samples=(sample([], []),), detections=(found([A], [0.9], [0]),))) == nothing
