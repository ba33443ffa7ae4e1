"""The overlaps in torch against the numpy reference and against the formulas of the papers."""

import math

import numpy as np
import pytest
import torch

from boxwright.core import boxes as reference
from boxwright.models.common import boxes as torch_boxes


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 100
    return torch.cat([corners, corners + torch.rand(count, 2, generator=generator) * 60], dim=1)


def test_pairwise_iou_is_the_reference() -> None:
    boxes_a, boxes_b = random_boxes(7, 0), random_boxes(5, 1)
    boxes_a[0, 2:] = boxes_a[0, :2]  # no area
    expected = reference.pairwise_overlaps(boxes_a.numpy(), boxes_b.numpy())
    np.testing.assert_allclose(torch_boxes.pairwise_iou(boxes_a, boxes_b).numpy(), expected, atol=1e-6)


def test_pairwise_iou_keeps_leading_axes() -> None:
    boxes_a, boxes_b = random_boxes(12, 0).reshape(3, 4, 4), random_boxes(15, 1).reshape(3, 5, 4)
    batched = torch_boxes.pairwise_iou(boxes_a, boxes_b)  # (3, 4, 5)
    for item in range(3):
        torch.testing.assert_close(batched[item], torch_boxes.pairwise_iou(boxes_a[item], boxes_b[item]))


@pytest.mark.parametrize("kind", ["iou", "diou"])
def test_paired_overlap_is_the_diagonal_of_the_reference(kind: torch_boxes.OverlapKind) -> None:
    boxes_a, boxes_b = random_boxes(20, 2), random_boxes(20, 3)
    expected = np.diag(reference.pairwise_overlaps(boxes_a.numpy(), boxes_b.numpy(), kind=kind))
    np.testing.assert_allclose(torch_boxes.paired_overlap(boxes_a, boxes_b, kind=kind).numpy(), expected, atol=1e-5)


# Two 2x2 squares a corner apart (intersection 1, union 7, hull 9, centres sqrt(2) apart, diagonal sqrt(18)); two
# squares that do not touch (hull 3x1); a 2x1 in a 2x2 (IoU 1/2, centres 1/2 apart).
HAND_WORKED = [
    ("iou", (0, 0, 2, 2), (1, 1, 3, 3), 1 / 7),
    ("giou", (0, 0, 2, 2), (1, 1, 3, 3), 1 / 7 - 2 / 9),
    ("diou", (0, 0, 2, 2), (1, 1, 3, 3), 1 / 7 - 2 / 18),
    ("ciou", (0, 0, 2, 2), (1, 1, 3, 3), 1 / 7 - 2 / 18),
    ("giou", (0, 0, 1, 1), (2, 0, 3, 1), -1 / 3),
    ("diou", (0, 0, 1, 1), (2, 0, 3, 1), -4 / 10),
    ("diou", (0, 0, 2, 1), (0, 0, 2, 2), 0.5 - 0.25 / 8),
]


@pytest.mark.parametrize(("kind", "box_a", "box_b", "expected"), HAND_WORKED)
def test_paired_overlap_by_hand(
    kind: torch_boxes.OverlapKind, box_a: tuple[float, ...], box_b: tuple[float, ...], expected: float
) -> None:
    found = torch_boxes.paired_overlap(torch.tensor([box_a]).float(), torch.tensor([box_b]).float(), kind=kind)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_ciou_takes_off_the_aspect_ratio_term() -> None:
    found = torch_boxes.paired_overlap(torch.tensor([[0.0, 0, 2, 1]]), torch.tensor([[0.0, 0, 2, 2]]), kind="ciou")
    term = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    assert found.item() == pytest.approx(0.5 - 0.25 / 8 - term**2 / (0.5 + term), abs=1e-6)


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_gradients_are_finite_for_equal_empty_and_distant_boxes(kind: torch_boxes.OverlapKind) -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [5, 5, 5, 5], [0, 0, 1, 1]], requires_grad=True)
    others = torch.tensor([[0.0, 0, 2, 2], [5, 5, 5, 5], [900, 900, 901, 905]])
    overlap = torch_boxes.paired_overlap(boxes, others, kind=kind)
    overlap.sum().backward()
    assert boxes.grad is not None
    assert overlap.isfinite().all() and boxes.grad.isfinite().all()
    assert overlap[0].item() == pytest.approx(1.0)


def test_formats_are_inverses() -> None:
    boxes = random_boxes(9, 4)
    torch.testing.assert_close(torch_boxes.cxcywh_to_xyxy(torch_boxes.xyxy_to_cxcywh(boxes)), boxes)
    assert torch_boxes.xyxy_to_cxcywh(torch.tensor([[0.0, 0, 4, 2]])).tolist() == [[2, 1, 4, 2]]
