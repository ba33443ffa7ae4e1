"""The R-CNN line: Faster R-CNN with and without a feature pyramid, and Cascade R-CNN.

Regions are proposed by a DecodeNMS inside the network, cut out of its feature maps, and the raw heads are those of the
boxes that are decoded from them: the proposals are the priors of the DecodeNMS behind the network.

Sources: Ren et al., Faster R-CNN, NIPS 2015; Lin et al., Feature Pyramid Networks, CVPR 2017, sec. 4.2; Cai and
Vasconcelos, Cascade R-CNN, CVPR 2018; the second version of the heads after torchvision's weights of that name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from boxwright.core.decode_spec import AnchorDeltas, NmsSpec
from boxwright.core.errors import CheckpointError
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import preset
from boxwright.models.common.anchor_deltas import DELTA_CLIP, decode_deltas
from boxwright.models.common.box_head import BoxHeadKind, BoxStage, StageConfig, make_box_head
from boxwright.models.common.checkpoint import StateDict
from boxwright.models.common.detector import DetectionModel
from boxwright.models.common.proposals import Proposals, as_rois, canvas_size_hw, rois_of_lists
from boxwright.models.common.rcnn_checkpoint import without_frozen_norms, without_old_names
from boxwright.models.common.region_backbones import MobileNetPyramid, RegionPyramid, SingleMap
from boxwright.models.common.registry import ImportedWeights
from boxwright.models.common.roi_pooling import RegionPool, RoiPoolKind
from boxwright.models.common.rpn import RegionProposalNetwork, RpnConfig, RpnHeads
from boxwright.models.common.targets import Targets

IMPORTS = (
    "torchvision's fasterrcnn_resnet50_fpn (fasterrcnn-r50), fasterrcnn_resnet50_fpn_v2 (fasterrcnn-r50-v2) and "
    "fasterrcnn_mobilenet_v3_large_320_fpn (fasterrcnn-mobilenet-320)"
)
# Boxes narrower or lower than this many pixels are dropped, and with them what the padding of the proposals gives.
SMALLEST_SIDE = 1e-2
# A mean of scores may be 0 in float32, whose logarithm is no number that engines like.
_SMALLEST_SCORE = 1e-30
_PYRAMID_STRIDES = (4, 8, 16, 32)
_PYRAMID_ANCHORS = ((32,), (64,), (128,), (256,), (512,))


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
        rpn: how regions are proposed.
        region_pool: RoIAlign or RoIPool.
        region_side: cells of a region's features.
        box_head: layers that read these.
        box_head_width: of the fully connected ones.
        box_stages: one for Faster R-CNN, several for a cascade.
        size_hw: the usual input size.
    """

    backbone: str
    rpn: RpnConfig
    backbone_kind: Literal["pyramid", "single", "mobilenet"] = "pyramid"
    backbone_stages: tuple[int, ...] = (1, 2, 3, 4)
    strides: tuple[int, ...] = _PYRAMID_STRIDES
    channels: int = 256
    normalised_pyramid: bool = False
    region_pool: RoiPoolKind = "align"
    region_side: int = 7
    box_head: BoxHeadKind = "two_layers"
    box_head_width: int = 1024
    box_stages: tuple[StageConfig, ...] = (StageConfig(),)
    size_hw: tuple[int, int] = (800, 1344)


def _cascade(samples: int = 512) -> tuple[StageConfig, ...]:
    """Three stages with rising overlaps and finer deltas; boxes are the same for all classes."""
    return tuple(
        StageConfig(
            foreground_iou=iou,
            hard_background_iou=0.0,
            box_weights=(10.0 * finer, 10.0 * finer, 5.0 * finer, 5.0 * finer),
            class_specific_boxes=False,
            samples=samples,
        )
        for iou, finer in ((0.5, 1.0), (0.6, 2.0), (0.7, 3.0))
    )


_PYRAMID_RPN = RpnConfig(anchor_sides=_PYRAMID_ANCHORS)
# Not the authors': the smallest useful ones, for tests and first steps on a CPU.
_PICO_RPN = RpnConfig(
    anchor_sides=((16,), (32,), (64,), (128,)), top_k_in_training=(200, 100), top_k=(100, 50), samples=64
)


def _pico(box_stages: tuple[StageConfig, ...]) -> RcnnConfig:
    return RcnnConfig(
        backbone="mobilenetv3_small_050",
        backbone_stages=(2, 3, 4),
        strides=(8, 16, 32),
        channels=64,
        rpn=_PICO_RPN,
        region_side=5,
        box_head_width=128,
        box_stages=box_stages,
        size_hw=(256, 256),
    )


VARIANTS: dict[str, RcnnConfig] = {
    "fasterrcnn-pico": _pico((StageConfig(samples=64),)),
    "fasterrcnn-r18": RcnnConfig(backbone="resnet18", rpn=_PYRAMID_RPN, size_hw=(512, 512)),
    "fasterrcnn-r50": RcnnConfig(backbone="resnet50", rpn=_PYRAMID_RPN),
    "fasterrcnn-r50-v2": RcnnConfig(
        backbone="resnet50",
        normalised_pyramid=True,
        rpn=RpnConfig(anchor_sides=_PYRAMID_ANCHORS, depth=2),
        box_head="convolutions",
    ),
    "fasterrcnn-mobilenet-320": RcnnConfig(
        backbone="mobilenetv3_large_100",
        backbone_kind="mobilenet",
        strides=(32, 32),
        rpn=RpnConfig(anchor_sides=((32, 64, 128, 256, 512),) * 3, top_k=(150, 150), score_threshold=0.05),
        size_hw=(320, 640),
    ),
    # One map: the last stage of the ResNet reads the regions.
    "fasterrcnn-r50-c4": RcnnConfig(
        backbone="resnet50",
        backbone_kind="single",
        backbone_stages=(3,),
        strides=(16,),
        rpn=RpnConfig(anchor_sides=((32, 64, 128, 256, 512),), top_k_in_training=(12000, 2000), top_k=(6000, 1000)),
        region_side=14,
        box_head="resnet_stage",
    ),
    # The paper's own, with RoIPool.
    "fasterrcnn-vgg16": RcnnConfig(
        backbone="vgg16",
        backbone_kind="single",
        backbone_stages=(4,),
        strides=(16,),
        rpn=RpnConfig(anchor_sides=((128, 256, 512),), top_k_in_training=(12000, 2000), top_k=(6000, 300)),
        region_pool="pool",
        box_head_width=4096,
        size_hw=(608, 1024),
    ),
    "cascadercnn-pico": _pico(_cascade(samples=64)),
    "cascadercnn-r50": RcnnConfig(backbone="resnet50", rpn=_PYRAMID_RPN, box_stages=_cascade()),
}
# Of the losses of a cascade's stages.
_STAGE_LOSS_WEIGHTS = (1.0, 0.5, 0.25)


class FasterRcnn(DetectionModel):
    """The detector; its keys are those of torchvision's. With several box stages it is Cascade R-CNN."""

    family: ClassVar[str] = "rcnn"

    def __init__(self, *, variant: str, num_classes: int) -> None:
        super().__init__(variant=variant, num_classes=num_classes)
        self.config = config = VARIANTS[variant]
        self.backbone = _backbone(config)
        channels = self.backbone.channels if isinstance(self.backbone, SingleMap) else config.channels
        self.rpn = RegionProposalNetwork(channels, config.rpn)
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

    def forward(self, images: Tensor, pixel_mask: Tensor | None = None) -> dict[str, Tensor]:
        maps = self.backbone(images)
        image_size_hw = canvas_size_hw(images, pixel_mask)
        rpn_heads = self.rpn(maps, (images.shape[2], images.shape[3]))
        proposals = self.rpn.propose(rpn_heads, image_size_hw)
        if self.training:
            return _training_heads(maps, rpn_heads, proposals, image_size_hw)
        heads = self._detect(maps, proposals.boxes_xyxy, image_size_hw)
        return heads if pixel_mask is None else {**heads, "image_size_hw": image_size_hw}

    def _detect(self, maps: list[Tensor], proposals_xyxy: Tensor, image_size_hw: Tensor) -> dict[str, Tensor]:
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

    def loss(self, heads: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        maps, rpn_heads, proposals = _from_training_heads(heads)
        parts = self.rpn.loss(rpn_heads, targets)
        regions = [proposals.of_image(row) for row in range(len(targets))]
        for number, stage in enumerate(self.box_stages):
            sampled = stage.sample(regions, targets)
            boxes = [part.boxes_xyxy for part in sampled]
            logits, deltas = stage(self.region_pool(maps, rois_of_lists(boxes)))
            suffix = "" if len(self.box_stages) == 1 else f"_{number + 1}"
            for name, value in stage.loss(logits, deltas, sampled).items():
                parts[name + suffix] = value * _STAGE_LOSS_WEIGHTS[number]
            if not stage.config.class_specific_boxes:
                regions = self._refined(boxes, deltas.detach(), stage, heads["_image_size_hw"])
        return {**parts, "loss": torch.stack(list(parts.values())).sum()}

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


def _training_heads(
    maps: list[Tensor], rpn_heads: RpnHeads, proposals: Proposals, image_size_hw: Tensor
) -> dict[str, Tensor]:
    """What the loss needs: which regions are cut out depends on the targets, so the box heads run there."""
    return {
        **{f"_map_{number}": feature_map for number, feature_map in enumerate(maps)},
        "_objectness": rpn_heads.objectness,
        "_deltas": rpn_heads.deltas,
        "_anchors_xyxy": rpn_heads.anchors_xyxy,
        "_proposals_xyxy": proposals.boxes_xyxy,
        "_counts": proposals.counts,
        "_image_size_hw": image_size_hw,
    }


def _from_training_heads(heads: dict[str, Tensor]) -> tuple[list[Tensor], RpnHeads, Proposals]:
    maps = [head for name, head in heads.items() if name.startswith("_map_")]
    rpn_heads = RpnHeads(heads["_objectness"], heads["_deltas"], heads["_anchors_xyxy"], ())
    return maps, rpn_heads, Proposals(boxes_xyxy=heads["_proposals_xyxy"], counts=heads["_counts"])


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


def build(variant: str, num_classes: int) -> FasterRcnn:
    """A detector of that variant with random weights."""
    return FasterRcnn(variant=variant, num_classes=num_classes)


def import_checkpoint(state: StateDict, variant: str) -> ImportedWeights:
    """The weights of torchvision's checkpoint, whose names are ours.

    Class ids are counted without the background, so its 90 COCO names are needed: `--labels coco90`.

    Raises:
        CheckpointError: where it is not one of Faster R-CNN.
    """
    class_layer = state.get("roi_heads.box_predictor.cls_score.weight")
    if class_layer is None or class_layer.ndim != 2 or class_layer.shape[0] < 2:
        raise CheckpointError(
            "checkpoint",
            expected=f"the tensors of {variant}, roi_heads.box_predictor.cls_score.weight among them",
            got="others: " + ", ".join(list(state)[:10]),
            fix="pass the --model that it was trained as",
        )
    weights = without_frozen_norms(without_old_names(state))
    return ImportedWeights(state=weights, num_classes=class_layer.shape[0] - 1)
