"""DropBlock: whole squares of features are taken out in training, in the last layers of the backbone.

The layers are put into a model by a transformation and do nothing in evaluation, so they are in no exported graph; they
hold no tensors, so the state dict stays as it was.

Source: Ghiasi et al., DropBlock, NeurIPS 2018, alg. 1 and sec. 3.1 for the schedule.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.core.errors import InputError
from boxwright.models import DetectionModel
from boxwright.training.backbone import backbone_layers

BLOCK_SIZE = 7
# The paper's best results have it in the last two groups of the backbone.
NUM_LAYERS = 2
_NAME = "drop_block"


class DropBlock(nn.Module):
    """Takes squares out of every channel and scales the rest up; the identity in evaluation.

    Args:
        block_size: side of the squares; smaller where the map is.

    Attributes:
        probability: part of the features that is taken out, about.
    """

    def __init__(self, block_size: int = BLOCK_SIZE) -> None:
        super().__init__()
        self.block_size = block_size
        self.probability = 0.0

    def forward(self, features: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return features
        height, width = features.shape[-2:]
        size = min(self.block_size, height, width)
        # Squares lie wholly inside, and each centre takes out size^2 features.
        rows, columns = height - size + 1, width - size + 1
        gamma = self.probability / size**2 * (height * width) / (rows * columns)
        centres = (
            torch.rand(*features.shape[:2], rows, columns, device=features.device) < gamma
        )  # (B, C, rows, columns)
        padded = functional.pad(centres.float(), [size - 1] * 4)
        kept = 1 - functional.max_pool2d(padded, size, stride=1)  # (B, C, H, W)
        scale = kept.numel() / kept.sum().clamp(min=1)
        return features * (kept * scale).to(features.dtype)


def insert_drop_block(module: DetectionModel) -> tuple[str, ...]:
    """Let DropBlock follow the last layers of the backbone.

    Args:
        module: to change.

    Returns:
        The names of the layers that it follows.

    Raises:
        InputError: where the family does not say what its backbone is, or it gives no feature maps.
    """
    layers = backbone_layers(module, needed_for="--drop-block")[-NUM_LAYERS:]
    names = tuple(layer.names[-1] for layer in layers)
    for name in names:
        layer = module.get_submodule(name)
        layer.add_module(_NAME, DropBlock().train(layer.training))
        # A Sequential calls what is added to it by itself.
        if not isinstance(layer, nn.Sequential):
            layer.register_forward_hook(_drop_output)
    return names


def _drop_output(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim != 4:
        raise InputError(
            "--drop-block",
            expected="a backbone whose layers give feature maps",
            got=f"{type(layer).__name__}, which gives {type(output).__name__}",
            fix="leave --drop-block out",
        )
    dropped: Tensor = layer.get_submodule(_NAME)(output)
    return dropped


def set_drop_probability(module: nn.Module, probability: float) -> None:
    """Set the part that every DropBlock of a model takes out."""
    for layer in module.modules():
        if isinstance(layer, DropBlock):
            layer.probability = probability
