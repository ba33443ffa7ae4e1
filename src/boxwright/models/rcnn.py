"""The R-CNN line: Faster R-CNN with and without a feature pyramid, Cascade, Fast R-CNN and R-CNN.

Faster R-CNN's regions are proposed by a DecodeNMS inside the network and cut out of its feature maps; the raw heads
are those of the boxes that are decoded from them: the proposals are the priors of the DecodeNMS behind the network.

Sources: Ren et al., Faster R-CNN, NIPS 2015; Lin et al., Feature Pyramid Networks, CVPR 2017, sec. 4.2; Cai and
Vasconcelos, Cascade R-CNN, CVPR 2018; the second version of the heads after torchvision's weights of that name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from boxwright.core.errors import CheckpointError, InputError
from boxwright.models.common import small_backbone
from boxwright.models.common.box_head import StageConfig
from boxwright.models.common.checkpoint import StateDict
from boxwright.models.common.crop_rcnn import CropConfig, CropRcnn
from boxwright.models.common.detector import DetectionModel
from boxwright.models.common.fast_rcnn import FastRcnn
from boxwright.models.common.fitted_anchors import FittedAnchorModel
from boxwright.models.common.proposals import Proposals, canvas_size_hw
from boxwright.models.common.rcnn_checkpoint import without_frozen_norms, without_old_names
from boxwright.models.common.region_detector import RcnnConfig, RegionDetector
from boxwright.models.common.registry import ImportedWeights
from boxwright.models.common.rpn import ASPECT_RATIOS, RegionProposalNetwork, RpnConfig, RpnHeads, cell_sizes_wh
from boxwright.models.common.targets import Targets

IMPORTS = (
    "torchvision's fasterrcnn_resnet50_fpn (fasterrcnn-r50), fasterrcnn_resnet50_fpn_v2 (fasterrcnn-r50-v2) and "
    "fasterrcnn_mobilenet_v3_large_320_fpn (fasterrcnn-mobilenet-320)"
)
LEARNED_PARTS = ("backbone", "rpn", "roi_heads")
_ALTERNATING_PARTS = {1: ("backbone", "rpn"), 2: ("backbone", "roi_heads"), 3: ("rpn",), 4: ("roi_heads",)}
_PYRAMID_ANCHORS = ((32,), (64,), (128,), (256,), (512,))


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
        backbone=small_backbone.NAME,
        backbone_stages=(2, 3, 4),
        strides=(8, 16, 32),
        channels=64,
        rpn=_PICO_RPN,
        region_side=5,
        box_head_width=128,
        box_stages=box_stages,
        learning_rate=0.002,
        size_hw=(256, 256),
    )


VARIANTS: dict[str, RcnnConfig | CropConfig] = {
    "fasterrcnn-pico": _pico((StageConfig(samples=64),)),
    "fasterrcnn-pico-plain": RcnnConfig(
        backbone="mobilenetv3_small_050",
        backbone_kind="single",
        backbone_stages=(3,),
        strides=(16,),
        rpn=RpnConfig(anchor_sides=((16, 32, 64, 128),), top_k_in_training=(200, 100), top_k=(100, 50), samples=64),
        region_pool="pool",
        box_head_width=512,
        box_stages=(StageConfig(samples=64),),
        size_hw=(256, 256),
    ),
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
    # Every region is warped and run through the whole network.
    "rcnn-pico": CropConfig(
        backbone=small_backbone.NAME, crop_side=64, context=4, samples=16, learning_rate=0.002, size_hw=(256, 256)
    ),
    "rcnn-r18": CropConfig(backbone="resnet18"),
    # Regions come from selective search, or from whoever sets `proposal_source`.
    "fastrcnn-pico": replace(_pico((StageConfig(samples=64),)), rpn=None, box_head_width=192),
    "fastrcnn-r18": RcnnConfig(backbone="resnet18", size_hw=(512, 512)),
    "fastrcnn-r50": RcnnConfig(backbone="resnet50"),
    "fastrcnn-vgg16": RcnnConfig(
        backbone="vgg16",
        backbone_kind="single",
        backbone_stages=(4,),
        strides=(16,),
        region_pool="pool",
        box_head_width=4096,
        size_hw=(608, 1024),
    ),
    "cascadercnn-pico": _pico(_cascade(samples=64)),
    "cascadercnn-r50": RcnnConfig(backbone="resnet50", rpn=_PYRAMID_RPN, box_stages=_cascade()),
}


class FasterRcnn(RegionDetector, FittedAnchorModel):
    """The detector; its keys are those of torchvision's. With several box stages it is Cascade R-CNN.

    Fitted anchors are those of its proposals.

    Attributes:
        learned_parts: of the network, all of them in joint training.
        proposers: at most one other detector, whose proposals the box heads learn on instead of one's own.
    """

    num_alternating_steps: ClassVar[int] = len(_ALTERNATING_PARTS)

    def __init__(self, config: RcnnConfig, *, variant: str, num_classes: int) -> None:
        super().__init__(config, variant=variant, num_classes=num_classes)
        assert config.rpn is not None
        self.rpn = RegionProposalNetwork(self.map_channels, config.rpn)
        self.learned_parts: frozenset[str] = frozenset(LEARNED_PARTS)
        self.proposers: list[FasterRcnn] = []  # in a list, so that its weights are not counted among ours

    def train(self, mode: bool = True) -> FasterRcnn:
        super().train(mode)
        if "backbone" not in self.learned_parts:
            self.backbone.eval()  # statistics of a fixed part stay, too
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FasterRcnn:
        for proposer in self.proposers:  # not a submodule, yet it goes where we go
            proposer._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, images: Tensor, pixel_mask: Tensor | None = None) -> dict[str, Tensor]:
        maps = self.backbone(images)
        image_size_hw = canvas_size_hw(images, pixel_mask)
        rpn_heads = self._rpn_heads(maps, images)
        proposals = self.rpn.propose(rpn_heads, image_size_hw)
        if self.training:
            if self.proposers:
                proposals = self.proposers[0].propose(images, image_size_hw)
            return _training_heads(maps, rpn_heads, proposals, image_size_hw)
        heads = self.detect_in(maps, proposals.boxes_xyxy, image_size_hw)
        return heads if pixel_mask is None else {**heads, "image_size_hw": image_size_hw}

    def loss(self, heads: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        maps, rpn_heads, proposals = _from_training_heads(heads)
        regions = [proposals.of_image(row) for row in range(len(targets))]
        parts: dict[str, Tensor] = {}
        if "rpn" in self.learned_parts:
            parts |= self.rpn.loss(rpn_heads, targets)
        if "roi_heads" in self.learned_parts:
            parts |= self.box_losses(maps, regions, heads["_image_size_hw"], targets)
        return {**parts, "loss": torch.stack(list(parts.values())).sum()}

    @torch.no_grad()
    def propose(self, images: Tensor, image_size_hw: Tensor) -> Proposals:
        """The proposals alone.

        Args:
            images: (B, 3, H, W).
            image_size_hw: (B, 2) that they are clipped to.
        """
        return self.rpn.propose(self._rpn_heads(self.backbone(images), images), image_size_hw)

    def _rpn_heads(self, maps: list[Tensor], images: Tensor) -> RpnHeads:
        heads: RpnHeads = self.rpn(maps, (images.shape[2], images.shape[3]), self.fitted_anchors_wh)
        return heads

    @property
    def anchors_per_level(self) -> tuple[int, ...]:
        return tuple(len(sides) * len(ASPECT_RATIOS) for sides in self.rpn.config.anchor_sides)

    def anchor_sizes_wh(self, size_hw: tuple[int, int]) -> list[tuple[float, float]]:
        if self.fitted_anchors_wh is not None:
            return [(width, height) for width, height in self.fitted_anchors_wh.tolist()]
        return [size_wh for sides in self.rpn.config.anchor_sides for size_wh in cell_sizes_wh(sides)]

    def begin_alternating_step(self, step: int, initial: Mapping[str, Tensor]) -> None:
        """Prepare for one of the four steps of alternating training; fixed parts take no gradients.

        1: the backbone and the proposals. 2: the backbone, from its initial weights, and the boxes, on the proposals of
        step 1. 3: the proposals, on the backbone of step 2, which stays from now on. 4: the boxes.

        Source: Ren et al., Faster R-CNN, 2015, sec. 3.2.
        """
        if step not in _ALTERNATING_PARTS:
            raise InputError("step", expected="1, 2, 3 or 4", got=repr(step), fix="pass them in this order")
        self.proposers.clear()
        if step == 2:
            proposer = copy.deepcopy(self).eval().requires_grad_(False)
            rpn = proposer.rpn  # in evaluation, but it proposes as many as in training
            rpn.config = replace(rpn.config, top_k=rpn.config.top_k_in_training)
            self.proposers.append(proposer)
            prefix = "backbone."
            own = {name.removeprefix(prefix): value for name, value in initial.items() if name.startswith(prefix)}
            self.backbone.load_state_dict(own)
        self.learned_parts = frozenset(_ALTERNATING_PARTS[step])
        for name in LEARNED_PARTS:
            getattr(self, name).requires_grad_(name in self.learned_parts)
        self.train(self.training)  # the backbone's mode follows what is learned


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


def build(variant: str, num_classes: int) -> DetectionModel:
    """A detector of that variant with random weights."""
    config = VARIANTS[variant]
    if isinstance(config, CropConfig):
        return CropRcnn(config, variant=variant, num_classes=num_classes)
    if config.rpn is None:
        return FastRcnn(config, variant=variant, num_classes=num_classes)
    return FasterRcnn(config, variant=variant, num_classes=num_classes)


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
