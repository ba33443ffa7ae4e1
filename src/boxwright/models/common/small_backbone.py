"""A narrow ResNet under timm's name `resnet10_narrow`, for the smallest variants; importing this file registers it.

Depthwise convolutions, which make mobile networks small, learn slowly from random weights and cost a CPU as much time
in training as plain ones of several times their work. The smallest variants are there to learn within minutes.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

NAME = "resnet10_narrow"


@register_model
def resnet10_narrow(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-10 of a quarter of the usual width, with three 3x3 convolutions as its stem (He et al., Bag of Tricks).

    Args:
        pretrained: must be False; there are no weights.
        options: what timm's `create_model` passes on, such as `features_only`.
    """
    shape: dict[str, Any] = {
        "block": BasicBlock,
        "layers": (1, 1, 1, 1),
        "channels": (16, 32, 64, 128),
        "stem_type": "deep",
        "stem_width": 8,
    }
    # Named, or timm warns that it knows nothing of weights.
    options["pretrained_cfg"] = {"first_conv": "conv1.0", "classifier": "fc"}
    network: nn.Module = build_model_with_cfg(ResNet, NAME, pretrained, **{**shape, **options})
    return network
