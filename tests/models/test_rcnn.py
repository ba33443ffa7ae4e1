"""The R-CNN line against torchvision's Faster R-CNN from the same weights, and its parts against the papers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models import detection
from torchvision.ops import MultiScaleRoIAlign

from boxwright.core.decode import decode_nms
from boxwright.core.detections import Detections
from boxwright.core.errors import CheckpointError, InputError
from boxwright.core.manifest import Manifest
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import IMAGENET_MEAN, IMAGENET_STD
from boxwright.models import Targets, build_model
from boxwright.models.common.checkpoint import load_weights
from boxwright.models.common.proposals import as_rois, canvas_size_hw, pad_proposals
from boxwright.models.common.roi_pooling import RegionPool, region_levels
from boxwright.models.common.roi_sampling import choose_samples, sample_regions
from boxwright.models.common.rpn import RpnHeads
from boxwright.models.rcnn import FasterRcnn, import_checkpoint
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.torch import TorchBackend
from torchvision_parity import as_torchvision_takes_it, real_images

NUM_CLASSES = 6
NAMES = tuple(f"class {number}" for number in range(NUM_CLASSES))
# Torchvision's sizes, a quarter of the usual ones so that the test is fast.
SHORTEST_EDGE, MAX_SIZE = 200, 333
# Fewer than usual, for the same reason.
NUM_PROPOSALS = 150
TORCHVISION = {
    "fasterrcnn-r50": detection.fasterrcnn_resnet50_fpn,
    "fasterrcnn-r50-v2": detection.fasterrcnn_resnet50_fpn_v2,
    "fasterrcnn-mobilenet-320": detection.fasterrcnn_mobilenet_v3_large_320_fpn,
}


def torchvision_preprocess() -> Preprocess:
    """Shorter side, bound of the longer one, padded to 32, and told to the network where the image ends."""
    mean = tuple(255.0 * value for value in IMAGENET_MEAN)
    return Preprocess(
        size_hw=None,
        resize="shortest_edge",
        shortest_edge=SHORTEST_EDGE,
        max_size=MAX_SIZE,
        divisor=32,
        pad_value=(mean[0], mean[1], mean[2]),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        pixel_mask=True,
        resize_in_float=True,
    )


def torchvision_model(variant: str, images: list[Tensor]) -> torch.nn.Module:
    """With random weights that say something else of every region, as those of a trained one do."""
    torch.manual_seed(0)
    theirs = TORCHVISION[variant](
        weights=None,
        weights_backbone=None,
        num_classes=NUM_CLASSES + 1,
        min_size=SHORTEST_EDGE,
        max_size=MAX_SIZE,
        box_detections_per_img=300,
        rpn_post_nms_top_n_test=NUM_PROPOSALS,
    )
    for norm in theirs.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 1.0
    rpn, predictor = theirs.rpn.head, theirs.roi_heads.box_predictor
    spreads = {rpn.cls_logits: 1.0, rpn.bbox_pred: 0.1, predictor.cls_score: 2.0, predictor.bbox_pred: 0.3}
    with torch.no_grad():
        theirs.backbone.train()(torch.stack([images[0][:, :224, :320]]))
        for norm in theirs.backbone.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):  # a channel that hardly varies would enlarge roundings
                assert norm.running_var is not None
                norm.running_var.clamp_(min=float(norm.running_var.mean()))
        theirs.roi_heads.box_head.train()
        for layer, spread in spreads.items():  # from the first to the last: each changes what those behind it read
            _spread(theirs.eval() if layer is not predictor.cls_score else theirs, layer, spread, images[0])
    return theirs.eval()


def _spread(theirs: torch.nn.Module, layer: torch.nn.Module, spread: float, image: Tensor) -> None:
    """Scale a layer so that its outputs on an image have this standard deviation about 0."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, given, output: seen.append(output))
    theirs([image])
    hook.remove()
    values = torch.cat([part.flatten() for part in seen])
    layer.weight *= spread / values.std()
    layer.bias *= 0


def as_resized(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = torchvision_preprocess().plan((image.shape[0], image.shape[1])).resized_hw
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def test_images_become_what_torchvision_makes_of_them(shared_dir: Path) -> None:
    images = real_images(shared_dir)
    theirs = torchvision_model("fasterrcnn-mobilenet-320", [as_torchvision_takes_it(image) for image in images])
    for image in images:
        wanted, _ = theirs.transform([as_torchvision_takes_it(image)])
        found = torchvision_preprocess().apply_batch([image])
        assert found.pixel_mask is not None
        size_hw = canvas_size_hw(torch.from_numpy(found.images), torch.from_numpy(found.pixel_mask))
        assert size_hw.tolist() == [list(wanted.image_sizes[0])]
        # Torch places the pixels in float32, which is 6e-5 of a pixel at 640; times a step of up to 255 / 57.
        np.testing.assert_allclose(found.images, wanted.tensors.numpy(), atol=5e-4)


@pytest.mark.parametrize("variant", TORCHVISION)
def test_finds_what_torchvision_finds_from_the_same_weights(variant: str, shared_dir: Path) -> None:
    # In the size that they get anyway: a resize leaves roundings, which random weights enlarge a hundredfold.
    images = [as_resized(image) for image in real_images(shared_dir)]
    theirs = torchvision_model(variant, [as_torchvision_takes_it(image) for image in images])
    weights = import_checkpoint(theirs.state_dict(), variant)
    assert weights.num_classes == NUM_CLASSES
    ours = build_model(variant, num_classes=NUM_CLASSES).eval()
    load_weights(ours, weights.state, variant)
    ours.rpn.config = replace(ours.rpn.config, top_k=(ours.rpn.config.top_k[0], NUM_PROPOSALS))
    manifest = Manifest(
        family="rcnn",
        variant=variant,
        class_names=NAMES,
        preprocess=torchvision_preprocess(),
        decode=ours.decode_spec((224, 352)),  # nothing in it depends on the size
        stage="raw",
    )
    detector = Detector.from_backend(TorchBackend.from_module(ours, manifest), manifest, conf=0.05, iou=0.5)
    num_compared = 0
    for image in images:
        with torch.no_grad():
            wanted = theirs([as_torchvision_takes_it(image)])[0]
        found = detector([image])[0]
        assert abs(len(found) - len(wanted["boxes"])) <= 1  # a score may lie on the threshold
        num_compared += _check_same(found, {name: value.numpy() for name, value in wanted.items()})
    assert num_compared >= 150


def _check_same(found: Detections, wanted: dict[str, NDArray[np.generic]]) -> int:
    """Each of their boxes is among ours, but for those at the end of a full list; returns how many were compared."""
    compared = np.flatnonzero(wanted["scores"] > max(0.05, float(found.scores[-1])) + 1e-3)
    boxes = np.abs(found.boxes_xyxy[None] - wanted["boxes"][compared, None]).max(axis=2)  # (W, F)
    scores = np.abs(found.scores[None] - wanted["scores"][compared, None])
    same = (boxes <= 1e-3) & (scores <= 1e-3) & (found.class_ids[None] == wanted["labels"][compared, None] - 1)
    assert same.any(axis=1).all(), f"{(~same.any(axis=1)).sum()} of {len(compared)} boxes have no partner"
    return len(compared)


def test_old_names_and_frozen_norms_are_understood() -> None:
    state = {
        "rpn.head.conv.weight": torch.zeros(1),
        "backbone.fpn.layer_blocks.2.bias": torch.zeros(1),
        "backbone.fpn.layer_blocks.3.0.bias": torch.zeros(1),
        "backbone.body.layer1.0.bn1.running_var": torch.ones(2),
        "backbone.body.layer2.0.bn1.running_var": torch.ones(2),
        "backbone.body.layer2.0.bn1.num_batches_tracked": torch.zeros(()),
        "roi_heads.box_predictor.cls_score.weight": torch.zeros(91, 4),
    }
    weights = import_checkpoint(state, "fasterrcnn-r50")
    assert weights.num_classes == 90
    assert {"rpn.head.conv.0.0.weight", "backbone.fpn.layer_blocks.2.0.bias"} < weights.state.keys()
    assert "backbone.fpn.layer_blocks.3.0.bias" in weights.state
    # The frozen one was trained without the epsilon that ours adds to it.
    torch.testing.assert_close(weights.state["backbone.body.layer1.0.bn1.running_var"] + 1e-5, torch.ones(2))
    torch.testing.assert_close(weights.state["backbone.body.layer2.0.bn1.running_var"], torch.ones(2))


def test_another_checkpoint_is_refused() -> None:
    with pytest.raises(CheckpointError, match="cls_score"):
        import_checkpoint({"head.weight": torch.zeros(3)}, "fasterrcnn-r50")


@pytest.mark.parametrize("variant", ["fasterrcnn-pico", "cascadercnn-pico"])
def test_padding_of_the_proposals_gives_no_detections(variant: str) -> None:
    torch.manual_seed(0)
    model = build_model(variant, num_classes=3).eval()
    model.rpn.config = replace(model.rpn.config, score_threshold=0.5)
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        model.rpn.head.cls_logits.bias.fill_(-100.0)  # no proposals at all
        heads = {name: head.numpy() for name, head in model(images).items()}
    assert heads["priors"].shape == (2, 50, 4) and not heads["priors"].any()
    found = decode_nms(
        heads["box_regression"],
        heads["class_logits"],
        attributes=model.decode_spec((96, 128)).attributes(),
        score_threshold=0.0,
        iou_threshold=0.5,
        priors=heads["priors"],
        image_size_hw=np.array([[96, 128]] * 2, dtype=np.float32),
    )
    assert found.num_detections.tolist() == [[0], [0]]


def test_proposals_end_where_the_mask_says() -> None:
    torch.manual_seed(0)
    model = build_model("fasterrcnn-pico", num_classes=3).eval()
    mask = torch.zeros(2, 96, 128, dtype=torch.int64)
    mask[0, :50, :70] = 1
    mask[1] = 1
    with torch.no_grad():
        heads = model(torch.randn(2, 3, 96, 128), mask)
    assert heads["image_size_hw"].tolist() == [[50, 70], [96, 128]]
    assert heads["priors"][0, :, 2].max() == 70 and heads["priors"][0, :, 3].max() == 50
    assert heads["priors"][1, :, 2].max() > 70 and heads["priors"][1, :, 3].max() > 50


# Areas of 224^2 belong to the map of stride 16, a quarter of it to stride 8; all else to the first and last.
LEVEL_CASES = [(224, 224, 2), (223, 224, 1), (112, 112, 1), (112, 448, 2), (448, 448, 3), (5000, 5000, 3), (1, 1, 0)]


def test_the_level_of_a_region() -> None:
    boxes = torch.tensor([[10, 20, 10 + width, 20 + height] for width, height, _ in LEVEL_CASES], dtype=torch.float32)
    assert region_levels(boxes, (4, 8, 16, 32)).tolist() == [level for _, _, level in LEVEL_CASES]
    assert region_levels(torch.tensor([[5.0, 5.0, 5.0, 5.0], [9.0, 9.0, 3.0, 2.0]]), (8, 16)).tolist() == [0, 0]


def test_pools_as_torchvision_does() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 24 // 2**level, 40 // 2**level) for level in range(4)]
    corners = torch.rand(300, 2) * torch.tensor([130.0, 70.0])
    sizes = 4 + torch.rand(300, 2) * torch.tensor([400.0, 300.0])
    limits = torch.tensor([160.0, 96.0])
    boxes = torch.cat([corners, torch.minimum(corners + sizes, limits)], dim=1).reshape(2, 150, 4)
    boxes = boxes * 4  # of an image of 384 x 640, so that all levels are met
    maps = [torch.nn.functional.interpolate(part, scale_factor=4) for part in maps]
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2)
    expected = theirs({str(level): part for level, part in enumerate(maps)}, list(boxes), [(384, 640)] * 2)
    pooled = RegionPool(strides=(4, 8, 16, 32), side=7)([*maps, maps[0]], as_rois(boxes))
    assert set(region_levels(boxes.flatten(0, 1), (4, 8, 16, 32)).tolist()) == {0, 1, 2, 3}
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=2e-4)


def test_max_pools_the_cells_that_a_bin_touches() -> None:
    grid = torch.arange(24.0).reshape(1, 1, 4, 6)
    pooled = RegionPool(strides=(16,), side=2, kind="pool")([grid], torch.tensor([[0.0, 16.0, 0.0, 63.0, 47.0]]))
    assert pooled.reshape(2, 2).tolist() == [[8.0, 10.0], [20.0, 22.0]]  # columns 1 to 4 and rows 0 to 3, in halves


def test_max_pools_maps_of_a_shorter_type_at_the_same_places() -> None:
    grid = torch.arange(24.0).repeat(2).reshape(1, 2, 4, 6)
    # At 259 pixels a coordinate in bfloat16 would be off by one, which is another cell of a map of stride 1.
    wide = torch.nn.functional.pad(grid, (256, 0))
    for dtype in (torch.bfloat16, torch.float32):
        pooled = RegionPool(strides=(1,), side=1, kind="pool")([wide.to(dtype)], torch.tensor([[0.0, 259, 0, 259, 3]]))
        assert pooled.dtype == dtype and pooled.flatten().tolist() == [21.0, 21.0]


def test_samples_at_most_the_fraction_of_positives_and_fills_up() -> None:
    torch.manual_seed(0)
    positive = torch.tensor([True] * 10 + [False] * 30)
    chosen = choose_samples(positive, ~positive, count=16, positive_fraction=0.5)
    assert positive[chosen].sum() == 8 and len(set(chosen.tolist())) == 16
    few = torch.arange(40) < 2
    assert few[choose_samples(few, ~few, count=16, positive_fraction=0.5)].sum() == 2
    hard = torch.arange(40) >= 37
    chosen = choose_samples(few, ~few, count=6, positive_fraction=0.5, is_hard=hard)
    assert hard[chosen].sum() == 3 and few[chosen].sum() == 2 and len(chosen) == 6
    assert len(choose_samples(few[:2], ~few[:2], count=16, positive_fraction=0.25)) == 2


def test_regions_learn_by_overlap_and_objects_are_regions_too() -> None:
    torch.manual_seed(0)
    objects = torch.tensor([[0.0, 0, 10, 10], [50, 50, 70, 70]])
    proposals = torch.tensor([[0.0, 0, 10, 16], [0, 0, 10, 50], [90, 90, 95, 95]])  # overlaps 10/16, 1/5 and 0
    options = {"foreground_iou": 0.5, "hard_background_iou": 0.1}
    found = sample_regions(proposals, objects, torch.tensor([4, 2]), count=8, positive_fraction=0.75, **options)
    by_box = {tuple(box): (label, tuple(wanted)) for box, label, wanted in zip(
        found.boxes_xyxy.tolist(), found.labels.tolist(), found.wanted_xyxy.tolist(), strict=True
    )}  # fmt: skip
    nothing = (0.0, 0.0, 0.0, 0.0)
    assert by_box == {
        (0, 0, 10, 16): (5, (0, 0, 10, 10)),
        (0, 0, 10, 50): (0, nothing),
        (90, 90, 95, 95): (0, nothing),
        (0, 0, 10, 10): (5, (0, 0, 10, 10)),
        (50, 50, 70, 70): (3, (50, 50, 70, 70)),
    }
    hardest = sample_regions(proposals, objects, torch.tensor([4, 2]), count=1, positive_fraction=0.0, **options)
    assert hardest.boxes_xyxy.tolist() == [[0, 0, 10, 50]]
    none = sample_regions(proposals, objects[:0], torch.tensor([]).long(), count=2, positive_fraction=0.25, **options)
    assert none.labels.tolist() == [0, 0]
    nowhere = sample_regions(
        proposals[:0], objects[:0], torch.tensor([]).long(), count=2, positive_fraction=1, **options
    )
    assert nowhere.boxes_xyxy.shape == (0, 4)


def test_the_proposal_network_learns_by_overlap() -> None:
    model = build_model("fasterrcnn-pico", num_classes=3)
    # Overlaps with the object: 1, 0.5 (neither) and 0.
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [40, 40, 50, 50]])
    heads = RpnHeads(torch.tensor([[20.0, 20.0, -20.0]]), torch.zeros(1, 3, 4), anchors, (3,))
    targets = Targets(boxes_xyxy=[torch.tensor([[0.0, 0, 10, 10]])], class_ids=[torch.tensor([0])])
    losses = model.rpn.loss(heads, targets)
    assert losses["objectness"] < 1e-6 and losses["proposals"] == 0
    wrong = model.rpn.loss(heads._replace(objectness=-heads.objectness), targets)
    assert wrong["objectness"] == pytest.approx(20.0, abs=1e-3)
    # Deltas off by 1 beyond the quadratic part: 1 - beta / 2, over the two anchors that are learned from.
    moved = model.rpn.loss(heads._replace(deltas=torch.tensor([[[1.0, 0, 0, 0], [5, 5, 5, 5], [5, 5, 5, 5]]])), targets)
    assert moved["proposals"] == pytest.approx((1 - 1 / 18) / 2, abs=1e-6)


def test_proposals_from_outside_are_clipped_and_those_beyond_count_for_nothing() -> None:
    sizes = torch.tensor([[96.0, 128.0], [64.0, 64.0]])
    given = [
        torch.tensor([[-5.0, -5, 20, 30], [130, 10, 150, 20], [100, 90, 400, 300], [9, 9, 9, 30]]),
        torch.zeros(0, 4),
    ]
    proposals = pad_proposals(given, sizes)
    assert proposals.counts.tolist() == [2, 0]
    assert proposals.of_image(0).tolist() == [[0, 0, 20, 30], [100, 90, 128, 96]]
    assert proposals.boxes_xyxy.shape == (2, 2, 4) and not proposals.boxes_xyxy[1].any()
    assert pad_proposals([torch.zeros(0, 4)], sizes[:1]).boxes_xyxy.shape == (1, 1, 4)
    refused = {
        "those of 1 images": [torch.zeros(2, 4)],
        r"\(2, 3\) for image 0": [torch.zeros(2, 3)] * 2,
        "no number for image 0": [torch.full((1, 4), torch.nan), torch.zeros(0, 4)],
        "ndarray for image 1": [torch.zeros(2, 4), np.zeros((2, 4), np.float32)],
    }
    for message, bad in refused.items():
        with pytest.raises(InputError, match=message):
            pad_proposals(bad, sizes)  # type: ignore[arg-type]


def test_alternating_training_moves_one_part_at_a_time() -> None:
    torch.manual_seed(0)
    model = build_model("fasterrcnn-pico", num_classes=3)
    assert isinstance(model, FasterRcnn)
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    of_backbone = {name for name in initial if name.startswith("backbone.")}
    images = torch.randn(2, 3, 96, 128)
    targets = Targets(boxes_xyxy=[torch.tensor([[10.0, 10, 60, 60]])] * 2, class_ids=[torch.tensor([1])] * 2)
    moved_by_step = {1: {"backbone", "rpn"}, 2: {"backbone", "roi_heads"}, 3: {"rpn"}, 4: {"roi_heads"}}
    for step, expected in moved_by_step.items():
        model.begin_alternating_step(step, initial)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if step == 2:  # from the first weights again, but on the proposals of what step 1 made
            assert all(torch.equal(before[name], initial[name]) for name in of_backbone)
            proposed = model.proposers[0].state_dict()
            assert any(not torch.equal(proposed[name], initial[name]) for name in of_backbone)
        optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
        parts = model.train().training_loss(images, targets)
        assert ("objectness" in parts) == ("rpn" in expected) and ("class" in parts) == ("roi_heads" in expected)
        parts["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after = model.state_dict()
        assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == expected
    assert len(model.proposers) == 0 and not any(name.startswith("proposers") for name in model.state_dict())
    with pytest.raises(InputError, match="1, 2, 3 or 4"):
        model.begin_alternating_step(5, initial)
