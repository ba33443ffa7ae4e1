"""The region proposal network: which anchors hold an object of any class, and where it lies.

Source: Ren et al., Faster R-CNN, 2015, sec. 3.1; on pyramids Lin et al., Feature Pyramid Networks, CVPR 2017, sec. 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.core.decode_spec import AnchorLevel
from boxwright.models.common.anchor_assignment import BACKGROUND, assign_by_iou
from boxwright.models.common.anchor_deltas import DELTA_CLIP, encode_deltas
from boxwright.models.common.decode_nms_operator import decode_nms
from boxwright.models.common.dense_head import flatten_levels
from boxwright.models.common.proposals import Proposals
from boxwright.models.common.roi_sampling import choose_samples
from boxwright.models.common.targets import Targets

ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height over width
FOREGROUND_IOU, BACKGROUND_IOU = 0.7, 0.3
NMS_IOU = 0.7
SMALLEST_SIDE = 1e-3  # pixels
SMOOTH_L1_BETA = 1.0 / 9


@dataclass(frozen=True, kw_only=True)
class RpnConfig:
    """How a region proposal network looks and what it keeps.

    Attributes:
        anchor_sides: square roots of the anchors' areas in pixels, for each map.
        depth: convolutions before the two that predict.
        top_k_in_training: the best anchors of each map that go into NMS; how many of all maps come out of it.
        top_k: likewise, in evaluation.
        score_threshold: of the proposals.
        samples: anchors of an image that are learned from.
        positive_fraction: of these.
    """

    anchor_sides: tuple[tuple[int, ...], ...]
    depth: int = 1
    top_k_in_training: tuple[int, int] = (2000, 2000)
    top_k: tuple[int, int] = (1000, 1000)
    score_threshold: float = 0.0
    samples: int = 256
    positive_fraction: float = 0.5


class RpnHeads(NamedTuple):
    """What the network says about the anchors of a batch."""

    objectness: Tensor  # (B, N) logits
    deltas: Tensor  # (B, N, 4)
    anchors_xyxy: Tensor  # (N, 4)
    level_sizes: tuple[int, ...]


class _RpnHead(nn.Module):
    """The layers, with torchvision's key names."""

    def __init__(self, channels: int, anchors_per_cell: int, depth: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)) for _ in range(depth))
        )
        self.cls_logits = nn.Conv2d(channels, anchors_per_cell, 1)
        self.bbox_pred = nn.Conv2d(channels, anchors_per_cell * 4, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.conv(feature_map)
        return self.cls_logits(hidden), self.bbox_pred(hidden)


class RegionProposalNetwork(nn.Module):
    """Proposes regions from feature maps.

    Args:
        channels: of the maps.
        config: how it looks.
    """

    def __init__(self, channels: int, config: RpnConfig) -> None:
        super().__init__()
        self.config = config
        self.head = _RpnHead(channels, len(config.anchor_sides[0]) * len(ASPECT_RATIOS), config.depth)

    def forward(
        self, maps: Sequence[Tensor], canvas_hw: tuple[int, int], anchor_sizes_wh: Tensor | None = None
    ) -> RpnHeads:
        """Predict for every anchor.

        Args:
            maps: (B, C, H, W) for each entry of `anchor_sides`.
            canvas_hw: height and width of the network's input.
            anchor_sizes_wh: (K, 2) in pixels in place of those of `anchor_sides`, from the first map to the last.
        """
        logits, deltas = zip(*(self.head(feature_map) for feature_map in maps), strict=True)
        grids = [(feature_map.shape[2], feature_map.shape[3]) for feature_map in maps]
        levels = anchor_levels(self.config.anchor_sides, grids, canvas_hw)
        anchors = torch.from_numpy(np.concatenate([level.priors() for level in levels])).to(maps[0].device)
        if anchor_sizes_wh is not None:
            anchors = _resized(anchors, anchor_sizes_wh, levels)
        return RpnHeads(
            objectness=flatten_levels(list(logits), 1)[..., 0],
            deltas=flatten_levels(list(deltas), 4),
            anchors_xyxy=anchors,
            level_sizes=tuple(level.size for level in levels),
        )

    def propose(self, heads: RpnHeads, image_size_hw: Tensor) -> Proposals:
        """The best boxes after NMS on each map, as many as `top_k` says, without gradients.

        Args:
            heads: what `forward` gave.
            image_size_hw: (B, 2) that the proposals are clipped to.
        """
        before_nms, after_nms = self.config.top_k_in_training if self.training else self.config.top_k
        attributes = DecodeNmsAttributes(
            box_coding="anchor_delta",
            delta_clip=DELTA_CLIP,
            multi_label=True,
            pre_nms_top_k=before_nms,
            top_k_scope="class",
            clip_to_image=True,
            min_size=SMALLEST_SIDE,
            max_detections=after_nms,
        )
        found = decode_nms(
            heads.deltas.detach(),
            _levels_as_classes(heads.objectness.detach(), heads.level_sizes),
            attributes=attributes,
            score_threshold=self.config.score_threshold,
            iou_threshold=NMS_IOU,
            priors=heads.anchors_xyxy,
            image_size_hw=image_size_hw,
        )
        return Proposals(boxes_xyxy=found.boxes_xyxy, counts=found.num_detections[:, 0].long())

    def loss(self, heads: RpnHeads, targets: Targets) -> dict[str, Tensor]:
        """`objectness` and `proposals`, the losses of both outputs over the sampled anchors."""
        class_terms, box_terms, count = [], [], 0
        for logits, deltas, boxes in zip(heads.objectness, heads.deltas, targets.boxes_xyxy, strict=True):
            boxes = boxes.to(logits.device)
            assigned = assign_by_iou(
                heads.anchors_xyxy, boxes, foreground_iou=FOREGROUND_IOU, background_iou=BACKGROUND_IOU
            )
            chosen = choose_samples(
                assigned >= 0,
                assigned == BACKGROUND,
                count=self.config.samples,
                positive_fraction=self.config.positive_fraction,
            )
            positive = chosen[assigned[chosen] >= 0]
            wanted = (assigned[chosen] >= 0).to(logits.dtype)
            class_terms.append(functional.binary_cross_entropy_with_logits(logits[chosen], wanted, reduction="sum"))
            wanted_deltas = encode_deltas(boxes[assigned[positive]], heads.anchors_xyxy[positive])
            box_terms.append(
                functional.smooth_l1_loss(deltas[positive], wanted_deltas, beta=SMOOTH_L1_BETA, reduction="sum")
            )
            count += len(chosen)
        divisor = max(count, 1)
        return {
            "objectness": torch.stack(class_terms).sum() / divisor,
            "proposals": torch.stack(box_terms).sum() / divisor,
        }


def _levels_as_classes(objectness: Tensor, level_sizes: tuple[int, ...]) -> Tensor:
    """Logits (B, N, L) of (B, N): each anchor in the column of its map, no candidate in the others.

    So top-k and NMS "of a class" are those of one map, as proposals need them.
    """
    num_levels = len(level_sizes)
    columns = [
        functional.pad(part[..., None], (level, num_levels - 1 - level), value=-math.inf)
        for level, part in enumerate(torch.split(objectness, list(level_sizes), dim=1))
    ]
    return torch.cat(columns, dim=1)


def anchor_levels(
    anchor_sides: Sequence[Sequence[int]], grids_hw: Sequence[tuple[int, int]], canvas_hw: tuple[int, int]
) -> tuple[AnchorLevel, ...]:
    """Anchors of every map, about the corners of its cells."""
    levels = []
    for sides, grid_hw in zip(anchor_sides, grids_hw, strict=True):
        cells = tuple((-width / 2, -height / 2, width / 2, height / 2) for width, height in cell_sizes_wh(sides))
        stride_hw = float(canvas_hw[0] // grid_hw[0]), float(canvas_hw[1] // grid_hw[1])
        levels.append(AnchorLevel(grid_hw=grid_hw, stride_hw=stride_hw, cell_boxes_xyxy=cells))
    return tuple(levels)


def cell_sizes_wh(sides: Sequence[int]) -> list[tuple[float, float]]:
    """Widths and heights of a cell's anchors, their halves rounded to whole pixels as torchvision does."""
    roots = [math.sqrt(ratio) for ratio in ASPECT_RATIOS]
    return [(2.0 * round(side / root / 2), 2.0 * round(side * root / 2)) for root in roots for side in sides]


def _resized(anchors_xyxy: Tensor, sizes_wh: Tensor, levels: Sequence[AnchorLevel]) -> Tensor:
    """Anchors (N, 4) about the same centres with the sizes (K, 2) of all levels' cells."""
    counts = [len(level.cell_boxes_xyxy) for level in levels]
    cells = [level.grid_hw[0] * level.grid_hw[1] for level in levels]
    of_maps = zip(torch.split(sizes_wh, counts), cells, strict=True)
    halves = torch.cat([part.repeat(count, 1) for part, count in of_maps]) / 2  # (N, 2)
    centres = (anchors_xyxy[:, :2] + anchors_xyxy[:, 2:]) / 2
    return torch.cat([centres - halves, centres + halves], dim=1)
