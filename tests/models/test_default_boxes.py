"""SSD's default boxes against the paper and torchvision's generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from boxwright.models.common.default_boxes import default_box_levels, linear_scales, num_boxes_per_cell


def test_scales_are_spaced_equally() -> None:
    # Equation 4 with the paper's s_min = 0.2, s_max = 0.9 and six maps.
    assert linear_scales(0.2, 0.9, 6) == pytest.approx((0.2, 0.34, 0.48, 0.62, 0.76, 0.9, 1.0))


def test_boxes_of_a_cell() -> None:
    (level,) = default_box_levels(
        (100, 200), grids_hw=[(2, 4)], steps_hw=[(50.0, 50.0)], scales=(0.2, 0.8), aspect_ratios=[(4.0,)]
    )
    assert num_boxes_per_cell((4.0,)) == 4
    priors = level.priors()
    assert priors.shape == (2 * 4 * 4, 4)
    centres, sizes = (priors[:, :2] + priors[:, 2:]) / 2, priors[:, 2:] - priors[:, :2]
    # Column 2, row 1; scale 0.2, sqrt(0.2 * 0.8) = 0.4, then 4 : 1 and 1 : 4, each of the same area as the first.
    cell = slice((4 + 2) * 4, (4 + 3) * 4)
    np.testing.assert_allclose(centres[cell], [[125.0, 75.0]] * 4)
    np.testing.assert_allclose(sizes[cell], [[40, 20], [80, 40], [80, 10], [20, 40]], rtol=1e-6)


def test_no_side_is_longer_than_the_image() -> None:
    (level,) = default_box_levels(
        (60, 90), grids_hw=[(1, 1)], steps_hw=[(60.0, 90.0)], scales=(0.9, 1.1), aspect_ratios=[(2.0,)]
    )
    priors = level.priors()
    sizes = priors[:, 2:] - priors[:, :2]
    assert sizes.max(axis=0).tolist() == [90.0, 60.0]
    assert sizes[2, 1] == pytest.approx(0.9 * 60 / 2**0.5)


@pytest.mark.parametrize("size_hw", [(300, 300), (60, 110)])
def test_they_are_torchvisions(size_hw: tuple[int, int]) -> None:
    grids_hw, ratios = [(7, 8), (3, 4)], [[2], [2, 3]]
    theirs = DefaultBoxGenerator(ratios, scales=[0.07, 0.15, 1.05], steps=[8, 16])
    images = ImageList(torch.zeros(1, 3, *size_hw), [size_hw])
    (expected,) = theirs(images, [torch.zeros(1, 1, *grid_hw) for grid_hw in grids_hw])
    levels = default_box_levels(
        size_hw,
        grids_hw=grids_hw,
        steps_hw=[(8.0, 8.0), (16.0, 16.0)],
        scales=(0.07, 0.15, 1.05),
        aspect_ratios=ratios,
    )
    found = np.concatenate([level.priors() for level in levels])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
