"""RetinaNet: anchors on a feature pyramid, separate heads for classes and boxes, focal loss.

Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017; the second version's GIoU loss and group
normalisation after torchvision's weights of that name, its assignment after Zhang et al., ATSS, CVPR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from boxwright.core.decode_spec import AnchorDeltas, AnchorLevel, NmsSpec
from boxwright.core.errors import CheckpointError
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import preset
from boxwright.models.common import small_backbone
from boxwright.models.common.anchor_assignment import IGNORED, assign_atss, assign_by_iou
from boxwright.models.common.anchor_deltas import DELTA_CLIP, decode_deltas, encode_deltas
from boxwright.models.common.boxes import OverlapKind
from boxwright.models.common.checkpoint import StateDict
from boxwright.models.common.class_targets import sigmoid_class_targets
from boxwright.models.common.dense_head import TOWER_DEPTH, conv_tower, flatten_levels, prediction_layer
from boxwright.models.common.feature_pyramid import (
    PYRAMID_CHANNELS,
    PyramidBackbone,
    pyramid_grids_hw,
    pyramid_steps_hw,
)
from boxwright.models.common.fitted_anchors import FittedAnchorModel
from boxwright.models.common.iou_losses import overlap_loss
from boxwright.models.common.registry import ImportedWeights
from boxwright.models.common.targets import Targets

IMPORTS = "torchvision's retinanet_resnet50_fpn (retinanet-r50) and retinanet_resnet50_fpn_v2 (retinanet-r50-v2)"
ANCHOR_SIDES = (32, 64, 128, 256, 512)
OCTAVE_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height over width
ANCHORS_PER_CELL = len(OCTAVE_SCALES) * len(ASPECT_RATIOS)
FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.4
ATSS_CANDIDATES_PER_LEVEL = 9
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
SMOOTH_L1_BETA = 1.0 / 9


@dataclass(frozen=True, kw_only=True)
class RetinaNetConfig:
    """A variant.

    Attributes:
        backbone: name in timm.
        p6_from: what P6 is made from.
        normalised_head: whether the head has group normalisation.
        assigner: by fixed overlaps or ATSS.
        box_loss: on the deltas (smooth L1), or by an overlap of the boxes.
        anchor_sides: of the smallest anchor of each level, in pixels.
        channels: of the pyramid and the head.
        head_depth: convolutions of a head before the last.
        learning_rate: see `DetectionModel.suggested_learning_rate`.
        size_hw: the usual input size.
    """

    backbone: str
    anchor_sides: tuple[int, ...] = ANCHOR_SIDES
    channels: int = PYRAMID_CHANNELS
    head_depth: int = TOWER_DEPTH
    learning_rate: float | None = None
    p6_from: Literal["p5", "c5"] = "p5"
    normalised_head: bool = False
    assigner: Literal["iou", "atss"] = "iou"
    box_loss: Literal["smooth_l1"] | OverlapKind = "smooth_l1"
    size_hw: tuple[int, int] = (512, 512)


VARIANTS: dict[str, RetinaNetConfig] = {
    # Not the authors': the smallest useful one, for tests and first steps on a CPU.
    "retinanet-pico": RetinaNetConfig(
        backbone=small_backbone.NAME,
        p6_from="c5",
        normalised_head=True,
        box_loss="giou",
        anchor_sides=tuple(side // 2 for side in ANCHOR_SIDES),
        channels=48,
        head_depth=2,
        learning_rate=0.003,
        size_hw=(256, 256),
    ),
    "retinanet-r18": RetinaNetConfig(backbone="resnet18"),
    "retinanet-r50": RetinaNetConfig(backbone="resnet50", size_hw=(800, 800)),
    "retinanet-r18-v2": RetinaNetConfig(
        backbone="resnet18", p6_from="c5", normalised_head=True, assigner="atss", box_loss="giou"
    ),
    "retinanet-r50-v2": RetinaNetConfig(
        backbone="resnet50",
        p6_from="c5",
        normalised_head=True,
        assigner="atss",
        box_loss="giou",
        size_hw=(800, 800),
    ),
}

ALIASES = {"retinanet-v2": "retinanet-r50-v2"}


class _ClassHead(nn.Module):
    def __init__(self, channels: int, num_classes: int, depth: int, normalised: bool) -> None:
        super().__init__()
        self.conv = conv_tower(channels, normalised=normalised, nested=True, depth=depth)
        self.cls_logits = prediction_layer(channels, ANCHORS_PER_CELL * num_classes, is_class_layer=True)

    def forward(self, level: Tensor) -> Tensor:
        logits: Tensor = self.cls_logits(self.conv(level))
        return logits


class _BoxHead(nn.Module):
    def __init__(self, channels: int, depth: int, normalised: bool) -> None:
        super().__init__()
        self.conv = conv_tower(channels, normalised=normalised, nested=True, depth=depth)
        self.bbox_reg = prediction_layer(channels, ANCHORS_PER_CELL * 4)

    def forward(self, level: Tensor) -> Tensor:
        deltas: Tensor = self.bbox_reg(self.conv(level))
        return deltas


class RetinaNet(FittedAnchorModel):
    """The detector; its keys are those of torchvision's."""

    family: ClassVar[str] = "retinanet"
    largest_stride: ClassVar[int] = 128
    nms_iou_threshold: ClassVar[float] = 0.5
    suggested_augmentation: ClassVar[Mapping[str, float]] = {"mosaic": 0.0, "mixup": 0.0}
    supported_loss_options: ClassVar[frozenset[str]] = frozenset({"box_loss", "label_smoothing"})

    def __init__(self, *, variant: str, num_classes: int) -> None:
        super().__init__(variant=variant, num_classes=num_classes)
        self.config = VARIANTS[variant]
        self.suggested_learning_rate = self.config.learning_rate
        self.backbone = PyramidBackbone(
            self.config.backbone, p6_from=self.config.p6_from, channels=self.config.channels
        )
        channels, depth, normalised = self.config.channels, self.config.head_depth, self.config.normalised_head
        self.head = nn.ModuleDict(
            {
                "classification_head": _ClassHead(channels, num_classes, depth, normalised),
                "regression_head": _BoxHead(channels, depth, normalised),
            }
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels = self.backbone(images)
        class_maps = [self.head["classification_head"](level) for level in levels]
        box_maps = [self.head["regression_head"](level) for level in levels]
        heads = {
            "box_regression": flatten_levels(box_maps, 4),  # (B, N, 4)
            "class_logits": flatten_levels(class_maps, self.num_classes),  # (B, N, C)
        }
        if self.training:
            heads["_size_hw"] = torch.tensor(images.shape[-2:])
        return heads

    def loss(self, heads: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        height, width = heads["_size_hw"].tolist()
        spec = self.decode_spec((height, width))
        device = heads["class_logits"].device
        anchors = torch.from_numpy(spec.priors()).to(device)
        class_losses, box_losses = [], []
        for logits, deltas, boxes, class_ids in zip(
            heads["class_logits"], heads["box_regression"], targets.boxes_xyxy, targets.class_ids, strict=True
        ):
            boxes, class_ids = boxes.to(device), class_ids.to(device)
            assigned = self._assign(anchors, tuple(level.size for level in spec.levels), boxes)
            positive = assigned >= 0
            num_positive = max(int(positive.sum()), 1)
            wanted = torch.zeros_like(logits)
            wanted[positive] = sigmoid_class_targets(
                class_ids[assigned[positive]], self.num_classes, smoothing=self.loss_options.label_smoothing
            ).to(logits.dtype)
            learned = assigned != IGNORED
            focal = sigmoid_focal_loss(
                logits[learned], wanted[learned], alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA, reduction="sum"
            )
            class_losses.append(focal / num_positive)
            box_losses.append(
                self._box_loss(deltas[positive], anchors[positive], boxes[assigned[positive]]) / num_positive
            )
        parts = {"class": torch.stack(class_losses).mean(), "box": torch.stack(box_losses).mean()}
        return {**parts, "loss": parts["class"] + parts["box"]}

    def _assign(self, anchors: Tensor, level_sizes: tuple[int, ...], boxes: Tensor) -> Tensor:
        if self.config.assigner == "atss":
            # The nearest places with all their anchors, as in the authors' code: 9 anchors are a single place.
            return assign_atss(
                anchors, level_sizes, boxes, candidates_per_level=ATSS_CANDIDATES_PER_LEVEL * ANCHORS_PER_CELL
            )
        return assign_by_iou(anchors, boxes, foreground_iou=FOREGROUND_IOU, background_iou=BACKGROUND_IOU)

    def _box_loss(self, deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        kind = self.loss_options.box_loss or self.config.box_loss
        if kind != "smooth_l1":
            return overlap_loss(decode_deltas(deltas, anchors), boxes, kind=kind).sum()
        return functional.smooth_l1_loss(deltas, encode_deltas(boxes, anchors), beta=SMOOTH_L1_BETA, reduction="sum")

    @property
    def anchors_per_level(self) -> tuple[int, ...]:
        return (ANCHORS_PER_CELL,) * len(self.config.anchor_sides)

    def decode_spec(self, size_hw: tuple[int, int]) -> AnchorDeltas:
        self.check_size(size_hw)
        return AnchorDeltas(
            num_classes=self.num_classes,
            levels=self.with_fitted_anchors(anchor_levels(size_hw, self.config.anchor_sides)),
            delta_clip=DELTA_CLIP,
            multi_label=True,
            clip_to_image=True,
            nms=NmsSpec(pre_nms_top_k=1000, top_k_scope="level"),
        )

    def default_preprocess(self, size_hw: tuple[int, int]) -> Preprocess:
        return preset("imagenet-letterbox", size_hw)


def anchor_levels(size_hw: tuple[int, int], sides: Sequence[int] = ANCHOR_SIDES) -> tuple[AnchorLevel, ...]:
    """The nine anchors of every cell of P3 to P7, their corners rounded to whole pixels as torchvision does."""
    levels = []
    for side, grid_hw, step_hw in zip(sides, pyramid_grids_hw(size_hw), pyramid_steps_hw(size_hw), strict=True):
        cells = []
        for ratio in ASPECT_RATIOS:
            for scale in OCTAVE_SCALES:
                area_side, root = int(side * scale), math.sqrt(ratio)
                half_width, half_height = round(area_side / root / 2), round(area_side * root / 2)
                cells.append((float(-half_width), float(-half_height), float(half_width), float(half_height)))
        stride_hw = float(step_hw[0]), float(step_hw[1])
        levels.append(AnchorLevel(grid_hw=grid_hw, stride_hw=stride_hw, cell_boxes_xyxy=tuple(cells)))
    return tuple(levels)


def build(variant: str, num_classes: int) -> RetinaNet:
    """A RetinaNet of that variant with random weights."""
    return RetinaNet(variant=variant, num_classes=num_classes)


def import_checkpoint(state: StateDict, variant: str) -> ImportedWeights:
    """The weights of torchvision's checkpoint, whose names are ours.

    Torchvision counts the background as a class that is never found, so its 91 names are needed: `--labels coco91`.

    Raises:
        CheckpointError: where it is not one of RetinaNet.
    """
    class_layer = state.get("head.classification_head.cls_logits.weight")
    if class_layer is None or class_layer.shape[0] % ANCHORS_PER_CELL:
        raise CheckpointError(
            "checkpoint",
            expected=f"the tensors of {variant}, head.classification_head.cls_logits.weight among them",
            got="others: " + ", ".join(list(state)[:10]),
            fix="pass the --model that it was trained as",
        )
    return ImportedWeights(state=dict(state), num_classes=class_layer.shape[0] // ANCHORS_PER_CELL)
