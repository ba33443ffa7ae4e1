"""SSD and SSDLite against torchvision's from the same weights, and what is the family's own against the paper."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import detection

from boxwright.core.errors import CheckpointError, InputError
from boxwright.models import Targets, build_model
from boxwright.models.common.checkpoint import load_weights
from boxwright.models.common.loss_options import LossOptions
from boxwright.models.ssd import VARIANTS, import_checkpoint
from torchvision_parity import (
    as_torchvision_takes_it,
    assert_found_alike,
    detect,
    inputs_of,
    learn_statistics,
    real_images,
    spread_outputs,
)

NUM_CLASSES = 6
TORCHVISION = {
    "ssd300-vgg16": detection.ssd300_vgg16,
    "ssdlite320-mobilenetv3": detection.ssdlite320_mobilenet_v3_large,
}
# Torchvision's own thresholds.
SCORE_THRESHOLDS = {"ssd300-vgg16": 0.01, "ssdlite320-mobilenetv3": 0.001}


@pytest.mark.parametrize("variant", TORCHVISION)
def test_finds_what_torchvision_finds_from_the_same_weights(variant: str, shared_dir: Path) -> None:
    images = real_images(shared_dir)
    given = [as_torchvision_takes_it(image) for image in images]
    theirs = torchvision_model(variant, given)
    weights = import_checkpoint(theirs.state_dict(), variant)
    assert weights.num_classes == NUM_CLASSES
    ours = build_model(variant, num_classes=NUM_CLASSES).eval()
    load_weights(ours, weights.state, variant)
    preprocess = dataclasses.replace(ours.default_preprocess(VARIANTS[variant].size_hw), resize_in_float=True)
    pixels = inputs_of(theirs, preprocess, images)
    transforms = [preprocess.plan((image.shape[0], image.shape[1])) for image in images]
    with torch.no_grad():
        wanted = theirs(given)
    found = detect(
        ours,
        pixels,
        transforms,
        score_threshold=SCORE_THRESHOLDS[variant],
        iou_threshold=ours.nms_iou_threshold,
    )
    assert_found_alike(found, wanted, first_label=1)


def torchvision_model(variant: str, given: list[torch.Tensor]) -> torch.nn.Module:
    """With random weights, every score and box another."""
    torch.manual_seed(0)
    theirs = TORCHVISION[variant](weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1).eval()
    pixels = theirs.transform(given)[0].tensors
    learn_statistics(theirs.backbone, pixels)
    layers = []
    for head, spread in ((theirs.head.classification_head, 3.0), (theirs.head.regression_head, 2.0)):
        if variant.startswith("ssdlite"):
            learn_statistics(head, list(theirs.backbone(pixels).values()))
        for step in head.module_list:
            layers.append((step[-1] if isinstance(step, torch.nn.Sequential) else step, spread, 0.0))
    spread_outputs(theirs, layers, given[0])
    return theirs


def test_variants_have_the_boxes_of_the_paper() -> None:
    counts = {"ssd300-vgg16": 8732, "ssd512-vgg16": 24564, "ssdlite320-mobilenetv3": 3234}
    for variant, count in counts.items():
        with torch.device("meta"):
            model = build_model(variant, num_classes=2)
        priors = model.decode_spec(VARIANTS[variant].size_hw).priors()
        assert priors is not None and len(priors) == count


def test_large_variant_gives_a_head_for_every_box() -> None:
    with torch.device("meta"):
        model = build_model("ssd512-vgg16", num_classes=2).eval()
        heads = model(torch.empty(2, 3, 512, 512))
    assert heads["class_logits"].shape == (2, 24564, 3) and heads["box_regression"].shape == (2, 24564, 4)


@pytest.mark.parametrize(
    ("variant", "size_hw"),
    [("ssd300-vgg16", (300, 341)), ("ssdlite320-mobilenetv3", (97, 161)), ("ssd-pico", (96, 160))],
)
def test_odd_sizes_give_a_head_for_every_box(variant: str, size_hw: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = build_model(variant, num_classes=2).eval()
        heads = model(torch.empty(1, 3, *size_hw))
    priors = model.decode_spec(size_hw).priors()
    assert priors is not None and heads["class_logits"].shape == (1, len(priors), 3)


def test_a_size_that_leaves_nothing_of_the_last_map_is_refused() -> None:
    with torch.device("meta"):
        model = build_model("ssd300-vgg16", num_classes=2)
    with pytest.raises(InputError, match=r"at least 268 pixels.*got 256x300; pass --imgsz 268x300"):
        model.decode_spec((256, 300))
    model.decode_spec((268, 300))


def test_scale_of_the_unit_vectors_begins_at_20() -> None:
    model = build_model("ssd300-vgg16", num_classes=2)
    with torch.no_grad():
        c4 = model.backbone(torch.rand(1, 3, 268, 268) * 255)[0]
    torch.testing.assert_close(c4.norm(dim=1), torch.full((1, 34, 34), 20.0))


def test_a_batch_of_one_is_refused_where_batch_normalisation_could_not_learn() -> None:
    model = build_model("ssd-pico", num_classes=2).train()
    with pytest.raises(InputError, match=r"at least 2 images.*got 1; pass a larger --batch"):
        model(torch.rand(1, 3, 64, 64))
    assert model(torch.rand(2, 3, 64, 64))["box_regression"].isfinite().all()
    assert model(torch.rand(1, 3, 160, 160))["box_regression"].isfinite().all()


def two_images() -> tuple[dict[str, torch.Tensor], Targets]:
    """Heads of a network that says background everywhere, and an object on the first image."""
    model = build_model("ssd-pico", num_classes=2)
    num_anchors = len(model.decode_spec((64, 64)).priors())
    logits = torch.zeros(2, num_anchors, 3)
    logits[..., 0] = 5.0
    heads = {
        "box_regression": torch.zeros(2, num_anchors, 4),
        "class_logits": logits,
        "_size_hw": torch.tensor([64, 64]),
    }
    boxes = torch.tensor([[10.0, 12.0, 40.0, 45.0]])
    return heads, Targets(
        boxes_xyxy=[boxes, torch.zeros(0, 4)], class_ids=[torch.tensor([1]), torch.zeros(0, dtype=torch.int64)]
    )


def test_loss_is_nothing_where_the_heads_are_right() -> None:
    model = build_model("ssd-pico", num_classes=2)
    heads, targets = two_images()
    assert model.loss(heads, targets)["loss"] > 1
    from boxwright.models.common.anchor_assignment import assign_one_each
    from boxwright.models.common.anchor_deltas import encode_deltas

    anchors = torch.from_numpy(model.decode_spec((64, 64)).priors())
    positive = assign_one_each(anchors, targets.boxes_xyxy[0], foreground_iou=0.5) == 0
    assert positive.any()
    deltas = encode_deltas(targets.boxes_xyxy[0], anchors[positive], (10.0, 10.0, 5.0, 5.0))
    heads["box_regression"][0, positive] = deltas
    heads["class_logits"] *= 4
    heads["class_logits"][0, positive] = torch.tensor([0.0, 0.0, 20.0])
    parts = model.loss(heads, targets)
    assert parts["loss"] < 1e-5
    # One delta is wrong by 3, of which smooth L1 makes 2.5.
    heads["box_regression"][0, positive.nonzero()[0, 0], 1] += 3
    assert model.loss(heads, targets)["box"].item() == pytest.approx(2.5 / int(positive.sum()), abs=1e-4)


def test_loss_options_are_heeded() -> None:
    model = build_model("ssd-pico", num_classes=2)
    heads, targets = two_images()
    plain = model.loss(heads, targets)
    model.set_loss_options(LossOptions(box_loss="diou", label_smoothing=0.2))
    changed = model.loss(heads, targets)
    assert changed["box"] != plain["box"] and changed["class"] != plain["class"]


@pytest.mark.parametrize(
    ("variant", "state", "message"),
    [
        ("ssd300-vgg16", {"head.weight": torch.zeros(3)}, "module_list.0.bias among them.*head.weight"),
        ("ssd300-vgg16", {"head.classification_head.module_list.0.bias": torch.zeros(7)}, "tensors of ssd300"),
        ("ssd512-vgg16", {}, "torchvision has weights of.*got ssd512-vgg16"),
    ],
)
def test_another_checkpoint_is_refused(variant: str, state: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(state, variant)


def test_missing_and_surplus_tensors_are_named() -> None:
    state = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3).state_dict()
    state["extra.weight"] = state.pop("backbone.extra.3.2.1.weight")
    weights = import_checkpoint(state, "ssdlite320-mobilenetv3")
    assert weights.num_classes == 2
    model = build_model("ssdlite320-mobilenetv3", num_classes=2)
    with pytest.raises(CheckpointError, match=r"1 missing: backbone.extra.3.2.1.weight; 1 surplus: extra.weight"):
        load_weights(model, weights.state, "theirs.pth")


def test_default_thresholds_are_those_of_the_authors() -> None:
    for variant, iou in (("ssd300-vgg16", 0.45), ("ssdlite320-mobilenetv3", 0.55)):
        with torch.device("meta"):
            assert build_model(variant, num_classes=1).nms_iou_threshold == iou
    assert np.isclose(VARIANTS["ssd300-vgg16"].scales[1:], np.arange(0.15, 1.06, 0.18)).all()
