"""mAP of weighted images against the COCO evaluator's, and the interval of a difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boxwright.bench.coco_metrics import compute_coco_metrics
from boxwright.calibration.paired_map import average_precision, compare, match_detections
from boxwright.core.detections import Detections
from boxwright.data import Sample

NUM_CLASSES = 4


def scene(seed: int, *, num_images: int = 12, jitter: float = 6.0) -> tuple[list[Sample], list[Detections]]:
    """Random boxes, crowds among them, and detections near some of them."""
    random = np.random.default_rng(seed)
    samples, detections = [], []
    for index in range(num_images):
        count = int(random.integers(0, 7))
        corners = random.uniform(0, 200, (count, 2))
        boxes = np.concatenate([corners, corners + random.uniform(8, 90, (count, 2))], axis=1).astype(np.float32)
        class_ids = random.integers(0, NUM_CLASSES - 1, count)
        samples.append(
            Sample(
                image_path=Path(f"{index}.png"),
                image_id=index + 1,
                size_hw=(300, 300),
                boxes_xyxy=boxes,
                class_ids=class_ids.astype(np.int64),
                is_crowd=random.random(count) < 0.2,
                areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).astype(np.float32),
            )
        )
        again = np.repeat(np.arange(count), 2)
        found = boxes[again] + random.normal(0, jitter, (len(again), 4)).astype(np.float32)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        strays = random.uniform(0, 150, (3, 4)).astype(np.float32)
        strays[:, 2:] += strays[:, :2] + 5
        boxes_found = np.concatenate([found, strays])
        classes = np.concatenate([class_ids[again], random.integers(0, NUM_CLASSES, 3)]).astype(np.int32)
        scores = random.random(len(boxes_found)).round(2).astype(np.float32)  # with ties
        detections.append(Detections.sorted(boxes_found, scores, classes))
    return samples, detections


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_the_evaluators(seed: int) -> None:
    samples, detections = scene(seed)
    expected = compute_coco_metrics(samples, detections, num_classes=NUM_CLASSES).map
    matched = match_detections(samples, detections, num_classes=NUM_CLASSES)
    assert average_precision(matched)[0] == pytest.approx(expected, abs=1e-6)


def test_a_weight_of_two_counts_an_image_twice() -> None:
    samples, detections = scene(5, num_images=6)
    matched = match_detections(samples, detections, num_classes=NUM_CLASSES)
    weights = np.array([[2.0, 1, 0, 1, 3, 1]])
    order = [0, 0, 1, 3, 4, 4, 4, 5]
    again = match_detections(
        [samples[index] for index in order], [detections[index] for index in order], num_classes=NUM_CLASSES
    )
    # Scores that tie may be ranked otherwise among copies.
    assert average_precision(matched, weights)[0] == pytest.approx(average_precision(again)[0], abs=0.02)


def test_the_difference_of_a_model_to_itself_is_nothing() -> None:
    samples, detections = scene(1)
    matched = match_detections(samples, detections, num_classes=NUM_CLASSES)
    difference = compare(matched, matched)
    assert (difference.drop, difference.low, difference.high, difference.standard_error) == (0, 0, 0, 0)
    assert difference.num_images == len(samples)


def test_the_interval_holds_a_true_loss() -> None:
    samples, good = scene(2, num_images=40, jitter=2.0)
    worse = [Detections.unchecked(found.boxes_xyxy + np.float32(4), found.scores, found.class_ids) for found in good]
    difference = compare(
        match_detections(samples, good, num_classes=NUM_CLASSES),
        match_detections(samples, worse, num_classes=NUM_CLASSES),
    )
    assert 0 < difference.low < difference.drop < difference.high
    assert difference.map_before - difference.map_after == pytest.approx(difference.drop)


def test_no_detection_is_no_precision() -> None:
    samples, detections = scene(3)
    nothing = match_detections(samples, [Detections.empty() for _ in samples], num_classes=NUM_CLASSES)
    assert average_precision(nothing)[0] == 0
    assert compare(match_detections(samples, detections, num_classes=NUM_CLASSES), nothing).map_after == 0
