"""R-CNN's box deltas in torch, both ways; `boxwright.core.decode` is the reference of the decoding.

Source: Girshick et al., R-CNN, CVPR 2014, appendix C.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# exp() of the width and height deltas is bounded so that boxes grow at most 62.5-fold.
DELTA_CLIP = math.log(1000.0 / 16)
_SMALLEST_SIDE = 1e-3
Weights = tuple[float, float, float, float]


def encode_deltas(boxes_xyxy: Tensor, anchors_xyxy: Tensor, weights: Weights = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Deltas (..., 4) that turn anchors (..., 4) into boxes (..., 4)."""
    anchor_sizes = anchors_xyxy[..., 2:] - anchors_xyxy[..., :2]
    sizes = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=_SMALLEST_SIDE)
    shift = (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:] - anchors_xyxy[..., :2] - anchors_xyxy[..., 2:]) / 2
    deltas = torch.cat([shift / anchor_sizes, (sizes / anchor_sizes).log()], dim=-1)
    return deltas * deltas.new_tensor(weights)


def decode_deltas(deltas: Tensor, anchors_xyxy: Tensor, weights: Weights = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Boxes (..., 4) xyxy of deltas (..., 4) to anchors (..., 4)."""
    deltas = deltas / deltas.new_tensor(weights)
    anchor_sizes = anchors_xyxy[..., 2:] - anchors_xyxy[..., :2]
    centres = (anchors_xyxy[..., :2] + anchors_xyxy[..., 2:]) / 2 + deltas[..., :2] * anchor_sizes
    half_sizes = deltas[..., 2:].clamp(max=DELTA_CLIP).exp() * anchor_sizes / 2
    return torch.cat([centres - half_sizes, centres + half_sizes], dim=-1)
