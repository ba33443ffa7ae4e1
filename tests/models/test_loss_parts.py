"""The shared parts of losses against the formulas of the papers, with values worked by hand."""

import math

import pytest
import torch

from boxwright.core.errors import InputError
from boxwright.models import Targets, build_model
from boxwright.models.common.boxes import OverlapKind
from boxwright.models.common.class_targets import (
    sigmoid_class_targets,
    smoothed_cross_entropy,
    softmax_class_targets,
)
from boxwright.models.common.iou_losses import overlap_loss
from boxwright.models.common.loss_options import LossOptions
from boxwright.models.common.registry import families
from family_models import smallest_variants

# 2x2 squares one apart in x and y: intersection 1, union 7, hull 3x3, centres sqrt(2) and corners sqrt(18) apart. A 4x2
# and a 2x4 box on one centre: intersection 4, union 12, hull 4x4, aspect ratios 2 and 1/2.
ASPECT_TERM = 4 / math.pi**2 * (math.atan(2) - math.atan(0.5)) ** 2
BY_HAND: list[tuple[OverlapKind, tuple[int, ...], tuple[int, ...], float]] = [
    ("iou", (0, 0, 2, 2), (1, 1, 3, 3), 6 / 7),
    ("giou", (0, 0, 2, 2), (1, 1, 3, 3), 6 / 7 + 2 / 9),
    ("diou", (0, 0, 2, 2), (1, 1, 3, 3), 6 / 7 + 1 / 9),
    ("ciou", (0, 0, 2, 2), (1, 1, 3, 3), 6 / 7 + 1 / 9),
    ("iou", (0, 1, 4, 3), (1, 0, 3, 4), 2 / 3),
    ("giou", (0, 1, 4, 3), (1, 0, 3, 4), 2 / 3 + 4 / 16),
    ("diou", (0, 1, 4, 3), (1, 0, 3, 4), 2 / 3),
    ("ciou", (0, 1, 4, 3), (1, 0, 3, 4), 2 / 3 + ASPECT_TERM**2 / (2 / 3 + ASPECT_TERM)),
    # Apart: IoU says 1 however far; hull 10x1 with 8 empty; centres 9 apart, diagonal squared 101.
    ("iou", (0, 0, 1, 1), (9, 0, 10, 1), 1.0),
    ("giou", (0, 0, 1, 1), (9, 0, 10, 1), 1.8),
    ("diou", (0, 0, 1, 1), (9, 0, 10, 1), 1 + 81 / 101),
    ("ciou", (0, 0, 1, 1), (9, 0, 10, 1), 1 + 81 / 101),
]


@pytest.mark.parametrize(("kind", "box", "target", "expected"), BY_HAND)
def test_overlap_losses_by_hand(
    kind: OverlapKind, box: tuple[int, ...], target: tuple[int, ...], expected: float
) -> None:
    found = overlap_loss(torch.tensor([box]).float(), torch.tensor([target]).float(), kind=kind)
    assert found.shape == (1,)
    assert found.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("kind", "moves"), [("iou", False), ("giou", True), ("diou", True), ("ciou", True)])
def test_only_iou_has_no_gradient_where_boxes_do_not_touch(kind: OverlapKind, moves: bool) -> None:
    box = torch.tensor([[0.0, 0, 1, 1]], requires_grad=True)
    overlap_loss(box, torch.tensor([[9.0, 0, 10, 1]]), kind=kind).sum().backward()
    assert box.grad is not None
    # Descending moves the right edge towards the target on the right.
    assert (box.grad[0, 2].item() < -1e-3) == moves


def test_smoothed_targets_by_hand() -> None:
    ids = torch.tensor([2, 0])
    assert sigmoid_class_targets(ids, 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    torch.testing.assert_close(
        sigmoid_class_targets(ids, 3, smoothing=0.2), torch.tensor([[0.1, 0.1, 0.9], [0.9, 0.1, 0.1]])
    )
    torch.testing.assert_close(
        softmax_class_targets(ids, 4, smoothing=0.2), torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])
    )
    assert sigmoid_class_targets(ids[:0], 3, smoothing=0.2).shape == (0, 3)


def test_smoothed_cross_entropy_spares_the_background() -> None:
    logits, ids = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, 1, 0])
    found = smoothed_cross_entropy(logits, ids, ids > 0, smoothing=0.3)
    plain = torch.nn.functional.cross_entropy(logits, ids, reduction="none")
    targets = softmax_class_targets(ids, 3, smoothing=0.3)
    torch.testing.assert_close(found[ids == 0], plain[ids == 0])
    torch.testing.assert_close(found[ids > 0], -(targets * logits.log_softmax(dim=1)).sum(dim=1)[ids > 0])
    torch.testing.assert_close(smoothed_cross_entropy(logits, ids, ids > 0), plain)


@pytest.mark.parametrize("values", [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"box_loss": "l2"}])
def test_wrong_options_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(InputError):
        LossOptions(**values)  # type: ignore[arg-type]


OPTIONS = [LossOptions(label_smoothing=0.2), *(LossOptions(box_loss=kind) for kind in ("iou", "giou", "diou", "ciou"))]


@pytest.mark.parametrize("family", sorted(families()))
def test_an_option_changes_the_loss_or_is_refused(family: str) -> None:
    """Nothing that is asked for may be ignored: what a family says it heeds must show in its loss."""
    torch.manual_seed(0)
    model = build_model(smallest_variants()[family], num_classes=4).train()
    side = max(64, 2 * model.size_divisor, model.largest_stride)
    images = torch.randn(2, 3, side, side)
    boxes = [torch.tensor([[8.0, 10, 40, 50]]), torch.tensor([[4.0, 4, 30, 28], [20, 20, 60, 44]])]
    targets = Targets(boxes_xyxy=boxes, class_ids=[torch.tensor([1]), torch.tensor([0, 3])])

    def total(options: LossOptions) -> float:
        model.set_loss_options(options)
        torch.manual_seed(1)
        parts = model.training_loss(images, targets)
        assert parts["loss"].isfinite()
        return parts["loss"].item()

    plain = total(LossOptions())
    changed = []
    for options in OPTIONS:
        if set(options.asked()) <= model.supported_loss_options:
            changed.append(total(options))
        else:
            with pytest.raises(InputError, match="an option that the loss of"):
                model.set_loss_options(options)
    # A family's own box loss may be one of the four.
    assert sum(abs(value - plain) < 1e-7 * abs(plain) for value in changed) <= 1
    assert total(LossOptions()) == pytest.approx(plain, rel=1e-5)
