"""How many channels the feature maps of a timm model have."""

from __future__ import annotations

from timm.models import FeatureInfo
from torch import nn


def stage_widths(backbone: nn.Module) -> list[int]:
    """Channels of each feature map of a timm model that was made with `features_only=True`, in its order."""
    info = backbone.feature_info
    assert isinstance(info, FeatureInfo)
    return [int(width) for width in info.channels()]
