"""What detectors that predict a set of objects share: the shape of a variant, small layers, and a loss a layer.

Source: Carion et al., End-to-End Object Detection with Transformers, ECCV 2020, sec. 3.1 and appendix A.2.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.models.common.boxes import OverlapKind, xyxy_to_cxcywh
from boxwright.models.common.detector import DetectionModel, Suggestions
from boxwright.models.common.targets import Targets


@dataclass(frozen=True, kw_only=True)
class SetConfig:
    """What the variants of all families have in common.

    Attributes:
        backbone: name in timm.
        width: of the transformer.
        num_heads: of each attention.
        feed_forward: width between the two layers after an attention.
        num_decoder_layers: each an attention among the queries and one to the map.
        num_queries: the most objects that an image can have.
        learning_rate: see `DetectionModel.suggested_learning_rate`.
        size_hw: the usual input size.
    """

    backbone: str
    width: int = 256
    num_heads: int = 8
    feed_forward: int = 2048
    num_decoder_layers: int = 6
    num_queries: int = 100
    learning_rate: float | None = None
    size_hw: tuple[int, int] = (800, 1056)


class LinearLayers(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        widths: of what goes in, of everything between the layers, and of what comes out.
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, features: Tensor) -> Tensor:
        """(..., first width) to (..., last width)."""
        for layer in self.layers[:-1]:
            features = functional.relu(layer(features))
        result: Tensor = self.layers[-1](features)
        return result


class SetDetector(DetectionModel):
    """A detector whose heads in training also hold what its earlier layers say.

    `forward` gives in training, beside `box_regression` (B, Q, 4) and `class_logits` (B, Q, L), `_early_boxes`
    (K, B, Q, 4) and `_early_logits` (K, B, Q, L) of the layers before the last, and `_size_hw` of the input.
    """

    # Neither DETR nor RT-DETR was trained with them.
    suggested_augmentation: ClassVar[Suggestions] = {"mosaic": 0.0, "mixup": 0.0}

    @property
    def box_loss(self) -> OverlapKind:
        """The overlap that boxes learn by, beside the L1 loss of their numbers."""
        return self.loss_options.box_loss or "giou"

    @abstractmethod
    def set_loss(
        self, logits: Tensor, boxes: Tensor, target_boxes: list[Tensor], target_class_ids: list[Tensor]
    ) -> dict[str, Tensor]:
        """The weighted parts of the loss of one layer.

        Args:
            logits: (B, Q, L).
            boxes: (B, Q, 4) as centre, width and height relative to the input.
            target_boxes: (M, 4) an image, likewise.
            target_class_ids: (M,) an image.
        """

    def loss(self, heads: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        height, width = heads["_size_hw"].tolist()
        boxes, class_ids = relative_targets(targets, (height, width), heads["class_logits"].device)
        parts = self.set_loss(heads["class_logits"], heads["box_regression"], boxes, class_ids)
        zero = heads["class_logits"].new_zeros(())
        auxiliary = zero
        for logits, found in zip(heads["_early_logits"], heads["_early_boxes"], strict=True):
            auxiliary = auxiliary + sum(self.set_loss(logits, found, boxes, class_ids).values(), zero)
        return {**parts, "auxiliary": auxiliary, "loss": sum(parts.values(), zero) + auxiliary}


def relative_targets(
    targets: Targets, size_hw: tuple[int, int], device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """The objects of a batch where the network is.

    Args:
        targets: in pixels of the network's input.
        size_hw: of that input.
        device: of the network.

    Returns:
        Boxes (M, 4) an image as centre, width and height relative to the input, and class ids (M,).
    """
    height, width = size_hw
    scale = torch.tensor([width, height, width, height], dtype=torch.float32, device=device)
    boxes = [xyxy_to_cxcywh(given.to(device) / scale) for given in targets.boxes_xyxy]
    return boxes, [given.to(device) for given in targets.class_ids]
