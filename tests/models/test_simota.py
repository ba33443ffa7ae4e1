"""SimOTA against a slow reading of the paper, one image and one object at a time."""

import math

import pytest
import torch
from torch import Tensor

from boxwright.models.common.boxes import pairwise_iou
from boxwright.models.common.simota import CENTER_RADIUS, Assignment, assign_simota, class_cost
from boxwright.models.common.targets import PaddedTargets, Targets


def grid(size: int, stride: int) -> tuple[Tensor, Tensor]:
    steps = torch.arange(size // stride).float() * stride + stride / 2
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten()], dim=1)
    return points, torch.full((len(points),), float(stride))


def two_levels() -> tuple[Tensor, Tensor]:
    (points_a, strides_a), (points_b, strides_b) = grid(64, 8), grid(64, 16)
    return torch.cat([points_a, points_b]), torch.cat([strides_a, strides_b])


def predictions(
    batch: int, points: Tensor, strides: Tensor, num_classes: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    count = len(points)
    centres = points + (torch.rand(batch, count, 2, generator=generator) - 0.5) * strides[:, None]
    sizes = (0.5 + 3 * torch.rand(batch, count, 2, generator=generator)) * strides[:, None]
    boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1)
    logits = torch.randn(batch, count, num_classes, generator=generator)
    return boxes, logits, torch.randn(batch, count, generator=generator)


def slow_assignment(
    boxes: Tensor, logits: Tensor, objectness: Tensor, truth: Tensor, class_ids: Tensor, points: Tensor, strides: Tensor
) -> dict[int, int]:
    """Point -> object for one image, step by step."""
    inside, near = [], []
    for left, top, right, bottom in truth.tolist():
        x, y = points[:, 0], points[:, 1]
        inside.append((x > left) & (x < right) & (y > top) & (y < bottom))
        radius = CENTER_RADIUS * strides
        near.append(((x - (left + right) / 2).abs() < radius) & ((y - (top + bottom) / 2).abs() < radius))
    candidates = (
        torch.stack([*inside, *near, torch.zeros(len(points), dtype=torch.bool)])
        .any(dim=0)
        .nonzero()
        .flatten()
        .tolist()
    )
    iou = pairwise_iou(truth, boxes)
    cost: dict[tuple[int, int], float] = {}
    takers: dict[int, list[int]] = {}
    for row, class_id in enumerate(class_ids.tolist()):
        for point in candidates:
            score = (logits[point].sigmoid() * objectness[point].sigmoid()).sqrt()
            wanted = torch.zeros_like(score)
            wanted[class_id] = 1
            entropy = torch.nn.functional.binary_cross_entropy(score, wanted, reduction="sum").item()
            outside = not (inside[row][point] and near[row][point])
            cost[row, point] = entropy - 3 * math.log(iou[row, point].item() + 1e-8) + 1e5 * outside
        best = sorted((iou[row, point].item() for point in candidates), reverse=True)[:10]
        cheapest = sorted(candidates, key=lambda point: cost[row, point])[: max(1, int(sum(best)))]
        for point in cheapest:
            takers.setdefault(point, []).append(row)
    return {point: min(rows, key=lambda row: cost[row, point]) for point, rows in takers.items()}


def as_dict(found: Assignment, item: int) -> dict[int, int]:
    points = found.is_foreground[item].nonzero().flatten().tolist()
    return {point: int(found.object_index[item, point]) for point in points}


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_slow_reading(seed: int) -> None:
    points, strides = two_levels()
    boxes, logits, objectness = predictions(3, points, strides, 4, seed)
    # Overlapping, tiny, large, partly outside, and an image without any.
    truth = [
        torch.tensor([[3.0, 5, 30, 41], [10, 10, 28, 30], [50, 50, 52, 53]]),
        torch.zeros(0, 4),
        torch.tensor([[-5.0, -9, 60, 63], [40, 2, 64, 20]]),
    ]
    class_ids = [torch.tensor([0, 3, 1]), torch.zeros(0, dtype=torch.int64), torch.tensor([2, 2])]
    padded = Targets(boxes_xyxy=truth, class_ids=class_ids).padded(torch.device("cpu"))
    found = assign_simota(boxes, logits, objectness, padded, points, strides)
    for item in range(3):
        expected = slow_assignment(
            boxes[item], logits[item], objectness[item], truth[item], class_ids[item], points, strides
        )
        assert as_dict(found, item) == expected
        for point, row in expected.items():
            own = pairwise_iou(truth[item][row : row + 1], boxes[item, point : point + 1])
            assert found.iou[item, point].item() == pytest.approx(own.item(), abs=1e-6)
    assert not found.is_foreground[1].any() and (found.iou[1] == 0).all()
    assert found.is_foreground[0].any()


def test_class_cost_is_the_summed_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, objectness = torch.randn(2, 6, 5, generator=generator), torch.randn(2, 6, generator=generator)
    class_ids = torch.tensor([[0, 4, 2], [1, 1, 3]])
    found = class_cost(logits, objectness, class_ids)  # (2, 3, 6)
    scores = (logits.sigmoid() * objectness.sigmoid()[..., None]).sqrt()
    for item in range(2):
        for row in range(3):
            wanted = torch.nn.functional.one_hot(class_ids[item, row], 5).float().expand(6, 5)
            expected = torch.nn.functional.binary_cross_entropy(scores[item], wanted, reduction="none").sum(1)
            torch.testing.assert_close(found[item, row], expected, rtol=1e-4, atol=1e-5)


def test_no_objects_at_all() -> None:
    points, strides = two_levels()
    boxes, logits, objectness = predictions(2, points, strides, 3, 0)
    empty = Targets(boxes_xyxy=[torch.zeros(0, 4)] * 2, class_ids=[torch.zeros(0, dtype=torch.int64)] * 2)
    found = assign_simota(boxes, logits, objectness, empty.padded(torch.device("cpu")), points, strides)
    assert not found.is_foreground.any()
    assert found.is_foreground.shape == (2, len(points))


def test_predictions_that_are_not_finite_are_nobodys() -> None:
    points, strides = two_levels()
    boxes, logits, objectness = predictions(1, points, strides, 3, 0)
    targets = PaddedTargets(
        boxes_xyxy=torch.tensor([[[8.0, 8, 40, 40]]]),
        class_ids=torch.tensor([[1]]),
        is_object=torch.tensor([[True]]),
    )
    wanted = assign_simota(boxes, logits, objectness, targets, points, strides).is_foreground
    logits[0, wanted[0]] = torch.nan
    found = assign_simota(boxes, logits, objectness, targets, points, strides)
    assert found.is_foreground.any() and not (found.is_foreground & wanted).any()


def test_an_object_outside_the_grid_takes_nothing() -> None:
    points, strides = two_levels()
    boxes, logits, objectness = predictions(1, points, strides, 3, 0)
    truth = Targets(boxes_xyxy=[torch.tensor([[500.0, 500, 540, 540]])], class_ids=[torch.tensor([0])])
    found = assign_simota(boxes, logits, objectness, truth.padded(torch.device("cpu")), points, strides)
    assert not found.is_foreground.any()
