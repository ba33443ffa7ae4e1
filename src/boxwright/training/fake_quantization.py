"""Quantization-aware training: layers compute with numbers rounded as INT8 will round them, and learn to live with it.

Before a convolution or a matrix product its input is rounded to 255 steps of what the batch spans, and its weights to
127 steps of each output channel's largest; gradients pass the rounding as if it were not there. What else is rounded is
what the engine rounds that the network is trained for, after `calibration.placement`: where that scales channels for
free, a depthwise convolution's input has a range for each channel; where all tensors between two layers are integers,
the output of a convolution and its normalisation is rounded before the activation function, and SiLU's sigmoid is too.
Ranges come from the batch itself, so there is nothing to keep but the
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
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.calibration.placement import PORTABLE, EngineRules
from boxwright.core.errors import InputError, MissingDependencyError

# As calibration has it: smaller products are arithmetic in disguise.
_FEWEST_WEIGHTS = 32
_LARGEST_UINT8 = 255


class FakeQuantizedConv2d(nn.Conv2d):
    """A convolution of rounded numbers; only ever made of an `nn.Conv2d` by changing its class."""

    input_quantizer: nn.Module
    weight_quantizer: nn.Module
    has_ranges_by_channel: bool

    def forward(self, input: Tensor) -> Tensor:
        if self.has_ranges_by_channel:
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


class FakeQuantizedSiLU(nn.SiLU):
    """SiLU with a sigmoid of 8 bits; only ever made of an `nn.SiLU` by changing its class."""

    def forward(self, input: Tensor) -> Tensor:
        gate = torch.sigmoid(input)
        rounded = torch.round(gate * _LARGEST_UINT8) / _LARGEST_UINT8
        return input * (gate + (rounded - gate).detach())


class _RoundOutput:
    """A forward hook that rounds what a module gives."""

    def __init__(self, quantizer: nn.Module) -> None:
        self.quantizer = quantizer

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return _round_rows(self.quantizer, output[None])[0]


def _round_rows(quantizer: nn.Module, values: Tensor) -> Tensor:
    """Round each entry of the first axis with a scale of its own, in float32 whatever the precision of the run."""
    with torch.autocast(values.device.type, enabled=False):
        rounded: Tensor = quantizer(values.float().reshape(len(values), -1))
    return rounded.reshape(values.shape).to(values.dtype)


def insert_fake_quantization(module: nn.Module, example: Tensor, rules: EngineRules = PORTABLE) -> tuple[str, ...]:
    """Let all layers but those that predict compute with rounded numbers, in training and in evaluation.

    Args:
        module: to change.
        example: images (1, 3, H, W); run once to see which layers predict.
        rules: of the engine that the network is trained for.

    Returns:
        The names of the changed layers.

    Raises:
        MissingDependencyError: where torchao is not installed.
        InputError: where there is no layer to change.
    """
    make_quantizers = _quantizer_factory(rules)
    names, normalisations = _names_before_predictions(module, example)
    for name in names:
        layer = module.get_submodule(name)
        layer.input_quantizer, layer.weight_quantizer = make_quantizers()
        if not isinstance(layer, nn.Conv2d):
            layer.__class__ = FakeQuantizedLinear
            continue
        is_depthwise = layer.groups == layer.in_channels and layer.groups > 1
        layer.__class__ = FakeQuantizedConv2d
        cast(FakeQuantizedConv2d, layer).has_ranges_by_channel = is_depthwise and rules.rescales_channels
        if rules.style == "fused":
            last = module.get_submodule(normalisations.get(name, name))
            last.register_forward_hook(_RoundOutput(make_quantizers()[0]))
    if rules.style == "fused":
        for layer in module.modules():
            if type(layer) is nn.SiLU:
                layer.__class__ = FakeQuantizedSiLU
    if not names:
        raise InputError(
            "--qat",
            expected="a network with convolutions before those that predict",
            got="one without",
            fix="leave the option out",
        )
    return names


def _quantizer_factory(rules: EngineRules) -> Any:
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
        # A token or a channel is what `_round_rows` makes a row of.
        weights = qat.IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=True)
        if rules.activation_type == "int8":
            activations = weights
        else:
            activations = qat.IntxFakeQuantizeConfig(torch.uint8, "per_token", is_symmetric=False)
        return qat.IntxFakeQuantizer(activations), qat.IntxFakeQuantizer(weights)

    return make


def _names_before_predictions(module: nn.Module, example: Tensor) -> tuple[tuple[str, ...], dict[str, str]]:
    """Plain convolutions and products that another one follows, in the order of the modules.

    Returns:
        Their names, and by these the names of the normalisations that read what they give.
    """
    results: dict[str, list[Tensor]] = {}
    normalised: dict[str, list[Tensor]] = {}
    hooks = []
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            hooks.append(
                layer.register_forward_hook(
                    lambda _, inputs, out, n=name: normalised.setdefault(n, []).append(inputs[0])
                )
            )
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
    norm_of = {id(tensor): name for name, tensors in normalised.items() for tensor in tensors}
    norms = {name: norm_of[id(out)] for name, outs in results.items() for out in outs if id(out) in norm_of}
    return tuple(name for name in results if name in followed), norms


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
