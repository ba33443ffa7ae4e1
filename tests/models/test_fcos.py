"""FCOS against torchvision's from the same weights, and its loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import detection

from boxwright.core.errors import CheckpointError
from boxwright.models import DetectionModel, Targets, build_model
from boxwright.models.common.center_sampling import assign_by_center, centerness, side_distances
from boxwright.models.common.checkpoint import load_weights
from boxwright.models.common.loss_options import LossOptions
from boxwright.models.fcos import import_checkpoint
from torchvision_parity import (
    as_torchvision_takes_it,
    assert_found_alike,
    detect,
    inputs_of,
    learn_statistics,
    real_images,
    shortest_edge_preprocess,
    spread_outputs,
)

NUM_CLASSES = 7
# A quarter of torchvision's sizes, so that the test is fast; it makes inputs of which P6 and P7 are no exact part.
SHORTEST_EDGE, MAX_SIZE = 200, 333
# Torchvision's own.
SCORE_THRESHOLD = 0.2


def test_finds_what_torchvision_finds_from_the_same_weights(shared_dir: Path) -> None:
    images = real_images(shared_dir)
    given = [as_torchvision_takes_it(image) for image in images]
    theirs = torchvision_model(given)
    weights = import_checkpoint(theirs.state_dict(), "fcos-r50")
    assert weights.num_classes == NUM_CLASSES
    ours = build_model("fcos-r50", num_classes=NUM_CLASSES).eval()
    load_weights(ours, weights.state, "fcos-r50")
    preprocess = shortest_edge_preprocess(SHORTEST_EDGE, MAX_SIZE)
    found = []
    for image in images:  # each by itself, the input as large as it needs
        pixels = inputs_of(theirs, preprocess, [image])
        transform = preprocess.plan((image.shape[0], image.shape[1]))
        found += detect(
            ours, pixels, [transform], score_threshold=SCORE_THRESHOLD, iou_threshold=ours.nms_iou_threshold
        )
    with torch.no_grad():
        wanted = [theirs([image])[0] for image in given]
    assert_found_alike(found, wanted, first_label=0)


def torchvision_model(given: list[torch.Tensor]) -> torch.nn.Module:
    torch.manual_seed(0)
    theirs = detection.fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES, min_size=SHORTEST_EDGE, max_size=MAX_SIZE
    ).eval()
    learn_statistics(theirs.backbone, theirs.transform(given)[0].tensors)
    boxes = theirs.head.regression_head
    layers = [
        (theirs.head.classification_head.cls_logits, 3.0, -3.0),
        (boxes.bbox_reg, 1.0, 2.0),
        (boxes.bbox_ctrness, 2.0, 0.0),
    ]
    spread_outputs(theirs, layers, given[0])
    return theirs


SIZE_HW = (128, 160)


def right_heads(model: DetectionModel, boxes: torch.Tensor, class_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a network would say that has learnt this image, twice: with the objects and as if there were none."""
    spec = model.decode_spec(SIZE_HW)
    priors = torch.from_numpy(spec.priors())
    points, strides = priors[:, :2], priors[:, 2]
    assigned = assign_by_center(points, strides, [level.size for level in spec.levels], boxes)
    positive = (assigned >= 0).nonzero().squeeze(1)
    assert len(positive) > 3
    heads = {
        "box_regression": torch.zeros(2, len(priors), 4),
        "class_logits": torch.full((2, len(priors), model.num_classes), -20.0),
        "objectness": torch.zeros(2, len(priors)),
        "_size_hw": torch.tensor(SIZE_HW),
    }
    sides = side_distances(points[positive], boxes[assigned[positive]])
    heads["box_regression"][0, positive] = sides / strides[positive, None]
    heads["class_logits"][0, positive, class_ids[assigned[positive]]] = 20.0
    heads["objectness"][0, positive] = centerness(sides).logit(eps=1e-6)
    return heads


def test_loss_is_least_where_the_heads_are_right() -> None:
    model = build_model("fcos-pico", num_classes=3)
    boxes = torch.tensor([[10.0, 12.0, 60.0, 55.0], [90.0, 20.0, 150.0, 90.0]])
    class_ids = torch.tensor([2, 0])
    heads = right_heads(model, boxes, class_ids)
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    targets = Targets(boxes_xyxy=[boxes, nothing[0]], class_ids=[class_ids, nothing[1]])
    right = model.loss(heads, targets)
    assert right["class"] < 1e-5 and right["box"] < 1e-5
    for name in ("box_regression", "objectness"):
        wrong = {**heads, name: heads[name] + 0.5}
        part = "box" if name == "box_regression" else "centerness"
        assert model.loss(wrong, targets)[part] > right[part] + 1e-3
    swapped = Targets(boxes_xyxy=[nothing[0], boxes], class_ids=[nothing[1], class_ids])
    assert model.loss(heads, swapped)["class"] > 1


def test_loss_options_are_heeded() -> None:
    model = build_model("fcos-pico", num_classes=3)
    boxes, class_ids = torch.tensor([[10.0, 12.0, 60.0, 55.0]]), torch.tensor([1])
    heads = right_heads(model, boxes, class_ids)
    heads["box_regression"] += torch.tensor([0.5, 0.5, -0.4, -0.4])
    targets = Targets(boxes_xyxy=[boxes, boxes], class_ids=[class_ids, class_ids])
    plain = model.loss(heads, targets)
    model.set_loss_options(LossOptions(box_loss="iou", label_smoothing=0.2))
    changed = model.loss(heads, targets)
    assert changed["box"] != plain["box"] and changed["class"] != plain["class"]


def test_another_checkpoint_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"bbox_ctrness.weight among them.*head.weight"):
        import_checkpoint({"head.weight": torch.zeros(3)}, "fcos-r50")
    retinanet = {"head.classification_head.cls_logits.weight": torch.zeros(63, 256, 3, 3)}
    with pytest.raises(CheckpointError, match="tensors of fcos-r50"):
        import_checkpoint(retinanet, "fcos-r50")
