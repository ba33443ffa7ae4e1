"""Cross-iteration batch normalisation: statistics over several batches, for runs whose batches are small.

The mean of a convolution's output in an earlier batch is m(w_old); with today's weights it would be about
m(w_old) + dm/dw (w_now - w_old), and the mean of squares likewise. Since a channel's output depends on that channel's
weights alone, one backward pass through the convolution gives the derivatives of all channels. Only the weights of the
convolution before the normalisation count, as in the paper. The gradient passes through the correction too: were
earlier statistics constants, larger weights would pay, and grow for ever.

In evaluation, and in the state dict, such a layer is the plain BatchNorm that it took the place of.

Source: Yao et al., Cross-Iteration Batch Normalization, CVPR 2021, eq. 3 to 11.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from boxwright.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class _PastBatch:
    """What is remembered of a batch: its statistics (C,), the weights then, and the statistics' derivatives by them."""

    mean: Tensor
    mean_of_squares: Tensor
    weight: Tensor
    mean_slope: Tensor
    squares_slope: Tensor

    def today(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The statistics with today's weights, to first order."""
        change = (weight - self.weight).flatten(1)  # (C, inputs of a channel)
        mean = self.mean + (self.mean_slope.flatten(1) * change).sum(dim=1)
        squares = self.mean_of_squares + (self.squares_slope.flatten(1) * change).sum(dim=1)
        # Squares below the squared mean are no statistics of anything: the approximation has left its range.
        return mean, torch.maximum(squares, mean.square())


class CrossIterationNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d that in training normalises by this batch and the last ones together.

    Args:
        norm: the layer whose parameters and statistics it takes over (shared, not copied).
        convolution: whose output it normalises.
        window: batches, this one included.
    """

    def __init__(self, norm: nn.BatchNorm2d, convolution: nn.Conv2d, window: int) -> None:
        super().__init__(norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=norm.affine)
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.training = norm.training
        # Not submodules: the state dict is to stay as it was.
        object.__setattr__(self, "_replaced", norm)
        object.__setattr__(self, "_convolution", convolution)
        self._past: deque[_PastBatch] = deque(maxlen=window - 1)
        self.is_active = False

    def forget(self) -> None:
        """Drop what is remembered of earlier batches."""
        self._past.clear()

    def forward(self, features: Tensor) -> Tensor:
        if not (self.training and self.is_active and torch.is_grad_enabled()):
            return self._after(super().forward(features))
        values = features.float()
        mean, squares = values.mean(dim=(0, 2, 3)), values.square().mean(dim=(0, 2, 3))  # (C,) each
        weight: Tensor = self._convolution.weight  # type: ignore[union-attr, assignment]
        means, all_squares = [mean], [squares]
        for past in self._past:
            earlier_mean, earlier_squares = past.today(weight)
            means.append(earlier_mean)
            all_squares.append(earlier_squares)
        joint_mean = torch.stack(means).mean(dim=0)
        joint_variance = (torch.stack(all_squares).mean(dim=0) - joint_mean.square()).clamp(min=0)
        self._remember(mean, squares, weight, count=values.numel() // values.shape[1])
        self._update_running(joint_mean.detach(), joint_variance.detach(), values.numel() // values.shape[1])
        slope = (joint_variance + self.eps).rsqrt() * (self.weight if self.affine else 1.0)
        offset = (self.bias if self.affine else 0.0) - joint_mean * slope
        normalised = values * slope[:, None, None] + offset[:, None, None]
        return self._after(normalised.to(features.dtype))

    def _remember(self, mean: Tensor, squares: Tensor, weight: Tensor, count: int) -> None:
        if weight.requires_grad:
            # A value's share of a mean, 1 / count, would vanish in half precision on its way back.
            scale = count**0.5
            (mean_slope,) = torch.autograd.grad(scale * mean.sum(), weight, retain_graph=True)
            (squares_slope,) = torch.autograd.grad(scale * squares.sum(), weight, retain_graph=True)
            mean_slope, squares_slope = mean_slope / scale, squares_slope / scale
        else:
            mean_slope = squares_slope = torch.zeros_like(weight)
        self._past.append(
            _PastBatch(
                mean=mean.detach(),
                mean_of_squares=squares.detach(),
                weight=weight.detach().clone(),
                mean_slope=mean_slope,
                squares_slope=squares_slope,
            )
        )

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        part = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, part)
        self.running_var.lerp_(variance * count / max(1, count - 1), part)

    def _after(self, normalised: Tensor) -> Tensor:
        """What a layer of timm that joins normalisation and activation does behind the normalisation."""
        for name in ("drop", "act"):
            step = getattr(self._replaced, name, None)
            if isinstance(step, nn.Module):
                normalised = step(normalised)
        return normalised


def insert_cross_iteration_norm(module: nn.Module, window: int, example: Tensor) -> tuple[str, ...]:
    """Replace the BatchNorm layers that directly follow a convolution.

    Args:
        module: to change.
        window: batches to normalise over.
        example: images (1, 3, H, W); run once to see which layer follows which.

    Returns:
        The names of the replaced layers.

    Raises:
        InputError: where there are none.
    """
    pairs = _find_pairs(module, example)
    for name, (norm, convolution) in pairs.items():
        _put(module, name, CrossIterationNorm2d(norm, convolution, window))
    if not pairs:
        raise InputError(
            "--cross-iteration-norm",
            expected="a network with batch normalisation behind its convolutions",
            got="one without",
            fix="leave the option out",
        )
    return tuple(pairs)


def fold_cross_iteration_norm(module: nn.Module) -> None:
    """Put the plain BatchNorm layers back, with what was learned since."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, CrossIterationNorm2d):
            _put(module, name, layer._replaced.train(layer.training))  # type: ignore[union-attr]


def forget_past_batches(module: nn.Module) -> None:
    """Drop what is remembered, as at the start of an epoch, so that a resumed run does what one in one go does."""
    for layer in module.modules():
        if isinstance(layer, CrossIterationNorm2d):
            layer.forget()


def look_back(module: nn.Module, *, is_active: bool) -> None:
    """Say whether earlier batches count; the weights move too quickly for that while the learning rate rises."""
    for layer in module.modules():
        if isinstance(layer, CrossIterationNorm2d):
            layer.is_active = is_active


def _find_pairs(module: nn.Module, example: Tensor) -> dict[str, tuple[nn.BatchNorm2d, nn.Conv2d]]:
    made_by: dict[int, nn.Conv2d] = {}
    outputs: list[Tensor] = []  # kept, or another tensor could get the same id
    pairs: dict[str, tuple[nn.BatchNorm2d, nn.Conv2d]] = {}
    used: dict[nn.Module, int] = {}

    def note_output(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        outputs.append(output)
        made_by[id(output)] = layer

    def note_input(name: str, layer: nn.BatchNorm2d, inputs: tuple[Any, ...]) -> None:
        used[layer] = used.get(layer, 0) + 1
        convolution = made_by.get(id(inputs[0]))
        if convolution is not None:
            pairs[name] = (layer, convolution)

    hooks = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            hooks.append(layer.register_forward_hook(note_output))
        elif isinstance(layer, nn.BatchNorm2d):
            hooks.append(layer.register_forward_pre_hook(lambda own, inputs, n=name: note_input(n, own, inputs)))
    was_training = module.training
    try:
        with torch.no_grad():
            module.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
        module.train(was_training)
    # A layer that a pass uses twice (shared between levels) has no single batch to remember.
    return {name: pair for name, pair in pairs.items() if used[pair[0]] == 1}


def _put(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)
