"""Quantization-aware training: layers compute with numbers rounded as INT8 will round them, and learn to live with it.

Before a convolution or a matrix product its input is rounded to 255 steps of what the batch spans, and its weights to
127 steps of each output channel's largest; gradients pass the rounding as if it were not there. What else is rounded is
what the engine rounds that the network is trained for, after `core.placement`: where that scales channels for
free, a depthwise convolution's input has a range for each channel; where all tensors between two layers are integers,
the output of a convolution and its batch normalisation is rounded before the activation function unless that is a
ReLU, and the sigmoid is too where SiLU is a module.
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
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.core.errors import InputError, MissingDependencyError
from boxwright.core.placement import LOWEST_BEFORE_SILU, PORTABLE, EngineRules

# As calibration has it: smaller products are arithmetic in disguise.
_FEWEST_WEIGHTS = 32
_LARGEST_UINT8 = 255
# Nodes of the graph of gradients.
_CLIPPING = frozenset({"ReluBackward0", "HardtanhBackward0", "ClampBackward1", "ClampMinBackward0"})
_SILU = ({"SiluBackward0"}, {"SigmoidBackward0", "MulBackward0"})


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

    def __init__(self, quantizer: nn.Module, lowest: float | None) -> None:
        self.quantizer = quantizer
        self.lowest = lowest

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        if self.lowest is not None:
            output = output.clamp(min=self.lowest)
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
    found = _look_at(module, example)
    for name in found.followed:
        layer = module.get_submodule(name)
        layer.input_quantizer, layer.weight_quantizer = make_quantizers()
        if not isinstance(layer, nn.Conv2d):
            layer.__class__ = FakeQuantizedLinear
            continue
        is_depthwise = layer.groups == layer.in_channels and layer.groups > 1
        layer.__class__ = FakeQuantizedConv2d
        cast(FakeQuantizedConv2d, layer).has_ranges_by_channel = is_depthwise and rules.rescales_channels
        if rules.style == "fused":
            for last, readers in found.ends[name].items():
                _round_output(module.get_submodule(last), readers, make_quantizers()[0])
    if rules.style == "fused":
        for layer in module.modules():
            if type(layer) is nn.SiLU:
                layer.__class__ = FakeQuantizedSiLU
    if not found.followed:
        raise InputError(
            "--qat",
            expected="a network with convolutions before those that predict",
            got="one without",
            fix="leave the option out",
        )
    return found.followed


def _round_output(layer: nn.Module, readers: set[str], quantizer: nn.Module) -> None:
    """Round what a convolution and its normalisation give as ONNX Runtime does, see `calibration.fused_regions`."""
    is_folded = isinstance(layer, (nn.Conv2d, nn.modules.batchnorm._BatchNorm))  # other normalisations are not
    if not is_folded or readers <= _CLIPPING:
        return  # in float there; or rounded behind the clipping, which the next layer's input is
    layer.register_forward_hook(_RoundOutput(quantizer, LOWEST_BEFORE_SILU if readers in _SILU else None))


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


@dataclass(frozen=True)
class _Found:
    """What a run of the network showed.

    Attributes:
        followed: plain convolutions and products that another one follows, in the order of the modules.
        ends: by the name of each convolution the modules that end it, itself or its batch normalisations, each with
            the kind of what reads its result in the graph of gradients, e.g. "ReluBackward0".
    """

    followed: tuple[str, ...]
    ends: dict[str, dict[str, set[str]]]


def _look_at(module: nn.Module, example: Tensor) -> _Found:
    results: dict[str, list[tuple[Tensor, Any]]] = {}
    normalised: dict[str, list[tuple[Tensor, Any]]] = {}
    hooks = []

    def note(name: str, found: dict[str, list[tuple[Tensor, Any]]], tensor: Tensor, out: Tensor) -> None:
        # Now: what is changed in place later has another one.
        found.setdefault(name, []).append((tensor, out.grad_fn))

    for name, layer in module.named_modules():
        if isinstance(layer, (nn.modules.batchnorm._NormBase, nn.GroupNorm)):
            hooks.append(
                layer.register_forward_hook(lambda _, inputs, out, n=name: note(n, normalised, inputs[0], out))
            )
        # Subclasses compute something of their own, and are left alone.
        if type(layer) in (nn.Conv2d, nn.Linear) and layer.weight.numel() >= _FEWEST_WEIGHTS:
            hooks.append(layer.register_forward_hook(lambda _, inputs, out, n=name: note(n, results, out, out)))
    was_training = module.training
    try:
        with torch.enable_grad():  # the graph of gradients says which follows which
            module.eval()(example.detach().requires_grad_(True))
    finally:
        for hook in hooks:
            hook.remove()
        module.train(was_training)
    made_by = {id(node): name for name, outs in results.items() for _, node in outs if node is not None}
    readers = _readers_of([node for outs in results.values() for _, node in outs if node is not None])
    norms_of: dict[int, list[tuple[str, Any]]] = {}
    for name, entries in normalised.items():
        for tensor, node in entries:
            norms_of.setdefault(id(tensor), []).append((name, node))
    ends: dict[str, dict[str, set[str]]] = {}
    for name, outs in results.items():
        for out, node in outs:
            for last, last_node in norms_of.get(id(out), [(name, node)]):
                ends.setdefault(name, {}).setdefault(last, set()).update(readers.get(id(last_node), ()))
    followed = {made_by[key] for key in readers if key in made_by}
    return _Found(tuple(name for name in results if name in followed), ends)


def _readers_of(roots: Iterable[Any]) -> dict[int, set[str]]:
    """Of all nodes of the graph of gradients that those given depend on, by id, the kinds of those that read them."""
    pending = list(roots)
    seen: set[int] = set()
    readers: dict[int, set[str]] = {}
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        for parent, _ in node.next_functions:
            if parent is not None:
                readers.setdefault(id(parent), set()).add(node.name())
                pending.append(parent)
    return readers
