"""Box formats, overlaps and greedy NMS against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from boxwright.core import boxes as box_maths
from boxwright.core.nms import greedy_nms

BOX_A = [0.0, 0.0, 10.0, 20.0]


def rows(*values: list[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32).reshape(-1, 4)


def test_formats_convert_to_known_numbers_and_back() -> None:
    corners = rows([2, 4, 12, 10], [0, 0, 0, 0], [-3, -5, 3, 5])
    assert box_maths.xyxy_to_cxcywh(corners).tolist() == [[7, 7, 10, 6], [0, 0, 0, 0], [0, 0, 6, 10]]
    assert box_maths.xyxy_to_xywh(corners).tolist() == [[2, 4, 10, 6], [0, 0, 0, 0], [-3, -5, 6, 10]]
    np.testing.assert_array_equal(box_maths.cxcywh_to_xyxy(box_maths.xyxy_to_cxcywh(corners)), corners)
    np.testing.assert_array_equal(box_maths.xywh_to_xyxy(box_maths.xyxy_to_xywh(corners)), corners)


def test_formats_keep_leading_axes() -> None:
    corners = np.zeros((3, 0, 5, 4), dtype=np.float32)
    assert box_maths.xyxy_to_cxcywh(corners).shape == (3, 0, 5, 4)


def test_clip_moves_every_corner_into_the_image() -> None:
    clipped = box_maths.clip_boxes(rows([-5, -5, 50, 50], [3, 4, 5, 6], [40, 40, 60, 60]), (20, 30))
    assert clipped.tolist() == [[0, 0, 30, 20], [3, 4, 5, 6], [30, 20, 30, 20]]


@pytest.mark.parametrize(
    ("other", "iou"),
    [
        (BOX_A, 1.0),
        ([5.0, 0.0, 15.0, 20.0], 100 / 300),
        ([10.0, 0.0, 20.0, 20.0], 0.0),  # touching
        ([2.0, 5.0, 4.0, 10.0], 10 / 200),  # inside
        ([5.0, 5.0, 5.0, 15.0], 0.0),  # no width
        ([8.0, 8.0, 2.0, 2.0], 0.0),  # negative extents have no area
    ],
)
def test_iou(other: list[float], iou: float) -> None:
    overlap = box_maths.pairwise_overlaps(rows(BOX_A), rows(other))
    assert overlap.shape == (1, 1)
    assert overlap[0, 0] == pytest.approx(iou, abs=1e-7)


def test_diou_subtracts_the_centre_distance_over_the_diagonal() -> None:
    # Centres are 5 apart; the enclosing box is 15 x 20.
    overlap = box_maths.pairwise_overlaps(rows(BOX_A), rows([5, 0, 15, 20]), kind="diou")
    assert overlap[0, 0] == pytest.approx(100 / 300 - 25 / (15**2 + 20**2), abs=1e-7)


def test_overlap_of_huge_boxes_is_nan_and_suppresses_nothing() -> None:
    huge = rows([-3e38, -3e38, 3e38, 3e38], [-3e38, -3e38, 3e38, 3e38])
    assert np.isnan(box_maths.pairwise_overlaps(huge, huge)).all()
    assert greedy_nms(huge, np.zeros(2, np.int64), iou_threshold=0.0).tolist() == [0, 1]


def test_unknown_overlap_is_named() -> None:
    with pytest.raises(ValueError, match="'giou'"):
        box_maths.pairwise_overlaps(rows(BOX_A), rows(BOX_A), kind="giou")


THREE_IN_A_ROW = rows([0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10])  # neighbours overlap by 6/14, ends by 2/18


@pytest.mark.parametrize(
    ("class_ids", "iou_threshold", "class_agnostic", "kept"),
    [
        ([0, 0, 0], 0.4, False, [0, 2]),  # the suppressed middle one suppresses no more
        ([0, 0, 0], 0.1, False, [0]),
        ([0, 0, 0], 0.5, False, [0, 1, 2]),
        ([0, 1, 0], 0.1, False, [0, 1]),
        ([0, 1, 0], 0.1, True, [0]),
        ([0, 0, 0], 1.0, False, [0, 1, 2]),
    ],
)
def test_greedy_nms(class_ids: list[int], iou_threshold: float, class_agnostic: bool, kept: list[int]) -> None:
    result = greedy_nms(THREE_IN_A_ROW, np.array(class_ids), iou_threshold=iou_threshold, class_agnostic=class_agnostic)
    assert result.tolist() == kept


def test_equal_overlap_does_not_suppress() -> None:
    pair = rows([0, 0, 10, 10], [0, 0, 10, 5])  # IoU exactly 0.5
    assert greedy_nms(pair, np.zeros(2, np.int64), iou_threshold=0.5).tolist() == [0, 1]
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    assert greedy_nms(pair, np.zeros(2, np.int64), iou_threshold=below).tolist() == [0]


def test_nms_of_nothing() -> None:
    assert greedy_nms(rows(), np.zeros(0, np.int64), iou_threshold=0.5).tolist() == []


def test_agrees_with_torchvision_on_random_boxes() -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    generator = np.random.default_rng(3)
    for _ in range(20):
        top_left = generator.uniform(0, 60, (70, 2)).astype(np.float32)
        boxes_xyxy = np.concatenate([top_left, top_left + generator.uniform(1, 40, (70, 2)).astype(np.float32)], axis=1)
        scores = torch.linspace(1, 0, 70)
        expected = ops.nms(torch.from_numpy(boxes_xyxy), scores, 0.45).tolist()
        assert greedy_nms(boxes_xyxy, np.zeros(70, np.int64), iou_threshold=0.45).tolist() == expected
