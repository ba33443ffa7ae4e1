"""RetinaNet against torchvision's from the same weights, and its assigners against the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models import detection

from boxwright.core.decode import decode_nms
from boxwright.core.errors import CheckpointError
from boxwright.core.preprocess_presets import IMAGENET_MEAN, IMAGENET_STD
from boxwright.models import build_model
from boxwright.models.common.anchor_assignment import BACKGROUND, IGNORED, assign_atss, assign_by_iou
from boxwright.models.common.anchor_deltas import decode_deltas, encode_deltas
from boxwright.models.common.checkpoint import load_weights
from boxwright.models.retinanet import import_checkpoint

SIZE_HW = (256, 320)
PAIRS = {"retinanet-r50": detection.retinanet_resnet50_fpn, "retinanet-r50-v2": detection.retinanet_resnet50_fpn_v2}


@pytest.mark.parametrize("variant", PAIRS)
def test_finds_what_torchvision_finds_from_the_same_weights(variant: str) -> None:
    torch.manual_seed(0)
    theirs = PAIRS[variant](weights=None, weights_backbone=None, num_classes=7, min_size=256, max_size=320).eval()
    with torch.no_grad():  # random weights find nothing at the prior probability
        theirs.head.classification_head.cls_logits.bias += 4
    weights = import_checkpoint(theirs.state_dict(), variant)
    assert weights.num_classes == 7
    ours = build_model(variant, num_classes=7).eval()
    load_weights(ours, weights.state, variant)
    images = torch.rand(2, 3, *SIZE_HW)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = theirs(list(images))
        heads = ours((images - mean) / std)
    spec = ours.decode_spec(SIZE_HW)
    found = decode_nms(
        heads["box_regression"].numpy(),
        heads["class_logits"].numpy(),
        attributes=spec.attributes(),
        score_threshold=0.05,
        iou_threshold=0.5,
        priors=spec.priors(),
        image_size_hw=np.array([SIZE_HW] * 2, dtype=np.float32),
    )
    for row, wanted in enumerate(expected):
        count = int(found.num_detections[row, 0])
        assert count == len(wanted["boxes"]) >= 50
        np.testing.assert_allclose(found.boxes[row, :count], wanted["boxes"].numpy(), atol=1e-3)
        np.testing.assert_allclose(found.scores[row, :count], wanted["scores"].numpy(), atol=1e-5)
        np.testing.assert_array_equal(found.class_ids[row, :count], wanted["labels"].numpy())


def test_another_checkpoint_is_refused() -> None:
    with pytest.raises(CheckpointError, match="cls_logits"):
        import_checkpoint({"head.weight": torch.zeros(3)}, "retinanet-r50")


ANCHORS = torch.tensor([[0, 0, 10, 10], [4, 0, 14, 10], [20, 20, 30, 30], [100, 100, 110, 110]], dtype=torch.float32)


def test_assignment_by_overlap() -> None:
    # Overlaps with the first object: 1, 6/14, 0, 0; the second is overlapped by anchor 2 alone, by a quarter.
    boxes = torch.tensor([[0, 0, 10, 10], [25, 20, 45, 30]], dtype=torch.float32)
    assigned = assign_by_iou(ANCHORS, boxes, foreground_iou=0.5, background_iou=0.4)
    assert assigned.tolist() == [0, IGNORED, 1, BACKGROUND]
    strict = assign_by_iou(ANCHORS, boxes, foreground_iou=0.5, background_iou=0.4, keep_best_of_object=False)
    assert strict.tolist() == [0, IGNORED, BACKGROUND, BACKGROUND]
    nothing = assign_by_iou(ANCHORS, torch.zeros(0, 4), foreground_iou=0.5, background_iou=0.4)
    assert nothing.tolist() == [BACKGROUND] * 4


def test_adaptive_assignment_takes_what_stands_out_and_lies_inside() -> None:
    boxes = torch.tensor([[0, 0, 10, 10]], dtype=torch.float32)
    # Candidates are the nearest two of each level: overlaps 1, 6/14, 0, 0; mean + deviation = 0.357 + 0.473.
    assigned = assign_atss(ANCHORS, (2, 2), boxes, candidates_per_level=2)
    assert assigned.tolist() == [0, BACKGROUND, BACKGROUND, BACKGROUND]
    assert assign_atss(ANCHORS, (2, 2), torch.zeros(0, 4)).tolist() == [BACKGROUND] * 4


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_deltas_invert(weights: tuple[float, float, float, float]) -> None:
    boxes = torch.tensor([[3, 4, 20, 30], [0, 0, 5, 50], [1, 1, 2, 2], [90, 90, 130, 95]], dtype=torch.float32)
    torch.testing.assert_close(decode_deltas(encode_deltas(boxes, ANCHORS, weights), ANCHORS, weights), boxes)
    # Centre 5 to the right of a 10 wide anchor, twice as wide.
    deltas = encode_deltas(torch.tensor([[0.0, 0, 20, 10]]), ANCHORS[:1])
    torch.testing.assert_close(deltas, torch.tensor([[0.5, 0.0, np.log(2), 0.0]], dtype=torch.float32))
