"""Quantization-aware training: layers compute with numbers rounded as INT8 will round them, and learn to live with it.

Before a convolution or a matrix product its input is rounded to 255 steps of what the batch spans (for depthwise
convolutions, of what each channel spans), and its weights to 127 steps of each output channel's largest; gradients
pass the rounding as if it were not there. Ranges come from the batch itself, so there is nothing to keep but the
weights: the state dict stays as it was, and what is exported is the plain network, for `boxwright calibrate` to
quantize. BatchNorm, which export folds into the weights, scales whole output channels and so changes no rounding. What
calibration leaves in float by itself, the layers that predict, is left alone here too.

Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
CVPR 2018, sec. 3. The rounding and its gradient are torchao's.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.core.errors import InputError, MissingDependencyError

# As calibration has it: smaller products are arithmetic in disguise.
_FEWEST_WEIGHTS = 32


class FakeQuantizedConv2d(nn.Conv2d):
    """A convolution of rounded numbers; only ever made of an `nn.Conv2d` by changing its class."""

    input_quantizer: nn.Module
    weight_quantizer: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        if self.groups == self.in_channels and self.groups > 1:
            rounded = _round_rows(self.input_quantizer, input.transpose(0, 1)).transpose(0, 1)
        else:
            rounded = _round_rows(self.input_quantizer, input[None])[0]
        # In one order of memory, which the CPU's convolutions are fastest with.
        rounded = rounded.contiguous(memory_format=torch.channels_last)
        result: Tensor = self._conv_forward(rounded, _round_rows(self.weight_quantizer, self.weight), self.bias)
        return result


class FakeQuantizedLinear(nn.Linear):
    """A matrix product of rounded numbers; only ever made of an `nn.Linear` by changing its class."""

    input_quantizer: nn.Module
    weight_quantizer: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        rounded = _round_rows(self.input_quantizer, input[None])[0]
        result: Tensor = functional.linear(rounded, _round_rows(self.weight_quantizer, self.weight), self.bias)
        return result


def _round_rows(quantizer: nn.Module, values: Tensor) -> Tensor:
    """Round each entry of the first axis with a scale of its own, in float32 whatever the precision of the run."""
    with torch.autocast(values.device.type, enabled=False):
        rounded: Tensor = quantizer(values.float().reshape(len(values), -1))
    return rounded.reshape(values.shape).to(values.dtype)


def insert_fake_quantization(module: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Let all layers but those that predict compute with rounded numbers, in training and in evaluation.

    Args:
        module: to change.
        example: images (1, 3, H, W); run once to see which layers predict.

    Returns:
        The names of the changed layers.

    Raises:
        MissingDependencyError: where torchao is not installed.
        InputError: where there is no layer to change.
    """
    make_quantizers = _quantizer_factory()
    names = _names_before_predictions(module, example)
    for name in names:
        layer = module.get_submodule(name)
        layer.input_quantizer, layer.weight_quantizer = make_quantizers()
        layer.__class__ = FakeQuantizedConv2d if isinstance(layer, nn.Conv2d) else FakeQuantizedLinear
    if not names:
        raise InputError(
            "--qat",
            expected="a network with convolutions before those that predict",
            got="one without",
            fix="leave the option out",
        )
    return names


def _quantizer_factory() -> Any:
    """Makes pairs of torchao's modules, which hold no tensors: of activations, and of weights."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # torchao talks of its extensions
            warnings.simplefilter("ignore")
            logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
            qat = importlib.import_module("torchao.quantization.qat")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            error.name or "torchao", extra="train", needed_for="boxwright train --qat"
        ) from error

    def make() -> tuple[nn.Module, nn.Module]:
        # A row of `per_token` is what `_round_rows` makes a row of.
        activations = qat.IntxFakeQuantizeConfig(torch.uint8, "per_token", is_symmetric=False)
        weights = qat.IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=True)
        return qat.IntxFakeQuantizer(activations), qat.IntxFakeQuantizer(weights)

    return make


def _names_before_predictions(module: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Plain convolutions and products that another one follows, in the order of the modules."""
    results: dict[str, list[Tensor]] = {}
    hooks = []
    for name, layer in module.named_modules():
        # Subclasses compute something of their own, and are left alone.
        if type(layer) in (nn.Conv2d, nn.Linear) and layer.weight.numel() >= _FEWEST_WEIGHTS:
            hooks.append(
                layer.register_forward_hook(lambda _, inputs, out, n=name: results.setdefault(n, []).append(out))
            )
    was_training = module.training
    try:
        with torch.enable_grad():  # the graph of gradients says which follows which
            module.eval()(example.detach().requires_grad_(True))
    finally:
        for hook in hooks:
            hook.remove()
        module.train(was_training)
    made_by = {id(out.grad_fn): name for name, outs in results.items() for out in outs if out.grad_fn is not None}
    roots = [out.grad_fn for outs in results.values() for out in outs if out.grad_fn is not None]
    followed = {made_by[key] for key in _ids_before(roots) if key in made_by}
    return tuple(name for name in results if name in followed)


def _ids_before(roots: Iterable[Any]) -> set[int]:
    """Ids of all nodes of the graph of gradients that those given depend on."""
    pending = [parent for root in roots for parent, _ in root.next_functions]
    seen: set[int] = set()
    while pending:
        node = pending.pop()
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            pending.extend(parent for parent, _ in node.next_functions)
    return seen
