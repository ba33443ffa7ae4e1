"""Self-adversarial training: the network first alters a batch so that it sees no object there, then learns from it.

Source: Bochkovskiy et al., YOLOv4, 2020, sec. 3.3; the step along the sign of the gradient is Goodfellow et al.,
Explaining and Harnessing Adversarial Examples, ICLR 2015, sec. 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from boxwright.core.preprocess import Preprocess
from boxwright.models import DetectionModel, Targets
from boxwright.training.drop_block import DropBlock

# Of 255 grey levels; about what is just not seen.
STEP_GREY_LEVELS = 4.0
GRADIENT_SCALE = 1024.0
_STREAM = 0x5A7


def is_altered(probability: float, *, seed: int, epoch: int, batch_index: int) -> bool:
    """Whether a batch is altered, drawn from the run's seed and the batch's place alone."""
    return bool(np.random.default_rng([seed, epoch, batch_index, _STREAM]).random() < probability)


def alter_against(module: DetectionModel, images: Tensor, pixel_mask: Tensor | None, preprocess: Preprocess) -> Tensor:
    """Move every pixel by a few grey levels to where the network is surer that there is no object.

    Weights, their gradients and the statistics of normalisation stay as they are.

    Args:
        module: the detector, in training mode.
        images: (B, 3, H, W), preprocessed.
        pixel_mask: (B, H, W), for models that take one.
        preprocess: that made the images; tells what a grey level is.

    Returns:
        (B, 3, H, W), within the range of real images.
    """
    altered = images.detach().clone().requires_grad_(True)
    no_objects = Targets(
        boxes_xyxy=[images.new_zeros(0, 4, dtype=torch.float32) for _ in images],
        class_ids=[torch.zeros(0, dtype=torch.int64, device=images.device) for _ in images],
    )
    with _as_found(module), torch.enable_grad():
        loss = module.training_loss(altered, no_objects, pixel_mask)["loss"]
        # The sign alone counts, and in half precision gradients of pixels would vanish.
        (gradient,) = torch.autograd.grad(loss * GRADIENT_SCALE, altered)
    step, lowest, highest = (value.to(images) for value in _grey_levels(preprocess))
    moved = images - step * gradient.sign().to(images.dtype)
    return torch.minimum(torch.maximum(moved, lowest), highest).detach()


def _grey_levels(preprocess: Preprocess) -> tuple[Tensor, Tensor, Tensor]:
    """The step, and black and white, in the units of the network's input, (1, 3, 1, 1) each."""
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    values = (STEP_GREY_LEVELS * preprocess.scale / std, -mean / std, (255 * preprocess.scale - mean) / std)
    step, black, white = (value.view(1, 3, 1, 1) for value in values)
    return step, black, white


@contextmanager
def _as_found(module: nn.Module) -> Iterator[None]:
    """Let normalisation and dropout behave as in evaluation, so that looking leaves no trace in their state."""
    kinds = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, DropBlock)
    layers = [layer for layer in module.modules() if isinstance(layer, kinds) and layer.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()
