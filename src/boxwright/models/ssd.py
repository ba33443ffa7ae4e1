"""SSD and SSDLite: default boxes on maps of ever smaller size, a softmax with the background, hard negatives.

Sources: Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016; Sandler et al., MobileNetV2, CVPR 2018, sec. 6.2,
for SSDLite.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.core.decode_spec import AnchorDeltas, AnchorLevel, NmsSpec
from boxwright.core.errors import CheckpointError, InputError
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import preset
from boxwright.models.common import small_backbone
from boxwright.models.common.anchor_assignment import assign_one_each
from boxwright.models.common.anchor_deltas import DELTA_CLIP, decode_deltas, encode_deltas
from boxwright.models.common.checkpoint import StateDict
from boxwright.models.common.default_boxes import default_box_levels, linear_scales, num_boxes_per_cell
from boxwright.models.common.dense_head import flatten_levels
from boxwright.models.common.fitted_anchors import FittedAnchorModel
from boxwright.models.common.iou_losses import overlap_loss
from boxwright.models.common.multibox_loss import multibox_class_loss
from boxwright.models.common.registry import ImportedWeights
from boxwright.models.common.ssd_backbones import (
    SSD300_EXTRAS,
    SSD512_EXTRAS,
    LevelBackbone,
    MobileNetBackbone,
    TimmBackbone,
    VggBackbone,
    conv_norm_relu6,
    init_normal,
    init_xavier,
)
from boxwright.models.common.targets import Targets

IMPORTS = "torchvision's ssd300_vgg16 (ssd300-vgg16) and ssdlite320_mobilenet_v3_large (ssdlite320-mobilenetv3)"
BACKGROUND_CLASS = 0
FOREGROUND_IOU = 0.5
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
FINEST_STEP = 8


@dataclass(frozen=True, kw_only=True)
class SsdConfig:
    """A variant.

    Attributes:
        backbone: makes it.
        scales: of the default boxes of each level, as a part of the image's side, and one more.
        aspect_ratios: besides 1, of each level.
        num_doubling: levels whose cells are 8, 16, 32... pixels apart; the others spread evenly over the image.
        preprocess: name of the preset.
        top_k: candidates of a class before NMS.
        max_detections: of an image.
        nms_iou_threshold: that the authors use.
        depthwise_head: whether the head's convolutions are split, as SSDLite's are.
        size_divisor: the sides of the input are multiples of this many pixels.
        learning_rate: see `DetectionModel.suggested_learning_rate`.
        size_hw: the usual input size.
    """

    backbone: Callable[[], LevelBackbone]
    scales: tuple[float, ...]
    aspect_ratios: tuple[tuple[float, ...], ...]
    num_doubling: int
    preprocess: Literal["ssd300", "ssdlite", "imagenet-stretch"]
    top_k: int
    max_detections: int
    nms_iou_threshold: float
    depthwise_head: bool = False
    size_divisor: int = 1
    learning_rate: float | None = None
    size_hw: tuple[int, int]


def _pico_backbone() -> LevelBackbone:
    return TimmBackbone(small_backbone.NAME, {}, extra_widths=(96, 96))


VARIANTS: dict[str, SsdConfig] = {
    # Not the authors': the smallest useful one, for tests and first steps on a CPU.
    "ssd-pico": SsdConfig(
        backbone=_pico_backbone,
        scales=linear_scales(0.1, 0.9, 5),
        aspect_ratios=((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,)),
        num_doubling=3,
        preprocess="imagenet-stretch",
        top_k=400,
        max_detections=200,
        nms_iou_threshold=0.45,
        size_divisor=32,
        learning_rate=0.003,
        size_hw=(160, 160),
    ),
    "ssdlite320-mobilenetv3": SsdConfig(
        backbone=MobileNetBackbone,
        scales=linear_scales(0.2, 0.95, 6),
        aspect_ratios=((2.0, 3.0),) * 6,
        num_doubling=0,
        preprocess="ssdlite",
        top_k=300,
        max_detections=300,
        nms_iou_threshold=0.55,
        depthwise_head=True,
        size_hw=(320, 320),
    ),
    # The scales are those of sec. 3.4, for COCO's smaller objects.
    "ssd300-vgg16": SsdConfig(
        backbone=lambda: VggBackbone(SSD300_EXTRAS),
        scales=(0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
        aspect_ratios=((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,)),
        num_doubling=4,
        preprocess="ssd300",
        top_k=400,
        max_detections=200,
        nms_iou_threshold=0.45,
        size_hw=(300, 300),
    ),
    "ssd512-vgg16": SsdConfig(
        backbone=lambda: VggBackbone(SSD512_EXTRAS),
        scales=(0.04, 0.1, 0.26, 0.42, 0.58, 0.74, 0.9, 1.06),
        aspect_ratios=((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,)),
        num_doubling=6,
        preprocess="ssd300",
        top_k=400,
        max_detections=200,
        nms_iou_threshold=0.45,
        size_hw=(512, 512),
    ),
}


class _LevelHead(nn.Module):
    """One convolution for each level, which does not share it with the others."""

    def __init__(self, widths: tuple[int, ...], outputs: list[int], width: int, *, depthwise: bool) -> None:
        super().__init__()
        self.width = width
        self.module_list = nn.ModuleList()
        for channels, num_outputs in zip(widths, outputs, strict=True):
            if depthwise:
                spatial = conv_norm_relu6(channels, channels, 3, 1, channels)
                self.module_list.append(nn.Sequential(spatial, nn.Conv2d(channels, num_outputs, 1)))
            else:
                self.module_list.append(nn.Conv2d(channels, num_outputs, 3, padding=1))
        (init_normal if depthwise else init_xavier)(self)

    def forward(self, levels: list[Tensor]) -> Tensor:
        maps = [layer(level) for layer, level in zip(self.module_list, levels, strict=True)]
        return flatten_levels(maps, self.width)  # (B, N, width)


class Ssd(FittedAnchorModel):
    """The detector; the keys of its heads are those of torchvision's."""

    family: ClassVar[str] = "ssd"
    suggested_augmentation: ClassVar[Mapping[str, float]] = {"ssd_crop": 1.0, "mosaic": 0.0, "mixup": 0.0}
    supported_loss_options: ClassVar[frozenset[str]] = frozenset({"box_loss", "label_smoothing"})

    def __init__(self, *, variant: str, num_classes: int) -> None:
        super().__init__(variant=variant, num_classes=num_classes)
        self.config = VARIANTS[variant]
        self.suggested_learning_rate = self.config.learning_rate
        self.backbone = self.config.backbone()
        per_cell = [num_boxes_per_cell(ratios) for ratios in self.config.aspect_ratios]
        num_logits = num_classes + 1
        widths, depthwise = self.backbone.widths, self.config.depthwise_head
        self.head = nn.ModuleDict(
            {
                "classification_head": _LevelHead(
                    widths, [count * num_logits for count in per_cell], num_logits, depthwise=depthwise
                ),
                "regression_head": _LevelHead(widths, [count * 4 for count in per_cell], 4, depthwise=depthwise),
            }
        )

    @property
    def size_divisor(self) -> int:  # type: ignore[override]
        """The sides of the network's input are multiples of this many pixels."""
        return self.config.size_divisor

    @property
    def nms_iou_threshold(self) -> float:  # type: ignore[override]
        """Overlap that its NMS suppresses at unless the user says otherwise."""
        return self.config.nms_iou_threshold

    @property
    def backbone_prefixes(self) -> tuple[str, ...]:
        return ("backbone.features",) if hasattr(self.backbone, "features") else ("backbone.body",)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if self.training:
            self._check_batch(images)
        levels = self.backbone(images)
        heads = {
            "box_regression": self.head["regression_head"](levels),  # (B, N, 4)
            "class_logits": self.head["classification_head"](levels),  # (B, N, C + 1), the background first
        }
        if self.training:
            heads["_size_hw"] = torch.tensor(images.shape[-2:])
        return heads

    def _check_batch(self, images: Tensor) -> None:
        """Batch normalisation takes no variance of a last map that is a single cell, unless of several images."""
        num_values = len(images) * math.prod(self.backbone.sides(side)[-1] for side in images.shape[-2:])
        if num_values == 1 and any(isinstance(layer, nn.BatchNorm2d) for layer in self.modules()):
            raise InputError(
                f"{self.variant} training batch",
                expected="at least 2 images, since batch normalisation sees a map of a single cell",
                got="1",
                fix="pass a larger --batch",
            )

    def loss(self, heads: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        height, width = heads["_size_hw"].tolist()
        class_logits, deltas = heads["class_logits"].float(), heads["box_regression"].float()
        anchors = torch.from_numpy(self.decode_spec((height, width)).priors()).to(deltas.device)
        class_targets = torch.zeros(deltas.shape[:2], dtype=torch.int64, device=deltas.device)  # (B, N), background
        box_losses = [deltas.sum() * 0]
        for row, (boxes, class_ids) in enumerate(zip(targets.boxes_xyxy, targets.class_ids, strict=True)):
            boxes, class_ids = boxes.to(deltas.device), class_ids.to(deltas.device)
            assigned = assign_one_each(anchors, boxes, foreground_iou=FOREGROUND_IOU)
            positive = assigned >= 0
            class_targets[row, positive] = class_ids[assigned[positive]] + 1
            box_losses.append(self._box_loss(deltas[row, positive], anchors[positive], boxes[assigned[positive]]))
        num_positive = (class_targets > 0).sum().clamp(min=1)
        smoothing = self.loss_options.label_smoothing
        parts = {
            "class": multibox_class_loss(class_logits, class_targets, label_smoothing=smoothing) / num_positive,
            "box": torch.stack(box_losses).sum() / num_positive,
        }
        return {**parts, "loss": parts["class"] + parts["box"]}

    def _box_loss(self, deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        kind = self.loss_options.box_loss
        if kind is not None:
            return overlap_loss(decode_deltas(deltas, anchors, BOX_WEIGHTS), boxes, kind=kind).sum()
        return functional.smooth_l1_loss(deltas, encode_deltas(boxes, anchors, BOX_WEIGHTS), reduction="sum")

    def check_size(self, size_hw: tuple[int, int]) -> None:
        super().check_size(size_hw)
        if all(min(self.backbone.sides(side)) >= 1 for side in size_hw):
            return
        smallest = next(side for side in range(1, 1024) if min(self.backbone.sides(side)) >= 1)
        raise InputError(
            f"{self.variant} input size",
            expected=f"height and width of at least {smallest} pixels, which leave its last map a cell",
            got=f"{size_hw[0]}x{size_hw[1]}",
            fix=f"pass --imgsz {max(smallest, size_hw[0])}x{max(smallest, size_hw[1])}",
        )

    @property
    def anchors_per_level(self) -> tuple[int, ...]:
        return tuple(num_boxes_per_cell(ratios) for ratios in self.config.aspect_ratios)

    def decode_spec(self, size_hw: tuple[int, int]) -> AnchorDeltas:
        self.check_size(size_hw)
        return AnchorDeltas(
            num_classes=self.num_classes,
            levels=self.with_fitted_anchors(self._anchor_levels(size_hw)),
            box_weights=BOX_WEIGHTS,
            delta_clip=DELTA_CLIP,
            score_activation="softmax",
            background_class=BACKGROUND_CLASS,
            multi_label=True,
            clip_to_image=True,
            max_detections=self.config.max_detections,
            nms=NmsSpec(pre_nms_top_k=self.config.top_k, top_k_scope="class"),
        )

    def _anchor_levels(self, size_hw: tuple[int, int]) -> tuple[AnchorLevel, ...]:
        grids_hw = list(zip(self.backbone.sides(size_hw[0]), self.backbone.sides(size_hw[1]), strict=True))
        steps_hw = []
        for index, (rows, columns) in enumerate(grids_hw):
            doubled = float(FINEST_STEP << index)
            is_doubling = index < self.config.num_doubling
            steps_hw.append((doubled, doubled) if is_doubling else (size_hw[0] / rows, size_hw[1] / columns))
        return default_box_levels(
            size_hw,
            grids_hw=grids_hw,
            steps_hw=steps_hw,
            scales=self.config.scales,
            aspect_ratios=self.config.aspect_ratios,
        )

    def default_preprocess(self, size_hw: tuple[int, int]) -> Preprocess:
        return preset(self.config.preprocess, size_hw)


def build(variant: str, num_classes: int) -> Ssd:
    """An SSD of that variant with random weights."""
    return Ssd(variant=variant, num_classes=num_classes)


_CLASS_LAYERS = {
    "ssd300-vgg16": "head.classification_head.module_list.0.bias",
    "ssdlite320-mobilenetv3": "head.classification_head.module_list.0.1.bias",
}


def import_checkpoint(state: StateDict, variant: str) -> ImportedWeights:
    """The weights of torchvision's checkpoint under our names.

    Torchvision's first class is the background, which has no name here: 91 become 90, `--labels coco90`.

    Raises:
        CheckpointError: where it is not one of that variant, or there is none of that variant.
    """
    if variant not in _CLASS_LAYERS:
        raise CheckpointError(
            "checkpoint",
            expected="a variant that torchvision has weights of: " + ", ".join(_CLASS_LAYERS),
            got=variant,
            fix="pass one of these, or a checkpoint of boxwright train",
        )
    class_bias = state.get(_CLASS_LAYERS[variant])
    per_cell = num_boxes_per_cell(VARIANTS[variant].aspect_ratios[0])
    if class_bias is None or len(class_bias) % per_cell or len(class_bias) < 2 * per_cell:
        raise CheckpointError(
            "checkpoint",
            expected=f"the tensors of {variant}, {_CLASS_LAYERS[variant]} among them",
            got="others: " + ", ".join(list(state)[:10]),
            fix="pass the --model that it was trained as",
        )
    renamed = {_renamed(name): tensor for name, tensor in state.items()} if variant == "ssd300-vgg16" else dict(state)
    return ImportedWeights(state=renamed, num_classes=len(class_bias) // per_cell - 1)


_VGG_C4_LAYERS = 23


def _renamed(name: str) -> str:
    """Torchvision's VGG has its layers up to conv4_3 in `features`, the rest and the appended steps in `extra`."""
    found = re.match(r"backbone\.features\.(\d+)\.(.*)", name)
    if found:
        return f"backbone.body.features_{found[1]}.{found[2]}"
    found = re.match(r"backbone\.extra\.0\.7\.(\d+)\.(.*)", name)
    if found:
        return f"backbone.fc.{found[1]}.{found[2]}"
    found = re.match(r"backbone\.extra\.0\.(\d+)\.(.*)", name)
    if found:
        return f"backbone.body.features_{_VGG_C4_LAYERS + int(found[1])}.{found[2]}"
    found = re.match(r"backbone\.extra\.(\d+)\.(.*)", name)
    return f"backbone.extra.{int(found[1]) - 1}.{found[2]}" if found else name
