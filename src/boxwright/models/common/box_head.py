"""The second stage of two-stage detectors: a class and a box for each region's features.

Sources: Girshick, Fast R-CNN, ICCV 2015, sec. 2; Cai and Vasconcelos, Cascade R-CNN, CVPR 2018, sec. 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn import functional

from boxwright.models.common.anchor_deltas import Weights, decode_deltas, encode_deltas
from boxwright.models.common.class_targets import smoothed_cross_entropy
from boxwright.models.common.iou_losses import overlap_loss
from boxwright.models.common.loss_options import LossOptions
from boxwright.models.common.roi_sampling import BACKGROUND_LABEL, SampledRegions, sample_regions
from boxwright.models.common.targets import Targets

SMOOTH_L1_BETA = 1.0 / 9
BoxHeadKind = Literal["two_layers", "convolutions", "resnet_stage"]


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A box head of a cascade; Fast and Faster R-CNN have one.

    Attributes:
        foreground_iou: a region with at least this overlap learns an object.
        hard_background_iou: background regions with at least this overlap are taken first.
        box_weights: of the deltas.
        class_specific_boxes: whether each class has its own box.
        samples: regions of an image that are learned from.
        positive_fraction: at most this part of them is foreground.
    """

    foreground_iou: float = 0.5
    hard_background_iou: float = 0.1
    box_weights: Weights = (10.0, 10.0, 5.0, 5.0)
    class_specific_boxes: bool = True
    samples: int = 512
    positive_fraction: float = 0.25


class TwoLayerHead(nn.Module):
    """Two fully connected layers."""

    def __init__(self, channels: int, side: int, width: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * side * side, width)
        self.fc7 = nn.Linear(width, width)
        self.out_features = width

    def forward(self, features: Tensor) -> Tensor:
        hidden = functional.relu(self.fc6(features.flatten(1)))
        return functional.relu(self.fc7(hidden))


class ConvolutionHead(nn.Sequential):
    """Four convolutions with batch normalisation and a fully connected layer."""

    def __init__(self, channels: int, side: int, width: int) -> None:
        blocks = [
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
            )
            for _ in range(4)
        ]
        super().__init__(*blocks, nn.Flatten(), nn.Linear(channels * side * side, width), nn.ReLU(inplace=True))
        self.out_features = width
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class ResNetStageHead(nn.Module):
    """The last stage of a ResNet, run on every region, and the mean of what it gives."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        network = timm.create_model(backbone, pretrained=False)
        assert isinstance(network, ResNet)
        self.layer4 = network.get_submodule("layer4")
        self.out_features = int(network.num_features)

    def forward(self, features: Tensor) -> Tensor:
        stage: Tensor = self.layer4(features)
        return stage.mean(dim=(2, 3))


BoxHead = TwoLayerHead | ConvolutionHead | ResNetStageHead


class BoxPredictor(nn.Module):
    """The two layers that predict."""

    def __init__(self, width: int, num_logits: int, class_specific_boxes: bool) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, num_logits)
        self.bbox_pred = nn.Linear(width, 4 * num_logits if class_specific_boxes else 4)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(features), self.bbox_pred(features)


class BoxStage(nn.Module):
    """Head and predictor, with torchvision's key names.

    Args:
        box_head: from pooled features (K, C, side, side) to (K, `out_features`).
        num_classes: without the background, which is logit 0.
        config: how it learns.
    """

    def __init__(self, box_head: BoxHead, *, num_classes: int, config: StageConfig) -> None:
        super().__init__()
        self.config = config
        self.box_head = box_head
        self.box_predictor = BoxPredictor(box_head.out_features, num_classes + 1, config.class_specific_boxes)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (K, C + 1) and box deltas (K, 4) or (K, (C + 1) * 4)."""
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return logits, deltas

    def sample(self, proposals_xyxy: Sequence[Tensor], targets: Targets) -> list[SampledRegions]:
        """Regions of each image to learn from."""
        config = self.config
        return [
            sample_regions(
                proposals,
                boxes.to(proposals.device),
                class_ids.to(proposals.device),
                foreground_iou=config.foreground_iou,
                hard_background_iou=config.hard_background_iou,
                count=config.samples,
                positive_fraction=config.positive_fraction,
            )
            for proposals, boxes, class_ids in zip(proposals_xyxy, targets.boxes_xyxy, targets.class_ids, strict=True)
        ]

    def loss(
        self, logits: Tensor, deltas: Tensor, sampled: Sequence[SampledRegions], options: LossOptions
    ) -> dict[str, Tensor]:
        """`class` and `box`, the losses of both outputs over the sampled regions of the batch."""
        labels = torch.cat([part.labels for part in sampled])
        if len(labels) == 0:
            return {"class": logits.sum(), "box": deltas.sum()}
        positive = (labels != BACKGROUND_LABEL).nonzero()[:, 0]
        if self.config.class_specific_boxes:
            deltas = deltas.unflatten(1, (-1, 4))  # (K, C + 1, 4)
            found = deltas[positive, labels[positive]]
        else:
            found = deltas[positive]
        regions = torch.cat([part.boxes_xyxy for part in sampled])[positive]
        wanted_xyxy = torch.cat([part.wanted_xyxy for part in sampled])[positive]
        if options.box_loss is not None:
            boxes = decode_deltas(found, regions, self.config.box_weights)
            box_loss = overlap_loss(boxes, wanted_xyxy, kind=options.box_loss).sum()
        else:
            wanted = encode_deltas(wanted_xyxy, regions, self.config.box_weights)
            box_loss = functional.smooth_l1_loss(found, wanted, beta=SMOOTH_L1_BETA, reduction="sum")
        is_object = labels != BACKGROUND_LABEL
        class_losses = smoothed_cross_entropy(logits, labels, is_object, smoothing=options.label_smoothing)
        return {"class": class_losses.mean(), "box": box_loss / len(labels)}


def make_box_head(kind: BoxHeadKind, *, channels: int, side: int, width: int, backbone: str) -> BoxHead:
    """The layers between the pooled features and the predictor."""
    if kind == "two_layers":
        return TwoLayerHead(channels, side, width)
    if kind == "convolutions":
        return ConvolutionHead(channels, side, width)
    return ResNetStageHead(backbone)
