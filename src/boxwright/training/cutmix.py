"""CutMix: a rectangle of one image is put into another, and the label is shared by area.

Source: Yun et al., CutMix, ICCV 2019, sec. 3.1 and algorithm A1.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor


def cutmix(
    images: Tensor, targets: Tensor, random: np.random.Generator, *, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mix every image of a batch with another one.

    Args:
        images: (B, 3, H, W); not changed.
        targets: (B, C) probabilities of the classes.
        random: of the batch.
        alpha: of the Beta distribution that the part of the own image is drawn from; 1 is uniform.

    Returns:
        Images and targets of the same shapes; the targets' weights are the very areas.
    """
    height, width = images.shape[2:]
    partner = random.permutation(len(images)).tolist()
    cut = math.sqrt(1 - random.beta(alpha, alpha))
    middle_y, middle_x = random.integers(height), random.integers(width)
    half_h, half_w = height * cut / 2, width * cut / 2
    top, bottom = (round(min(max(y, 0), height)) for y in (middle_y - half_h, middle_y + half_h))
    left, right = (round(min(max(x, 0), width)) for x in (middle_x - half_w, middle_x + half_w))
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner][:, :, top:bottom, left:right]
    own_part = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, own_part * targets + (1 - own_part) * targets[partner]
