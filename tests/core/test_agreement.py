"""The rule by which implementations of DecodeNMS are compared finds what is wrong, and lets pass what may differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from agreement import find_disagreement
from boxwright.core.decode import DecodeNmsOutput, decode_nms
from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from decode_nms_cases import Case

CASE = Case(
    seed=4,
    batch_size=2,
    num_anchors=600,
    num_classes=3,
    attributes=DecodeNmsAttributes(box_coding="yolox", max_detections=400, pre_nms_top_k=300),
    score_threshold=0.2,
    iou_threshold=0.2,
    logit_mean=-3.0,
)


def changed(output: DecodeNmsOutput, item: int, order: np.ndarray) -> DecodeNmsOutput:
    """The detections of one item in another order, or some of them."""
    copy = DecodeNmsOutput(*(array.copy() for array in output))
    copy.num_detections[item] = len(order)
    for name, padding in (("boxes", 0), ("scores", 0), ("class_ids", -1)):
        rows = getattr(copy, name)[item]
        rows[: len(order)], rows[len(order) :] = rows[order], padding
    return copy


def with_value(output: DecodeNmsOutput, field: str, index: tuple[int, ...], value: float) -> DecodeNmsOutput:
    copy = DecodeNmsOutput(*(array.copy() for array in output))
    getattr(copy, field)[index] = value
    return copy


def all_but(count: int, left_out: int) -> np.ndarray:
    return np.delete(np.arange(count), left_out)


def swapped(count: int, first: int) -> np.ndarray:
    order = np.arange(count)
    order[[first, first + 1]] = order[[first + 1, first]]
    return order


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    return CASE.inputs()


@pytest.fixture(scope="module")
def output(inputs: dict[str, Any]) -> DecodeNmsOutput:
    result = decode_nms(**inputs)
    assert 100 < result.num_detections[1, 0] < 280
    return result


def test_the_reference_agrees_with_itself(inputs: dict[str, Any], output: DecodeNmsOutput) -> None:
    assert find_disagreement(output, **inputs) == ""


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda o, n: changed(o, 1, all_but(n, 0)), "is missing"),
        (lambda o, n: changed(o, 1, all_but(n, n - 1)), "is missing"),
        (lambda o, n: changed(o, 1, swapped(n, 3)), "scores rise"),
        (lambda o, n: changed(o, 1, np.append(np.arange(n), n - 1)), "no candidate"),
        (lambda o, n: with_value(o, "boxes", (1, 2, 0), o.boxes[1, 2, 0] + 0.1), "no candidate"),
        (lambda o, n: with_value(o, "scores", (1, 2), o.scores[1, 2] + 1e-5), "no candidate"),
        (lambda o, n: with_value(o, "class_ids", (1, 2), (o.class_ids[1, 2] + 1) % 3), "no candidate"),
        (lambda o, n: with_value(o, "class_ids", (1, n), 0), "padding"),
        (lambda o, n: with_value(o, "scores", (1, n), 0.5), "padding"),
        (lambda o, n: with_value(o, "num_detections", (1, 0), 401), "detections"),
        (lambda o, n: DecodeNmsOutput(*(array[:1] for array in o)), "shapes"),
    ],
)
def test_faults_are_found(
    fault: Callable[[DecodeNmsOutput, int], DecodeNmsOutput],
    message: str,
    inputs: dict[str, Any],
    output: DecodeNmsOutput,
) -> None:
    assert message in find_disagreement(fault(output, int(output.num_detections[1, 0])), **inputs)


@pytest.mark.parametrize(
    "changes",
    [
        {"iou_threshold": 0.22},
        {"iou_threshold": 0.18},
        {"score_threshold": 0.22},
        {"score_threshold": 0.19},
        {"attributes": dataclasses.replace(CASE.attributes, class_agnostic=True)},
        {"attributes": dataclasses.replace(CASE.attributes, overlap="diou")},
        {"attributes": dataclasses.replace(CASE.attributes, multi_label=True)},
        {"attributes": dataclasses.replace(CASE.attributes, with_nms=False)},
        {"attributes": dataclasses.replace(CASE.attributes, pre_nms_top_k=299)},
        {"attributes": dataclasses.replace(CASE.attributes, pre_nms_top_k=301)},
        {"attributes": dataclasses.replace(CASE.attributes, background_class=0)},
        {"attributes": dataclasses.replace(CASE.attributes, min_size=6.0)},
    ],
)
def test_other_rules_are_found(changes: dict[str, Any], inputs: dict[str, Any]) -> None:
    if "score_threshold" in changes:  # shows where the top-k leaves room
        inputs = {**inputs, "attributes": dataclasses.replace(CASE.attributes, pre_nms_top_k=0)}
    assert find_disagreement(decode_nms(**{**inputs, **changes}), **inputs) != ""


def close_call(scores: list[float], boxes: list[list[float]]) -> dict[str, Any]:
    return {
        "box_regression": np.array([boxes], np.float32),
        "class_logits": np.array([[[score] for score in scores]], np.float32),
        "attributes": DecodeNmsAttributes(box_coding="xyxy", score_activation="none", max_detections=2),
        "score_threshold": 0.3,
        "iou_threshold": 0.5,
    }


APART = [[0, 0, 10, 10], [50, 0, 60, 10], [100, 0, 110, 10]]


@pytest.mark.parametrize(
    ("scores", "boxes", "other_scores", "may_differ"),
    [
        ([0.8, 0.7999995, 0.1], APART, [0.7999995, 0.8, 0.1], True),  # rank
        ([0.8, 0.79999, 0.1], APART, [0.79999, 0.8, 0.1], False),
        ([0.8, 0.3000005, 0.1], APART, [0.8, 0.2999995, 0.1], True),  # threshold
        ([0.8, 0.30001, 0.1], APART, [0.8, 0.29999, 0.1], False),
        ([0.8, 0.5000005, 0.5], APART, [0.8, 0.5, 0.5000005], True),  # the last place
        ([0.8, 0.50001, 0.5], APART, [0.8, 0.5, 0.50001], False),
    ],
)
def test_close_calls(
    scores: list[float], boxes: list[list[float]], other_scores: list[float], may_differ: bool
) -> None:
    """The result of nearly the same scores passes where it is within 1e-6."""
    inputs = close_call(scores, boxes)
    other = decode_nms(**close_call(other_scores, boxes))
    assert (find_disagreement(other, **inputs) == "") == may_differ


@pytest.mark.parametrize(("width", "may_differ"), [(15.0, True), (15.00001, True), (15.001, False), (14.999, False)])
def test_close_overlaps(width: float, may_differ: bool) -> None:
    """Half an overlap at a threshold of a half may suppress or not."""
    inputs = close_call([0.8, 0.7], [[0, 0, 30, 10], [0, 0, width, 10]])
    verdicts = {
        len(suppressed): find_disagreement(decode_nms(**{**inputs, "iou_threshold": iou}), **inputs) == ""
        for iou, suppressed in ((0.4, "x"), (0.6, ""))
    }
    assert all(verdicts.values()) == may_differ
    assert any(verdicts.values())
