"""What R-CNN's line and DETR learn from and how much each part counts, by the papers' numbers and worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from boxwright.models import Targets, build_model
from boxwright.models.common.crop_rcnn import CropConfig, CropRcnn
from boxwright.models.common.region_detector import RcnnConfig
from boxwright.models.common.rpn import RegionProposalNetwork, RpnHeads
from boxwright.models.detr import Detr
from boxwright.models.rcnn import VARIANTS, FasterRcnn

FEATURES = 4


def region_config(variant: str) -> RcnnConfig:
    config = VARIANTS[variant]
    assert isinstance(config, RcnnConfig)
    return config


@pytest.mark.parametrize("variant", ["fastrcnn-r50", "fastrcnn-vgg16", "fasterrcnn-r50", "fasterrcnn-vgg16"])
def test_box_heads_learn_by_the_papers_overlaps(variant: str) -> None:
    (stage,) = region_config(variant).box_stages
    assert (stage.foreground_iou, stage.hard_background_iou, stage.positive_fraction) == (0.5, 0.1, 0.25)


def test_the_stages_of_a_cascade_rise() -> None:
    for variant in ("cascadercnn-r50", "cascadercnn-pico"):
        stages = region_config(variant).box_stages
        assert [stage.foreground_iou for stage in stages] == [0.5, 0.6, 0.7]
        weights = [stage.box_weights for stage in stages]
        assert weights == [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]


@pytest.mark.parametrize("variant", ["fasterrcnn-r50", "fasterrcnn-vgg16", "cascadercnn-r50"])
def test_anchors_learn_by_the_papers_overlaps_and_numbers(variant: str) -> None:
    config = region_config(variant).rpn
    assert config is not None
    network = RegionProposalNetwork(4, config)
    # Cut off from the object's lower end: the overlaps are heights over 100. The gradient says who learns what.
    assert learned(network, [100, 71, 69, 31, 29]) == [1, 1, 0, 0, -1]
    plenty = learned(network, [80] * 300 + [20] * 300)
    assert (plenty.count(1), plenty.count(-1)) == (128, 128)
    few = learned(network, [80] * 20 + [20] * 600)
    assert (few.count(1), few.count(-1)) == (20, 236)


def learned(network: RegionProposalNetwork, heights: list[int]) -> list[float]:
    """For each anchor of that height on an object of 100 x 100: it learns an object (1), none (-1) or nothing (0)."""
    logits = torch.zeros(1, len(heights), requires_grad=True)
    anchors = torch.tensor([[0.0, 0, 100, height] for height in heights])
    targets = Targets(boxes_xyxy=[torch.tensor([[0.0, 0, 100, 100]])], class_ids=[torch.tensor([0])])
    heads = RpnHeads(logits, torch.zeros(1, len(heights), 4), anchors, (len(heights),))
    network.loss(heads, targets)["objectness"].backward()
    assert logits.grad is not None
    return (-logits.grad[0]).sign().tolist()


def test_each_stage_of_a_cascade_learns_from_what_the_one_before_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("cascadercnn-pico", num_classes=2)
    assert isinstance(model, FasterRcnn)
    given = []
    for stage in model.box_stages:
        torch.nn.init.zeros_(stage.box_predictor.bbox_pred.weight)
        # To the right by a tenth, a twentieth and a thirtieth of the width.
        stage.box_predictor.bbox_pred.bias.data = torch.tensor([1.0, 0, 0, 0])
        sample = stage.sample
        monkeypatch.setattr(
            stage, "sample", lambda regions, targets, sample=sample: given.append(regions) or sample(regions, targets)
        )
    maps = [torch.zeros(1, 64, 64 // stride, 64 // stride) for stride in (8, 16, 32)]
    targets = Targets(boxes_xyxy=[torch.tensor([[20.0, 20, 60, 60]])], class_ids=[torch.tensor([1])])
    model.box_losses(maps, [torch.tensor([[0.0, 10, 40, 50]])], torch.tensor([[64.0, 62.0]]), targets)
    met = [{tuple(round(value, 3) for value in box) for box in regions[0].tolist()} for regions in given]
    assert met == [
        {(0, 10, 40, 50)},
        {(4, 10, 44, 50), (24, 20, 62, 60)},  # the second is the object, cut off at the image's edge
        {(6, 10, 46, 50), (25.9, 20, 62, 60), (22, 20, 62, 60)},
    ]


def test_rcnn_warps_a_region_to_the_middle_of_227_pixels_with_16_of_context() -> None:
    config = VARIANTS["rcnn-r18"]
    assert isinstance(config, CropConfig)
    model = CropRcnn(config, variant="rcnn-r18", num_classes=2)
    seen: list[torch.Tensor] = []
    model.backbone.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    image = torch.rand(1, 3, 330, 330, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # 195 pixels, so that nothing is resized
        model.eval().features(image, torch.tensor([[0.0, 100, 90, 295, 285]]))
    torch.testing.assert_close(seen[0], image[:, :, 74:301, 84:311], atol=1e-4, rtol=0)


def test_rcnn_learns_from_a_quarter_of_objects_with_half_of_their_area(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("rcnn-pico", num_classes=2)
    assert isinstance(model, CropRcnn)
    target = torch.tensor([[10.0, 10, 110, 110]])
    # They have 0.55 and 0.45 of the object, and nothing.
    good, near, none = [10.0, 10, 110, 65], [10.0, 10, 110, 55], [120.0, 120, 220, 220]
    samples = model.config.samples
    boxes = torch.tensor([[*[good] * samples, *[near] * samples, *[none] * samples]])
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(model, "features", lambda images, rois: seen.append(rois) or torch.zeros(len(rois), FEATURES))
    monkeypatch.setattr(model, "classifier", torch.nn.Linear(FEATURES, 3))
    heads = {"_images": torch.zeros(1, 3, 256, 256), "_proposals_xyxy": boxes, "_counts": torch.tensor([3 * samples])}
    model.loss(heads, Targets(boxes_xyxy=[target], class_ids=[torch.tensor([1])]))
    taken = [box.tolist() for box in seen[0][:, 1:]]
    num_objects = taken.count(good) + taken.count(target[0].tolist())
    assert (len(taken), num_objects) == (samples, samples // 4)
    assert taken.count(near) > 0 and taken.count(none) > 0


def test_detrs_losses_by_hand() -> None:
    model = build_model("detr-pico", num_classes=1)
    assert isinstance(model, Detr)
    # The first query has half of the object, in its middle; the second is elsewhere and says with 1/4 that it has none.
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]])
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0]]])
    heads = {
        "box_regression": boxes,
        "class_logits": logits,
        "_early_boxes": torch.stack([boxes] * 2),
        "_early_logits": torch.stack([logits] * 2),
        "_size_hw": torch.tensor([100, 100]),
    }
    targets = Targets(boxes_xyxy=[torch.tensor([[30.0, 40, 70, 60]])], class_ids=[torch.tensor([0])])
    class_loss = (math.log(2) + 0.1 * math.log(4)) / 1.1
    expected = {"class": class_loss, "l1": 5 * 0.2, "giou": 2 * 0.5}
    one_layer = sum(expected.values())
    found = {name: value.item() for name, value in model.loss(heads, targets).items()}
    assert found == pytest.approx({**expected, "auxiliary": 2 * one_layer, "loss": 3 * one_layer}, abs=1e-5)
