"""EfficientDet against the effdet package from the same weights, and its parts against their definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from timm.layers import create_pool2d
from torchvision.ops import box_iou

from boxwright.core.decode import decode_nms
from boxwright.core.errors import CheckpointError
from boxwright.core.images import read_image
from boxwright.core.preprocess_presets import preset
from boxwright.models import DetectionModel, Targets, build_model
from boxwright.models.common.bifpn import FusionNode, LevelNorm, halve
from boxwright.models.common.checkpoint import load_weights
from boxwright.models.common.loss_options import LossOptions
from boxwright.models.efficientdet import VARIANTS, import_checkpoint
from tolerances import IMPORTED_BOXES, IMPORTED_SCORES

SIZE_HW = (256, 384)
NUM_CLASSES = 7
PAIRS = ("efficientdet-d0", "tf-efficientdet-d0")


@pytest.fixture(scope="module")
def effdet() -> Any:
    return pytest.importorskip("effdet", reason="the package effdet is not installed")


def effdet_config(effdet: Any, variant: str, num_classes: int = NUM_CLASSES) -> Any:
    config = effdet.get_efficientdet_config(variant.replace("-", "_"))
    config.num_classes, config.image_size = num_classes, SIZE_HW
    return config


def effdet_model(effdet: Any, variant: str, images: torch.Tensor) -> Any:
    """Random weights, with normalisation that has seen these images: without it they compute next to nothing."""
    torch.manual_seed(3)
    model = effdet.EfficientDet(effdet_config(effdet, variant), pretrained_backbone=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("edge_weights"):
                parameter.uniform_(-0.2, 2.0)  # a negative one counts as none
            elif "predict" not in name and parameter.ndim == 1:
                parameter.add_(torch.rand_like(parameter) - 0.5)
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 1.0
        model.train()(images)
        model.eval()
        class_maps, box_maps = model(images)
        # Scores that differ and boxes that overlap, neither saturated.
        for net, maps, deviation in ((model.class_net, class_maps, 1.0), (model.box_net, box_maps, 0.2)):
            net.predict.conv_pw.weight.mul_(deviation / maps[0].std())
    return model


def pair(effdet: Any, variant: str, images: torch.Tensor) -> tuple[Any, DetectionModel]:
    theirs = effdet_model(effdet, variant, images)
    weights = import_checkpoint(theirs.state_dict(), variant)
    assert weights.num_classes == NUM_CLASSES
    ours = build_model(variant, num_classes=NUM_CLASSES).eval()
    load_weights(ours, weights.state, variant)
    return theirs, ours


def real_images(shared_dir: Path) -> list[NDArray[np.uint8]]:
    """Three of COCO, as large as the input takes them: Pillow, with which effdet resizes, smooths; OpenCV does not."""
    paths = sorted((shared_dir / "data" / "coco-tiny" / "val2017").glob("*.jpg"))[:3]
    images = []
    for image in map(read_image, paths):
        scale = min(SIZE_HW[0] / image.shape[0], SIZE_HW[1] / image.shape[1])
        size_wh = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        images.append(np.asarray(cv2.resize(image, size_wh), dtype=np.uint8))
    return images


def effdet_input(effdet: Any, variant: str, image: NDArray[np.uint8]) -> torch.Tensor:
    """As effdet's evaluation makes it: letterbox, the colour to pad with, normalisation."""
    from effdet.data.input_config import resolve_input_config
    from effdet.data.transforms import ResizePad, resolve_fill_color
    from PIL import Image

    settings = resolve_input_config({}, effdet.get_efficientdet_config(variant))
    resize = ResizePad(SIZE_HW, fill_color=resolve_fill_color(settings["fill_color"], settings["mean"]))
    padded, annotations = resize(Image.fromarray(np.ascontiguousarray(image[..., ::-1])), {})
    assert annotations["img_scale"] == pytest.approx(1, abs=0.01)
    mean, std = (255 * torch.tensor(settings[key])[:, None, None] for key in ("mean", "std"))
    pixels: torch.Tensor = (torch.from_numpy(np.array(padded)).permute(2, 0, 1) - mean) / std
    return pixels


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("efficientdet_d0", "efficientdet"),
        ("tf_efficientdet_d0", "efficientdet"),
        ("tf_efficientdet_d0_ap", "efficientdet-advprop"),
    ],
)
def test_input_is_effdets(effdet: Any, shared_dir: Path, variant: str, name: str) -> None:
    for image in real_images(shared_dir):
        ours, _ = preset(name, SIZE_HW).apply(image)
        np.testing.assert_allclose(ours, effdet_input(effdet, variant, image).numpy(), atol=1e-5)


@pytest.mark.parametrize("variant", PAIRS)
def test_finds_what_effdet_finds_from_the_same_weights(effdet: Any, shared_dir: Path, variant: str) -> None:
    images = real_images(shared_dir)
    inputs = torch.stack([effdet_input(effdet, variant.replace("-", "_"), image) for image in images])
    theirs, ours = pair(effdet, variant, inputs)
    bench = effdet.DetBenchPredict(theirs).eval()
    spec = ours.decode_spec(SIZE_HW)
    for image, pixels in zip(images, inputs, strict=True):
        height, width = image.shape[:2]
        info = {"img_scale": torch.ones(1), "img_size": torch.tensor([[float(width), float(height)]])}
        with torch.no_grad():
            (expected,) = bench(pixels[None], info)
            heads = ours(pixels[None])
        found = decode_nms(
            heads["box_regression"].numpy(),
            heads["class_logits"].numpy(),
            attributes=spec.attributes(),
            score_threshold=0.0,
            iou_threshold=ours.nms_iou_threshold,
            priors=spec.priors(),
            # Effdet clips to the image before NMS; a deployed model knows the canvas alone.
            image_size_hw=np.array([[height, width]], dtype=np.float32),
        )
        assert found.num_detections[0, 0] == len(expected) == 100
        np.testing.assert_array_equal(found.class_ids[0], expected[:, 5].numpy() - 1)
        np.testing.assert_allclose(found.scores[0], expected[:, 4].numpy(), atol=IMPORTED_SCORES)
        np.testing.assert_allclose(found.boxes[0], expected[:, :4].numpy(), atol=IMPORTED_BOXES)
        assert len(np.unique(found.class_ids[0])) > 1 and np.ptp(found.scores[0]) > 0.05


EFFDETS = [
    name for name in VARIANTS if name != "efficientdet-pico" and name not in ("efficientdet-d6", "efficientdet-d7")
]


@pytest.mark.parametrize("variant", EFFDETS)
def test_every_variant_has_effdets_tensors_and_anchors(effdet: Any, variant: str) -> None:
    config = effdet_config(effdet, variant, num_classes=90)
    published = effdet.get_efficientdet_config(variant.replace("-", "_"))
    assert VARIANTS[variant].size_hw == tuple(published.image_size)
    with torch.device("meta"):
        theirs = effdet.EfficientDet(config, pretrained_backbone=False)
        ours = build_model(variant, num_classes=90)
    weights = import_checkpoint(theirs.state_dict(), variant)
    assert {name: tensor.shape for name, tensor in weights.state.items()} == {
        name: tensor.shape for name, tensor in ours.state_dict().items()
    }
    from effdet.anchors import Anchors

    anchors = Anchors.from_config(config).boxes[:, [1, 0, 3, 2]]
    np.testing.assert_allclose(ours.decode_spec(SIZE_HW).priors(), anchors.numpy(), atol=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_effdets(effdet: Any, smoothing: float) -> None:
    """But for deltas of exactly 0, which effdet leaves out as no targets; none of these boxes has one."""
    images = torch.randn(2, 3, *SIZE_HW)
    theirs, ours = pair(effdet, "efficientdet-d0", images)
    boxes = [torch.tensor([[31.3, 40.7, 90, 120], [201, 20, 380, 251]]), torch.tensor([[101.1, 99.4, 140, 130]])]
    class_ids = [torch.tensor([3, 0]), torch.tensor([6])]
    wanted = {"bbox": [rows[:, [1, 0, 3, 2]] for rows in boxes], "cls": [ids + 1 for ids in class_ids]}
    bench = effdet.DetBenchTrain(theirs)
    bench.train()
    theirs.eval()
    with torch.no_grad():
        expected = bench(images, {**wanted, "img_scale": torch.ones(2), "img_size": torch.tensor([SIZE_HW[::-1]] * 2)})
        heads = {**ours(images), "_size_hw": torch.tensor(SIZE_HW)}
        ours.set_loss_options(LossOptions(label_smoothing=smoothing))
        parts = ours.loss(heads, Targets(boxes_xyxy=boxes, class_ids=class_ids))
    assert parts["box"].item() == pytest.approx(50 * expected["box_loss"].item(), rel=1e-3)
    same_class_loss = parts["class"].item() == pytest.approx(expected["class_loss"].item(), rel=1e-4)
    assert same_class_loss == (smoothing == 0)
    assert parts["loss"].item() == pytest.approx(parts["class"].item() + parts["box"].item())


def test_an_overlap_in_place_of_the_huber_loss() -> None:
    """Deltas of 0 predict the anchors, so that the loss is what the anchors lack of their object."""
    model = build_model("efficientdet-d0", num_classes=2)
    anchors = torch.from_numpy(model.decode_spec((128, 256)).priors())
    box = anchors[1000] + torch.tensor([1.0, 0, 1, 0])
    heads = {
        "class_logits": torch.zeros(1, len(anchors), 2),
        "box_regression": torch.zeros(1, len(anchors), 4),
        "_size_hw": torch.tensor([128, 256]),
    }
    model.set_loss_options(LossOptions(box_loss="iou"))
    parts = model.loss(heads, Targets(boxes_xyxy=[box[None]], class_ids=[torch.tensor([1])]))
    overlaps = box_iou(anchors, box[None])[:, 0]
    positive = overlaps[overlaps >= 0.5]
    assert len(positive) > 1
    assert parts["box"].item() == pytest.approx((1 - positive).sum().item() / (len(positive) + 1), rel=1e-4)


@pytest.mark.parametrize("size_hw", [(8, 8), (7, 8), (5, 3), (1, 1), (1, 6)])
@pytest.mark.parametrize(("padding", "theirs"), [("same", "same"), ("symmetric", "")])
def test_halving_pads_as_the_frameworks_do(size_hw: tuple[int, int], padding: Any, theirs: str) -> None:
    features = torch.randn(2, 3, *size_hw) - 5  # padding with zeros would show
    pool = create_pool2d("max", kernel_size=3, stride=2, padding=theirs)
    torch.testing.assert_close(halve(features, padding), pool(features), rtol=0, atol=0)


def test_fast_fusion_rectifies_its_weights_and_divides_by_their_sum() -> None:
    node = FusionNode(4, 4, 3, fusion="fast", bias=False, bn_momentum=0.1).eval()
    assert node.weights is not None
    seen: list[torch.Tensor] = []
    node.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    node.weights.data = torch.tensor([3.0, -2.0, 1.0])
    maps = [torch.randn(1, 4, 5, 3) for _ in range(3)]
    node(maps[0], maps[1:])
    expected = torch.nn.functional.silu((3 * maps[0] + maps[2]) / 4.0001)
    torch.testing.assert_close(seen[0], expected)


def test_a_level_of_one_value_is_normalised_by_what_was_seen_before() -> None:
    norm = LevelNorm(2)
    assert norm.running_mean is not None
    norm.running_mean.fill_(1.0)
    out = norm.train()(torch.full((1, 2, 1, 1), 3.0))
    torch.testing.assert_close(out, torch.full((1, 2, 1, 1), 2.0))
    assert norm.num_batches_tracked == 0


def test_another_checkpoint_is_refused() -> None:
    with pytest.raises(CheckpointError, match="conv_pw"):
        import_checkpoint({"head.weight": torch.zeros(3)}, "efficientdet-d0")
