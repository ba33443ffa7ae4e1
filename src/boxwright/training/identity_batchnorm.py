"""BatchNorm layers that do nothing but add a bias, and giving them real statistics without changing the function.

Checkpoints that were rebuilt from an exported model carry such layers: the normalisation was folded into the
convolution, mean 0 and variance 1 were left behind. In evaluation all is well; the first training step normalises by
the batch's own statistics instead and destroys the function.

A layer y = gamma * (x - mean) / sqrt(var + eps) + beta is y = a * x + b with a = gamma / sqrt(var + eps) and
b = beta - a * mean. Any new mean m and variance v keep that function with gamma' = a * sqrt(v + eps) and
beta' = b + a * m. So m and v can be those that x really has on training images, and the batch statistics then fit.
Since no layer's function changes, all layers are measured in one pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# An identity layer's statistics are exactly 0 and 1 in the files at hand; this allows for a changed number format.
_TOLERANCE = 1e-4


def has_identity_batchnorm(module: nn.Module) -> bool:
    """Whether most BatchNorm layers hold statistics of mean 0 and variance 1, as no trained layer does."""
    layers = _layers(module)
    return sum(map(_is_identity, layers)) > len(layers) / 2


def _layers(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats]


def _is_identity(layer: nn.BatchNorm2d) -> bool:
    assert layer.running_mean is not None and layer.running_var is not None
    return bool((layer.running_mean.abs() <= _TOLERANCE).all() and ((layer.running_var - 1).abs() <= _TOLERANCE).all())


class _Moments:
    """Mean and variance of each channel over all batches, accumulated in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | None = None
        self.total_squares: Tensor | None = None

    def add(self, features: Tensor) -> None:
        pixels = features.detach().double().transpose(0, 1).flatten(1)  # (channels, values)
        self.count += pixels.shape[1]
        total, squares = pixels.sum(dim=1), pixels.square().sum(dim=1)
        self.total = total if self.total is None else self.total + total
        self.total_squares = squares if self.total_squares is None else self.total_squares + squares

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        assert self.total is not None and self.total_squares is not None
        mean = self.total / self.count
        return mean, (self.total_squares / self.count - mean.square()).clamp(min=0)


@torch.no_grad()
def reestimate_batchnorm(module: nn.Module, batches: Iterable[Tensor]) -> int:
    """Give the BatchNorm layers the statistics of their input on these images; the evaluated function stays.

    Args:
        module: to change; it is left in the mode it came in.
        batches: images (B, 3, H, W) on the module's device.

    Returns:
        The number of layers changed; 0 where there are no batches.
    """
    was_training = module.training
    module.eval()
    moments = {layer: _Moments() for layer in _layers(module)}
    hooks = [
        layer.register_forward_pre_hook(lambda own, inputs, m=moment: _record(m, inputs))
        for layer, moment in moments.items()
    ]
    try:
        for images in batches:
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
        module.train(was_training)
    measured = {layer: moment for layer, moment in moments.items() if moment.count > 0}
    for layer, moment in measured.items():
        _set_statistics(layer, *moment.mean_and_variance())
    return len(measured)


def _record(moments: _Moments, inputs: tuple[Any, ...]) -> None:
    moments.add(inputs[0])


def _set_statistics(layer: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    assert layer.running_mean is not None and layer.running_var is not None and layer.affine
    slope = layer.weight.double() / (layer.running_var.double() + layer.eps).sqrt()
    offset = layer.bias.double() - slope * layer.running_mean.double()
    layer.weight.copy_(slope * (variance + layer.eps).sqrt())
    layer.bias.copy_(offset + slope * mean)
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)
