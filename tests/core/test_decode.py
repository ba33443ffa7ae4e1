"""The reference of DecodeNMS: each coding and rule against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from boxwright.core.decode import DecodeNmsOutput, decode_nms
from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.core.errors import InputError

LOG_2 = math.log(2)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def run(
    box_regression: list,
    class_logits: list,
    attributes: DecodeNmsAttributes,
    *,
    score_threshold: float = 0.1,
    iou_threshold: float = 0.5,
    objectness: list | None = None,
    priors: list | None = None,
    image_size_hw: list | None = None,
) -> DecodeNmsOutput:
    as_array = lambda value: None if value is None else np.array(value, dtype=np.float32)  # noqa: E731
    return decode_nms(
        as_array(box_regression),
        as_array(class_logits),
        attributes=attributes,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        objectness=as_array(objectness),
        priors=as_array(priors),
        image_size_hw=as_array(image_size_hw),
    )


def plain(**changes: object) -> DecodeNmsAttributes:
    """xyxy boxes with scores as they are."""
    base = DecodeNmsAttributes(box_coding="xyxy", score_activation="none", max_detections=5)
    return dataclasses.replace(base, **changes)


def detections_of(output: DecodeNmsOutput, item: int = 0) -> list[tuple[int, float]]:
    count = int(output.num_detections[item, 0])
    pairs = zip(output.class_ids[item, :count], output.scores[item, :count], strict=True)
    return [(int(c), round(float(s), 6)) for c, s in pairs]


LEVEL = {"level_sizes": (1,), "level_strides": (8.0,)}


@pytest.mark.parametrize(
    ("coding", "extra", "raw", "prior", "box"),
    [
        ("xyxy", {}, [1, 2, 3, 4], None, [1, 2, 3, 4]),
        ("xyxy", {}, [0.5, 0.25, 1, 1], [10, 20, 100, 200], [60, 70, 110, 220]),
        ("cxcywh", {}, [10, 20, 4, 6], None, [8, 17, 12, 23]),
        ("cxcywh", {}, [0.5, 0.5, 0.2, 0.4], [0, 0, 100, 50], [40, 15, 60, 35]),
        ("anchor_delta", {}, [0.5, 0, LOG_2, 0], [10, 10, 20, 30], [10, 10, 30, 30]),
        ("anchor_delta", {"box_weights": (10, 10, 5, 5)}, [5, 0, 5 * LOG_2, 0], [10, 10, 20, 30], [10, 10, 30, 30]),
        ("anchor_delta", {"delta_clip": LOG_2}, [0, 0, 50, 0], [10, 10, 20, 30], [5, 10, 25, 30]),
        ("yolov1", LEVEL, [0.5, 0.25, 0.5, 0.5], [16, 24, 64, 64], [12, 18, 28, 34]),
        ("yolov2", LEVEL, [0, 0, LOG_2, 0], [16, 24, 10, 20], [10, 18, 30, 38]),
        ("yolov4", {**LEVEL, "level_scale_xy": (2.0,)}, [math.log(3), 0, 0, 0], [16, 24, 10, 20], [19, 18, 29, 38]),
        ("yolov5", LEVEL, [0, math.log(3), 0, math.log(3)], [16, 24, 10, 20], [15, 9.5, 25, 54.5]),
        ("yolox", {}, [0.5, -0.5, LOG_2, 0], [16, 24, 8, 8], [12, 16, 28, 24]),
        ("distances", {}, [1, 2, 3, 0.5], [20, 20, 8, 8], [12, 4, 44, 24]),
    ],
)
def test_codings(coding: str, extra: dict, raw: list, prior: list | None, box: list) -> None:
    attributes = DecodeNmsAttributes(box_coding=coding, score_activation="none", max_detections=2, **extra)
    output = run([[raw]], [[[0.9]]], attributes, priors=None if prior is None else [prior])
    np.testing.assert_allclose(output.boxes[0, 0], box, rtol=1e-6)
    assert output.num_detections.tolist() == [[1]]
    assert output.boxes[0, 1].tolist() == [0, 0, 0, 0]
    assert output.scores[0].tolist() == [np.float32(0.9), 0]
    assert output.class_ids[0].tolist() == [0, -1]


@pytest.mark.parametrize(
    ("rules", "logits", "objectness", "expected"),
    [
        ({"score_activation": "sigmoid"}, [2.0, -1.0], None, [(0, sigmoid(2))]),
        (
            {"score_activation": "sigmoid", "multi_label": True},
            [2.0, -1.0],
            None,
            [(0, sigmoid(2)), (1, sigmoid(-1))],
        ),
        ({"score_activation": "softmax"}, [LOG_2, 0.0], None, [(0, 2 / 3)]),
        ({"score_activation": "softmax", "background_class": 0}, [LOG_2, 0.0], None, [(0, 1 / 3)]),
        ({"score_activation": "softmax", "background_class": 1}, [LOG_2, 0.0, LOG_2], None, [(0, 0.4)]),
        (
            {"score_activation": "softmax", "background_class": 1, "multi_label": True},
            [LOG_2, 0.0, LOG_2],
            None,
            [(0, 0.4), (1, 0.4)],
        ),
        ({"score_activation": "sigmoid", "score_combination": "multiply"}, [2.0, 1.0], 0.0, [(0, sigmoid(2) / 2)]),
        (
            {"score_activation": "sigmoid", "score_combination": "sqrt"},
            [2.0, 1.0],
            0.0,
            [(0, math.sqrt(sigmoid(2) / 2))],
        ),
        ({"score_combination": "multiply", "objectness_activation": "none"}, [0.5, 0.4], 0.5, [(0, 0.25)]),
        ({"score_combination": "multiply", "objectness_activation": "sigmoid"}, [0.5, 0.4], 0.0, [(0, 0.25)]),
        ({}, [0.5, 0.5], None, [(0, 0.5)]),  # a tie goes to the lower class
        ({}, [0.1, 0.05], None, []),  # equal to the threshold is not above it
        ({}, [math.nan, 0.5], None, [(1, 0.5)]),
        ({}, [math.inf, 0.5], None, [(1, 0.5)]),
        ({"score_activation": "softmax"}, [math.nan, 0.5], None, []),
        ({"score_combination": "multiply"}, [0.9, 0.5], math.nan, []),
    ],
)
def test_score_rules(rules: dict, logits: list, objectness: float | None, expected: list) -> None:
    output = run(
        [[[0, 0, 1, 1]]], [[logits]], plain(**rules), objectness=None if objectness is None else [[objectness]]
    )
    found = detections_of(output)
    assert [class_id for class_id, _ in found] == [class_id for class_id, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-6)


def test_rank_is_score_then_class_then_anchor() -> None:
    apart = [[i * 100, 0, i * 100 + 10, 10] for i in range(4)]
    logits = [[0.5, 0.0], [0.0, 0.5], [0.5, 0.0], [0.0, 0.9]]
    output = run([apart], [logits], plain())
    assert output.boxes[0, :4, 0].tolist() == [300, 0, 200, 100]
    assert output.class_ids[0].tolist() == [1, 0, 0, 1, -1]


def test_top_k_scopes() -> None:
    apart = [[i * 100, 0, i * 100 + 10, 10] for i in range(5)]
    logits = [[0.9, 0.0], [0.8, 0.0], [0.7, 0.0], [0.0, 0.6], [0.0, 0.5]]
    first_x = lambda output: output.boxes[0, : output.num_detections[0, 0], 0].tolist()  # noqa: E731
    assert first_x(run([apart], [logits], plain(pre_nms_top_k=2))) == [0, 100]
    assert first_x(run([apart], [logits], plain(pre_nms_top_k=1, top_k_scope="class"))) == [0, 300]
    by_level = plain(pre_nms_top_k=1, top_k_scope="level", level_sizes=(1, 3, 1))
    assert first_x(run([apart], [logits], by_level)) == [0, 100, 400]
    assert first_x(run([apart], [logits], plain(max_detections=3))) == [0, 100, 200]


def test_the_top_k_comes_before_boxes_are_dropped() -> None:
    boxes = [[math.nan, 0, 1, 1], [0, 0, 0.5, 10], [0, 0, 10, 10]]
    logits = [[0.9], [0.8], [0.7]]
    assert detections_of(run([boxes], [logits], plain(min_size=1.0))) == [(0, 0.7)]
    assert detections_of(run([boxes], [logits], plain(min_size=1.0, pre_nms_top_k=2))) == []


def test_suppression_and_without_nms() -> None:
    boxes = [[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10]]
    logits = [[0.9, 0.0], [0.8, 0.0], [0.0, 0.7]]
    assert detections_of(run([boxes], [logits], plain())) == [(0, 0.9), (1, 0.7)]
    assert detections_of(run([boxes], [logits], plain(class_agnostic=True))) == [(0, 0.9)]
    assert detections_of(run([boxes], [logits], plain(with_nms=False))) == [(0, 0.9), (0, 0.8), (1, 0.7)]


def test_clipping_comes_before_nms_and_min_size() -> None:
    boxes = [[-100, 0, 10, 10], [0, 0, 10, 10], [20, 0, 40, 10]]
    logits = [[0.9], [0.8], [0.7]]
    clipped = run([boxes], [logits], plain(clip_to_image=True, min_size=2.0), image_size_hw=[[10, 21]])
    assert clipped.boxes[0, 0].tolist() == [0, 0, 10, 10]
    assert detections_of(clipped) == [(0, 0.9)]
    assert detections_of(run([boxes], [logits], plain())) == [(0, 0.9), (0, 0.8), (0, 0.7)]


def test_class_specific_boxes() -> None:
    regression = [[[0, 0, 1, 1, 10, 10, 30, 30, 50, 50, 60, 60]]]
    attributes = plain(class_specific_boxes=True, background_class=0, multi_label=True)
    output = run(regression, [[[0.9, 0.4, 0.6]]], attributes)
    assert output.boxes[0, :2].tolist() == [[50, 50, 60, 60], [10, 10, 30, 30]]
    assert output.class_ids[0, :2].tolist() == [1, 0]


def test_batches_with_priors_of_their_own_and_an_empty_item() -> None:
    output = run(
        [[[0, 0, 1, 1]], [[0, 0, 1, 1]]],
        [[[0.05]], [[0.5]]],
        plain(),
        priors=[[[0, 0, 1, 1]], [[5, 5, 2, 2]]],
    )
    assert output.num_detections.tolist() == [[0], [1]]
    assert output.boxes[1, 0].tolist() == [5, 5, 7, 7]
    assert (output.class_ids[0] == -1).all()


@pytest.mark.parametrize(("anchors", "batch"), [(0, 1), (0, 3), (3, 0)])
def test_nothing_in_nothing_out(anchors: int, batch: int) -> None:
    output = decode_nms(
        np.zeros((batch, anchors, 4), np.float32),
        np.zeros((batch, anchors, 7), np.float32),
        attributes=plain(),
        score_threshold=0.0,
        iou_threshold=0.5,
    )
    assert output.boxes.shape == (batch, 5, 4)
    assert not output.num_detections.any()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"box_regression": np.zeros((1, 2, 5), np.float32)}, "box_regression"),
        ({"class_logits": np.zeros((2, 3), np.float32)}, "class_logits"),
        ({"class_logits": np.zeros((1, 2, 0), np.float32)}, "class_logits"),
        ({"objectness": np.zeros((1, 2), np.float32)}, "objectness"),
        ({"priors": np.zeros((3, 4), np.float32)}, "priors"),
        ({"score_threshold": 1.5}, "score_threshold"),
        ({"iou_threshold": float("nan")}, "iou_threshold"),
        ({"attributes": plain(background_class=3)}, "background_class"),
        ({"attributes": plain(clip_to_image=True)}, "image_size_hw"),
        ({"attributes": plain(top_k_scope="level", level_sizes=(1, 2))}, "level_sizes"),
        ({"attributes": plain(box_coding="yolox")}, "priors"),
        ({"attributes": plain(score_combination="multiply")}, "objectness"),
    ],
)
def test_inputs_that_do_not_fit_are_named(changes: dict, named: str) -> None:
    arguments = {
        "box_regression": np.zeros((1, 2, 4), np.float32),
        "class_logits": np.zeros((1, 2, 3), np.float32),
        "attributes": plain(),
        "score_threshold": 0.1,
        "iou_threshold": 0.5,
        **changes,
    }
    with pytest.raises(InputError, match=named):
        decode_nms(**arguments)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"box_coding": "polar"}, "box_coding"),
        ({"score_activation": "tanh"}, "score_activation"),
        ({"overlap": "giou"}, "overlap"),
        ({"max_detections": 0}, "max_detections"),
        ({"pre_nms_top_k": -1}, "pre_nms_top_k"),
        ({"box_weights": (1, 1, 1)}, "box_weights"),
        ({"box_weights": (1, 1, 0, 1)}, "box_weights"),
        ({"box_coding": "yolov5"}, "level_strides"),
        ({"top_k_scope": "level"}, "level_sizes"),
        ({"level_sizes": (2,), "level_scale_xy": (1.0, 2.0)}, "level_scale_xy"),
    ],
)
def test_attributes_that_make_no_sense_are_refused(changes: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        plain(**changes)


def test_whole_numbers_are_floats_where_files_carry_floats() -> None:
    attributes = DecodeNmsAttributes(
        box_coding="yolov5",
        level_sizes=(4,),
        level_strides=(8,),
        min_size=1,
        box_weights=(1, 2, 3, 4),
    )
    written = [attributes.min_size, *attributes.level_strides, *attributes.box_weights]
    assert written == [1.0, 8.0, 1.0, 2.0, 3.0, 4.0] and all(isinstance(number, float) for number in written)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multi_label": "yes"}, "attribute multi_label: expected True or False, got 'yes'"),
        ({"with_nms": 1}, "attribute with_nms: expected True or False, got 1"),
        ({"max_detections": 3.5}, "attribute max_detections: expected an integer, got 3.5"),
        ({"min_size": "large"}, "attribute min_size: expected a number, got 'large'"),
        ({"box_weights": 1.0}, "attribute box_weights: expected numbers, got 1.0"),
    ],
)
def test_attributes_of_other_types_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DecodeNmsAttributes(box_coding="xyxy", **changes)
