"""FCOS: every point of a feature pyramid predicts the distances to the sides of the object that it lies in.

Source: Tian et al., FCOS: A Simple and Strong Anchor-Free Object Detector, TPAMI 2020; its improvements (centre
sampling, centerness beside the boxes, GIoU, strides as units) as torchvision has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from boxwright.core.decode_spec import Distances, GridLevel, NmsSpec
from boxwright.core.errors import CheckpointError
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import preset
from boxwright.models.common import small_backbone
from boxwright.models.common.boxes import OverlapKind
from boxwright.models.common.center_sampling import assign_by_center, centerness, side_distances
from boxwright.models.common.checkpoint import StateDict
from boxwright.models.common.class_targets import sigmoid_class_targets
from boxwright.models.common.dense_head import TOWER_DEPTH, conv_tower, flatten_levels, prediction_layer
from boxwright.models.common.detector import DetectionModel
from boxwright.models.common.feature_pyramid import (
    PYRAMID_CHANNELS,
    PYRAMID_STRIDES,
    PyramidBackbone,
    pyramid_grids_hw,
    pyramid_steps_hw,
)
from boxwright.models.common.iou_losses import overlap_loss
from boxwright.models.common.registry import ImportedWeights
from boxwright.models.common.targets import Targets

IMPORTS = "torchvision's fcos_resnet50_fpn (fcos-r50)"
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
BOX_LOSS: OverlapKind = "giou"
TOP_K_OF_LEVEL = 1000
MAX_DETECTIONS = 100


@dataclass(frozen=True, kw_only=True)
class FcosConfig:
    """A variant.

    Attributes:
        backbone: name in timm.
        channels: of the pyramid and the head.
        head_depth: convolutions of a head before the last.
        learning_rate: see `DetectionModel.suggested_learning_rate`.
        size_hw: the usual input size.
    """

    backbone: str
    channels: int = PYRAMID_CHANNELS
    head_depth: int = TOWER_DEPTH
    learning_rate: float | None = None
    size_hw: tuple[int, int] = (512, 512)


VARIANTS: dict[str, FcosConfig] = {
    # Not the authors': the smallest useful one, for tests and first steps on a CPU.
    "fcos-pico": FcosConfig(
        backbone=small_backbone.NAME, channels=48, head_depth=2, learning_rate=0.003, size_hw=(256, 256)
    ),
    "fcos-r18": FcosConfig(backbone="resnet18"),
    "fcos-r50": FcosConfig(backbone="resnet50", size_hw=(800, 800)),
}


class _ClassHead(nn.Module):
    def __init__(self, channels: int, num_classes: int, depth: int) -> None:
        super().__init__()
        self.conv = conv_tower(channels, normalised=True, nested=False, depth=depth)
        self.cls_logits = prediction_layer(channels, num_classes, is_class_layer=True)

    def forward(self, level: Tensor) -> Tensor:
        logits: Tensor = self.cls_logits(self.conv(level))
        return logits


class _BoxHead(nn.Module):
    """Distances in strides, and the centerness beside them."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.conv = conv_tower(channels, normalised=True, nested=False, depth=depth)
        self.bbox_reg = prediction_layer(channels, 4)
        self.bbox_ctrness = prediction_layer(channels, 1)
        # At 0 half of the rectified distances would be silent, and learn nothing.
        assert self.bbox_reg.bias is not None
        nn.init.ones_(self.bbox_reg.bias)

    def forward(self, level: Tensor) -> tuple[Tensor, Tensor]:
        features = self.conv(level)
        return functional.relu(self.bbox_reg(features)), self.bbox_ctrness(features)


class Fcos(DetectionModel):
    """The detector; its keys are those of torchvision's."""

    family: ClassVar[str] = "fcos"
    largest_stride: ClassVar[int] = 128
    nms_iou_threshold: ClassVar[float] = 0.6
    suggested_augmentation: ClassVar[Mapping[str, float]] = {"mosaic": 0.0, "mixup": 0.0}
    supported_loss_options: ClassVar[frozenset[str]] = frozenset({"box_loss", "label_smoothing"})

    def __init__(self, *, variant: str, num_classes: int) -> None:
        super().__init__(variant=variant, num_classes=num_classes)
        config = VARIANTS[variant]
        self.suggested_learning_rate = config.learning_rate
        self.backbone = PyramidBackbone(config.backbone, p6_from="p5", channels=config.channels)
        self.head = nn.ModuleDict(
            {
                "classification_head": _ClassHead(config.channels, num_classes, config.head_depth),
                "regression_head": _BoxHead(config.channels, config.head_depth),
            }
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels = self.backbone(images)
        class_maps = [self.head["classification_head"](level) for level in levels]
        box_maps, centerness_maps = zip(*(self.head["regression_head"](level) for level in levels), strict=True)
        heads = {
            "box_regression": flatten_levels(list(box_maps), 4),  # (B, N, 4)
            "class_logits": flatten_levels(class_maps, self.num_classes),  # (B, N, C)
            "objectness": flatten_levels(list(centerness_maps), 1).squeeze(2),  # (B, N), the centerness
        }
        if self.training:
            heads["_size_hw"] = torch.tensor(images.shape[-2:])
        return heads

    def loss(self, heads: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        height, width = heads["_size_hw"].tolist()
        spec = self.decode_spec((height, width))
        class_logits, distances = heads["class_logits"].float(), heads["box_regression"].float()
        priors = torch.from_numpy(spec.priors()).to(class_logits.device)
        points, strides = priors[:, :2], priors[:, 2]
        level_sizes = [level.size for level in spec.levels]
        wanted = torch.zeros_like(class_logits)
        found, boxes_of_found = [], []
        for row, (boxes, class_ids) in enumerate(zip(targets.boxes_xyxy, targets.class_ids, strict=True)):
            boxes, class_ids = boxes.to(points.device), class_ids.to(points.device)
            assigned = assign_by_center(points, strides, level_sizes, boxes)
            positive = (assigned >= 0).nonzero().squeeze(1)
            objects = assigned[positive]
            wanted[row, positive] = sigmoid_class_targets(
                class_ids[objects], self.num_classes, smoothing=self.loss_options.label_smoothing
            )
            found.append(torch.stack([torch.full_like(positive, row), positive]))
            boxes_of_found.append(boxes[objects])
        image, point = torch.cat(found, dim=1)  # (P,) each
        wanted_boxes = torch.cat(boxes_of_found)  # (P, 4)
        sides = distances[image, point] * strides[point, None]
        predicted = torch.cat([points[point] - sides[:, :2], points[point] + sides[:, 2:]], dim=1)
        wanted_centerness = centerness(side_distances(points[point], wanted_boxes))
        box_loss = overlap_loss(predicted, wanted_boxes, kind=self.loss_options.box_loss or BOX_LOSS)
        num_positive = max(len(point), 1)
        parts = {
            "class": sigmoid_focal_loss(class_logits, wanted, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA, reduction="sum"),
            "box": box_loss.sum(),
            "centerness": functional.binary_cross_entropy_with_logits(
                heads["objectness"].float()[image, point], wanted_centerness, reduction="sum"
            ),
        }
        parts = {name: part / num_positive for name, part in parts.items()}
        return {**parts, "loss": torch.stack(list(parts.values())).sum()}

    def decode_spec(self, size_hw: tuple[int, int]) -> Distances:
        self.check_size(size_hw)
        levels = zip(PYRAMID_STRIDES, pyramid_grids_hw(size_hw), pyramid_steps_hw(size_hw), strict=True)
        return Distances(
            num_classes=self.num_classes,
            # The points lie in the corners of the cells, as far apart as torchvision has them.
            levels=tuple(
                GridLevel(grid_hw=grid_hw, stride=float(stride), step_hw=(float(step_hw[0]), float(step_hw[1])))
                for stride, grid_hw, step_hw in levels
            ),
            score_combination="sqrt",
            multi_label=True,
            clip_to_image=True,
            max_detections=MAX_DETECTIONS,
            nms=NmsSpec(pre_nms_top_k=TOP_K_OF_LEVEL, top_k_scope="level"),
        )

    def default_preprocess(self, size_hw: tuple[int, int]) -> Preprocess:
        return preset("imagenet-letterbox", size_hw)


def build(variant: str, num_classes: int) -> Fcos:
    """An FCOS of that variant with random weights."""
    return Fcos(variant=variant, num_classes=num_classes)


def import_checkpoint(state: StateDict, variant: str) -> ImportedWeights:
    """The weights of torchvision's checkpoint, whose names are ours.

    Torchvision counts the background as a class that is never found, so its 91 names are needed: `--labels coco91`.

    Raises:
        CheckpointError: where it is not one of FCOS.
    """
    class_layer = state.get("head.classification_head.cls_logits.weight")
    if class_layer is None or "head.regression_head.bbox_ctrness.weight" not in state:
        raise CheckpointError(
            "checkpoint",
            expected=f"the tensors of {variant}, head.classification_head.cls_logits.weight and "
            "head.regression_head.bbox_ctrness.weight among them",
            got="others: " + ", ".join(list(state)[:10]),
            fix="pass the --model that it was trained as",
        )
    return ImportedWeights(state=dict(state), num_classes=class_layer.shape[0])
