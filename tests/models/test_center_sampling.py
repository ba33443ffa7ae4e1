"""FCOS's assignment and centerness against the paper."""

from __future__ import annotations

import math

import pytest
import torch

from boxwright.models.common.anchor_assignment import BACKGROUND
from boxwright.models.common.center_sampling import SCALE_ENDS, assign_by_center, centerness, side_distances


def test_distances_and_centerness_by_hand() -> None:
    points = torch.tensor([[4.0, 5.0], [5.0, 5.0]])
    boxes = torch.tensor([[0.0, 3.0, 10.0, 11.0], [0.0, 0.0, 10.0, 10.0]])
    distances = side_distances(points, boxes)
    assert distances.tolist() == [[4, 2, 6, 6], [5, 5, 5, 5]]
    assert centerness(distances).tolist() == pytest.approx([math.sqrt(4 / 6 * 2 / 6), 1.0])
    assert centerness(torch.zeros(0, 4)).shape == (0,)


def grid(stride: int, rows: int, columns: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(rows) * stride, torch.arange(columns) * stride, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1).float()


# Two levels of a 96x128 input, of stride 8 and 16.
POINTS = torch.cat([grid(8, 12, 16), grid(16, 6, 8)])
STRIDES = torch.cat([torch.full((192,), 8.0), torch.full((48,), 16.0)])
LEVEL_SIZES = (192, 48)


def assigned_points(boxes: torch.Tensor, **options: object) -> dict[int, set[tuple[float, float, float]]]:
    ends = (0.0, 64.0, math.inf)
    assigned = assign_by_center(POINTS, STRIDES, LEVEL_SIZES, boxes, **{"scale_ends": ends, **options})
    return {
        index: {
            (float(stride), *point)
            for point, stride in zip(POINTS[assigned == index].tolist(), STRIDES[assigned == index], strict=True)
        }
        for index in range(len(boxes))
    }


def test_points_near_the_middle_and_inside() -> None:
    # Centre (40, 44): points less than 12 from it, of the finer level; (x, 32) is exactly 12 away and no such.
    (found,) = assigned_points(torch.tensor([[20.0, 20.0, 60.0, 68.0]])).values()
    assert found == {(8, x, y) for x in (32, 40, 48) for y in (40, 48)}
    # A flat object has only those inside: |y - 44| < 3 leaves none, < 5 leaves 40 and 48.
    (found,) = assigned_points(torch.tensor([[20.0, 41.0, 60.0, 47.0]])).values()
    assert found == set()
    (found,) = assigned_points(torch.tensor([[20.0, 39.0, 60.0, 49.0]])).values()
    assert found == {(8, x, y) for x in (32, 40, 48) for y in (40, 48)}


def test_a_wider_radius_takes_more() -> None:
    (found,) = assigned_points(torch.tensor([[20.0, 20.0, 60.0, 68.0]]), radius=3.0).values()
    assert {y for _, _, y in found} == {24, 32, 40, 48, 56, 64}


def test_large_objects_belong_to_the_coarser_level() -> None:
    (found,) = assigned_points(torch.tensor([[0.0, 0.0, 128.0, 96.0]])).values()
    # The farthest side of a point is 64 away at the least, which is still of the finer level.
    assert (8, 64, 48) in found
    assert (16, 48, 48) in found and (16, 64, 48) not in found
    assert all(stride == 16 for stride, x, y in found if x != 64)


def test_of_two_objects_the_smaller_one_is_learnt() -> None:
    boxes = torch.tensor([[20.0, 20.0, 60.0, 68.0], [34.0, 34.0, 46.0, 54.0], [20.0, 20.0, 60.0, 68.0]])
    found = assigned_points(boxes)
    assert found[1] == {(8, 40, y) for y in (40, 48)}
    assert found[0] == {(8, x, y) for x in (32, 48) for y in (40, 48)}
    assert found[2] == set()


def test_no_objects() -> None:
    assigned = assign_by_center(POINTS, STRIDES, LEVEL_SIZES, torch.zeros(0, 4), scale_ends=(0.0, 64.0, math.inf))
    assert assigned.tolist() == [BACKGROUND] * 240


def test_five_levels_have_the_ends_of_the_paper() -> None:
    assert (0, 64, 128, 256, 512, math.inf) == SCALE_ENDS
