"""What Fast, Faster and Cascade R-CNN share: feature maps, the regions that are cut out of them, and the box heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from boxwright.core.decode_spec import AnchorDeltas, NmsSpec
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import preset
from boxwright.models.common.anchor_deltas import DELTA_CLIP, decode_deltas
from boxwright.models.common.box_head import BoxHeadKind, BoxStage, StageConfig, make_box_head
from boxwright.models.common.detector import DetectionModel
from boxwright.models.common.proposals import as_rois, rois_of_lists
from boxwright.models.common.region_backbones import MobileNetPyramid, RegionPyramid, SingleMap
from boxwright.models.common.roi_pooling import RegionPool, RoiPoolKind
from boxwright.models.common.rpn import RpnConfig
from boxwright.models.common.targets import Targets

PYRAMID_STRIDES = (4, 8, 16, 32)
# Boxes narrower or lower than this many pixels are dropped, and with them what the padding of the proposals gives.
SMALLEST_SIDE = 1e-2
# A mean of scores may be 0 in float32, whose logarithm is no number that engines like.
_SMALLEST_SCORE = 1e-30
# Of the losses of a cascade's stages.
_STAGE_LOSS_WEIGHTS = (1.0, 0.5, 0.25)


@dataclass(frozen=True, kw_only=True)
class RcnnConfig:
    """A variant.

    Attributes:
        backbone: name in timm.
        backbone_kind: a pyramid on several stages, one stage alone, or torchvision's MobileNetV3 with its pyramid.
        backbone_stages: their indices in timm.
        strides: pixels a cell of the maps that regions are cut out of.
        channels: of the pyramid.
        normalised_pyramid: whether it has batch normalisation.
        rpn: how regions are proposed; None where they are given.
        region_pool: RoIAlign or RoIPool.
        region_side: cells of a region's features.
        box_head: layers that read these.
        box_head_width: of the fully connected ones.
        box_stages: one for Faster R-CNN, several for a cascade.
        learning_rate: see `DetectionModel.suggested_learning_rate`.
        size_hw: the usual input size.
    """

    backbone: str
    rpn: RpnConfig | None = None
    backbone_kind: Literal["pyramid", "single", "mobilenet"] = "pyramid"
    backbone_stages: tuple[int, ...] = (1, 2, 3, 4)
    strides: tuple[int, ...] = PYRAMID_STRIDES
    channels: int = 256
    normalised_pyramid: bool = False
    region_pool: RoiPoolKind = "align"
    region_side: int = 7
    box_head: BoxHeadKind = "two_layers"
    box_head_width: int = 1024
    box_stages: tuple[StageConfig, ...] = (StageConfig(),)
    learning_rate: float | None = None
    size_hw: tuple[int, int] = (800, 1344)


class RegionDetector(DetectionModel):
    """From feature maps and proposals to raw heads, and from those and targets to the losses of the box heads.

    Args:
        config: of the variant.
        variant: its name.
        num_classes: without the background.
    """

    family: ClassVar[str] = "rcnn"
    nms_iou_threshold: ClassVar[float] = 0.5  # torchvision's
    supported_loss_options: ClassVar[frozenset[str]] = frozenset({"box_loss", "label_smoothing"})

    def __init__(self, config: RcnnConfig, *, variant: str, num_classes: int) -> None:
        super().__init__(variant=variant, num_classes=num_classes)
        self.config = config
        self.suggested_learning_rate = config.learning_rate
        self.backbone = _backbone(config)
        self.map_channels = channels = (
            self.backbone.channels if isinstance(self.backbone, SingleMap) else config.channels
        )
        self.region_pool = RegionPool(strides=config.strides, side=config.region_side, kind=config.region_pool)
        stages = [
            BoxStage(
                make_box_head(
                    config.box_head,
                    channels=channels,
                    side=config.region_side,
                    width=config.box_head_width,
                    backbone=config.backbone,
                ),
                num_classes=num_classes,
                config=stage,
            )
            for stage in config.box_stages
        ]
        self.roi_heads = stages[0] if len(stages) == 1 else nn.ModuleList(stages)

    @property
    def box_stages(self) -> tuple[BoxStage, ...]:
        """The box heads in their order."""
        return tuple(stage for stage in self.roi_heads.modules() if isinstance(stage, BoxStage))

    def detect_in(self, maps: list[Tensor], proposals_xyxy: Tensor, image_size_hw: Tensor) -> dict[str, Tensor]:
        """The raw heads of the last stage, on the boxes that those before it have refined."""
        batch, priors, all_logits = proposals_xyxy.shape[0], proposals_xyxy, []
        *refining, last = self.box_stages
        for stage in refining:
            logits, deltas = stage(self.region_pool(maps, as_rois(priors)))
            all_logits.append(logits)
            refined = decode_deltas(deltas.unflatten(0, (batch, -1)), priors, stage.config.box_weights)
            priors = _clipped(refined, image_size_hw)
        logits, deltas = last(self.region_pool(maps, as_rois(priors)))
        all_logits.append(logits)
        return {
            "box_regression": deltas.unflatten(0, (batch, -1)),  # (B, P, 4) or (B, P, (C + 1) * 4)
            "class_logits": _mean_logits(all_logits).unflatten(0, (batch, -1)),  # (B, P, C + 1)
            "priors": priors,  # (B, P, 4)
        }

    def box_losses(
        self, maps: list[Tensor], regions: list[Tensor], image_size_hw: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        """The losses of all stages.

        Args:
            maps: of the backbone.
            regions: (N, 4) an image, the proposals.
            image_size_hw: (B, 2).
            targets: of the batch.
        """
        parts = {}
        for number, stage in enumerate(self.box_stages):
            sampled = stage.sample(regions, targets)
            boxes = [part.boxes_xyxy for part in sampled]
            logits, deltas = stage(self.region_pool(maps, rois_of_lists(boxes)))
            suffix = "" if len(self.box_stages) == 1 else f"_{number + 1}"
            for name, value in stage.loss(logits, deltas, sampled, self.loss_options).items():
                parts[name + suffix] = value * _STAGE_LOSS_WEIGHTS[number]
            if not stage.config.class_specific_boxes:
                regions = self._refined(boxes, deltas.detach(), stage, image_size_hw)
        return parts

    def _refined(
        self, boxes_xyxy: list[Tensor], deltas: Tensor, stage: BoxStage, image_size_hw: Tensor
    ) -> list[Tensor]:
        """The regions of each image as a stage has moved them, for the next to learn from."""
        parts = deltas.split([len(boxes) for boxes in boxes_xyxy])
        return [
            _clipped(decode_deltas(part, boxes, stage.config.box_weights)[None], size_hw[None])[0]
            for part, boxes, size_hw in zip(parts, boxes_xyxy, image_size_hw, strict=True)
        ]

    def decode_spec(self, size_hw: tuple[int, int]) -> AnchorDeltas:
        self.check_size(size_hw)
        last = self.config.box_stages[-1]
        return AnchorDeltas(
            num_classes=self.num_classes,
            box_weights=last.box_weights,
            delta_clip=DELTA_CLIP,
            class_specific_boxes=last.class_specific_boxes,
            score_activation="softmax",
            background_class=0,
            multi_label=True,
            clip_to_image=True,
            nms=NmsSpec(pre_nms_top_k=0, top_k_scope="class", min_size=SMALLEST_SIDE),
        )

    def default_preprocess(self, size_hw: tuple[int, int]) -> Preprocess:
        return preset("imagenet-letterbox", size_hw)


def _backbone(config: RcnnConfig) -> RegionPyramid | MobileNetPyramid | SingleMap:
    if config.backbone_kind == "mobilenet":
        return MobileNetPyramid(config.channels)
    if config.backbone_kind == "single":
        return SingleMap(config.backbone, stage=config.backbone_stages[0])
    return RegionPyramid(
        config.backbone,
        stages=config.backbone_stages,
        channels=config.channels,
        normalised=config.normalised_pyramid,
    )


def _clipped(boxes_xyxy: Tensor, image_size_hw: Tensor) -> Tensor:
    """Boxes (B, P, 4) inside images of (B, 2)."""
    upper = image_size_hw.flip(1).repeat(1, 2)[:, None]  # (B, 1, 4) as x, y, x, y
    return torch.minimum(boxes_xyxy.clamp(min=0), upper)


def _mean_logits(all_logits: list[Tensor]) -> Tensor:
    """Logits whose softmax is the mean of the softmaxes."""
    if len(all_logits) == 1:
        return all_logits[0]
    scores = torch.stack([logits.softmax(dim=1) for logits in all_logits]).mean(dim=0)
    return scores.clamp(min=_SMALLEST_SCORE).log()
