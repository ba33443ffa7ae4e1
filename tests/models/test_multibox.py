"""SSD's matching and its loss against what the paper says of them."""

from __future__ import annotations

import math

import pytest
import torch

from boxwright.models.common.anchor_assignment import BACKGROUND, assign_one_each
from boxwright.models.common.multibox_loss import hardest_negatives, multibox_class_loss

# Overlaps with (0, 0, 10, 10): 1, 6/14, 0, 0, 9/11.
ANCHORS = torch.tensor(
    [[0, 0, 10, 10], [4, 0, 14, 10], [20, 20, 30, 30], [100, 100, 110, 110], [1, 0, 11, 10]], dtype=torch.float32
)


def test_every_anchor_of_enough_overlap_and_one_of_each_object() -> None:
    # The second object is overlapped by anchor 2 alone, by a quarter; the third by none.
    boxes = torch.tensor([[0, 0, 10, 10], [25, 20, 45, 30], [60, 60, 70, 70]], dtype=torch.float32)
    assert assign_one_each(ANCHORS, boxes, foreground_iou=0.5).tolist() == [0, BACKGROUND, 1, BACKGROUND, 0]
    assert assign_one_each(ANCHORS, boxes, foreground_iou=0.4).tolist() == [0, 0, 1, BACKGROUND, 0]
    assert assign_one_each(ANCHORS, torch.zeros(0, 4), foreground_iou=0.5).tolist() == [BACKGROUND] * 5


def test_no_object_loses_its_anchor_to_one_that_fits_less() -> None:
    # Both overlap anchor 0 most: the first wholly, the second less, so that it takes what it overlaps next.
    boxes = torch.tensor([[-2, 0, 9, 10], [0, 0, 10, 10]], dtype=torch.float32)
    assigned = assign_one_each(ANCHORS, boxes, foreground_iou=0.95)
    assert assigned.tolist() == [1, BACKGROUND, BACKGROUND, BACKGROUND, 0]
    # Even where a third object is left with an anchor that hardly touches it.
    boxes = torch.tensor([[-2, 0, 9, 10], [0, 0, 10, 10], [0, 0, 9, 10]], dtype=torch.float32)
    assigned = assign_one_each(ANCHORS, boxes, foreground_iou=0.95)
    assert sorted(assigned.tolist()) == [BACKGROUND, BACKGROUND, 0, 1, 2] and assigned[0] == 1


def test_more_objects_than_anchors() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 9, 10], [0, 0, 8, 10]], dtype=torch.float32)
    assert assign_one_each(ANCHORS[:1], boxes, foreground_iou=0.5).tolist() == [0]


def test_negatives_are_the_hardest_three_of_each_positive() -> None:
    losses = torch.tensor([[9.0, 1, 5, 4, 3, 2, 8, 0], [1, 2, 3, 4, 5, 6, 7, 8]])
    is_positive = torch.tensor([[True] + 7 * [False], 8 * [False]])
    taken = hardest_negatives(losses, is_positive)
    assert taken[0].nonzero().squeeze(1).tolist() == [2, 3, 6]
    assert taken[1].nonzero().squeeze(1).tolist() == [5, 6, 7]
    two = torch.tensor([[True, False, True] + 5 * [False], 8 * [False]])
    taken = hardest_negatives(losses, two)  # six are asked for, and there are six
    assert taken[0].tolist() == [False, True, False] + 5 * [True]
    assert not hardest_negatives(losses, torch.ones(2, 8, dtype=torch.bool)).any()
    assert hardest_negatives(losses, two, per_positive=1, at_least=0)[1].sum() == 0


def test_equal_losses_do_not_take_more() -> None:
    is_positive = torch.zeros(1, 50, dtype=torch.bool)
    is_positive[0, 7] = True
    assert hardest_negatives(torch.ones(1, 50), is_positive).sum() == 3


def test_class_loss_by_hand() -> None:
    # Two classes and the background, one object; all probabilities a third, but of one sure and one wrong background.
    logits = torch.zeros(1, 6, 3)
    logits[0, 4] = torch.tensor([50.0, 0, 0])
    logits[0, 5] = torch.tensor([0.0, math.log(2), 0])
    targets = torch.tensor([[2, 0, 0, 0, 0, 0]])
    expected = math.log(3) + 2 * math.log(3) + math.log(4)  # the object, two of the undecided, the wrong one
    assert multibox_class_loss(logits, targets).item() == pytest.approx(expected, rel=1e-6)
    logits[0, 0, 2] = 2.0
    total = math.exp(2) + 2
    smoothed = math.log(total) - 0.9 * 2 - 0.1 * 2 / 3
    expected = smoothed + 2 * math.log(3) + math.log(4)
    assert multibox_class_loss(logits, targets, label_smoothing=0.1).item() == pytest.approx(expected, rel=1e-6)
