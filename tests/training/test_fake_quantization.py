"""Training with numbers rounded as INT8 rounds them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from boxwright.core.placement import rules_for
from boxwright.models import build_model, load_model
from boxwright.training import TrainConfig, train
from boxwright.training.fake_quantization import (
    FakeQuantizedConv2d,
    FakeQuantizedLinear,
    FakeQuantizedSiLU,
    insert_fake_quantization,
)
from boxwright.training.step_options import StepOptions

pytest.importorskip("torchao")


class Small(nn.Module):
    """A convolution, a depthwise one, a product, and two layers that predict; none of them followed by another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.thin = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.product = nn.Linear(8, 8)
        self.boxes = nn.Linear(8, 4)
        self.classes = nn.Conv2d(8, 5, 1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.thin(self.first(images).relu()).relu()
        rows = self.product(maps.flatten(2).transpose(1, 2)).relu()
        return {"box_regression": self.boxes(rows), "class_logits": self.classes(maps)}


def small() -> Small:
    torch.manual_seed(0)
    return Small()


def test_all_layers_but_those_that_predict_are_changed() -> None:
    module = small()
    keys = list(module.state_dict())
    assert insert_fake_quantization(module, torch.rand(1, 3, 8, 10)) == ("first", "thin", "product")
    assert isinstance(module.thin, FakeQuantizedConv2d)
    assert isinstance(module.product, FakeQuantizedLinear)
    assert type(module.boxes) is nn.Linear
    assert list(module.state_dict()) == keys


def test_numbers_are_rounded_to_steps_of_their_range() -> None:
    module = small()
    insert_fake_quantization(module, torch.rand(1, 3, 8, 10))
    seen: dict[str, torch.Tensor] = {}
    original = FakeQuantizedConv2d._conv_forward

    def spy(layer: nn.Conv2d, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        seen.setdefault("input", input)
        seen.setdefault("weight", weight)
        return original(layer, input, weight, bias)

    images = torch.randn(2, 3, 8, 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeQuantizedConv2d, "_conv_forward", spy)
        module(images)
    step = (images.max() - images.min()) / 255
    steps = seen["input"] / step
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert (seen["input"] - images).abs().max() <= step * 0.51
    weight = module.first.weight
    # Torchao's symmetric int8 reaches from -128 to 127 steps.
    steps = seen["weight"] / (weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127.5)
    assert torch.allclose(steps, steps.round(), atol=1e-3)


def test_channels_of_a_depthwise_layer_have_ranges_of_their_own() -> None:
    module = small()
    insert_fake_quantization(module, torch.rand(1, 3, 8, 10))
    quiet = torch.rand(2, 8, 8, 10)
    quiet[:, 1:] *= 1e-3
    exact = nn.functional.conv2d(quiet, module.thin.weight, module.thin.bias, padding=1, groups=8)
    error = (module.thin(quiet) - exact)[:, 1:].abs().max()
    assert error < 1e-3 * 0.03 + 0.01 * exact[:, 1:].std()


class WithNormalisation(nn.Module):
    """A normalised convolution with SiLU, a depthwise one with ReLU, one with LeakyReLU, and one that predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        nn.init.normal_(self.norm.running_mean)
        nn.init.constant_(self.norm.weight, 9.0)
        self.act = nn.SiLU(inplace=True)
        self.thin = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.leaky = nn.Conv2d(8, 8, 1)
        self.classes = nn.Conv2d(8, 5, 1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.thin(self.act(self.norm(self.first(images)))).relu()
        return {"class_logits": self.classes(nn.functional.leaky_relu(self.leaky(maps), 0.1))}


def number_of_steps(values: torch.Tensor) -> torch.Tensor:
    """How far values are from even steps of their own range, in steps."""
    step = (values.max().clamp(min=0) - values.min().clamp(max=0)) / 255
    return (values / step - (values / step).round()).abs().max()


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "tensorrt"])
def test_what_is_rounded_follows_the_engine(engine: str) -> None:
    """On ONNX Runtime integers before the activation function and in the sigmoid, and one scale for all channels."""
    torch.manual_seed(0)
    module = WithNormalisation().eval()
    keys = list(module.state_dict())
    images = torch.rand(1, 3, 8, 10) - 0.5
    assert insert_fake_quantization(module, images, rules_for(engine)) == ("first", "thin", "leaky")
    assert list(module.state_dict()) == keys
    is_fused = engine == "onnxruntime"
    assert number_of_steps(module.first(images)) > 0.1  # before its normalisation, which is a part of it
    maps = module.norm(module.first(images))
    assert (number_of_steps(maps) < 1e-3) == is_fused
    assert (maps.min().item() >= -5.05) == is_fused  # what SiLU makes nothing of
    assert (number_of_steps(module.leaky(maps)) < 1e-3) == is_fused
    probes = torch.linspace(0.3, 3, 40).reshape(1, 8, 1, 5)
    gates = module.act(probes.clone()) / probes
    assert ((gates * 255 - (gates * 255).round()).abs().max() < 2e-3) == is_fused
    assert number_of_steps(module.thin(maps)) > 0.1  # ReLU follows: the next layer's input is rounded, from 0 on
    quiet = torch.rand(2, 8, 8, 10)
    quiet[:, 1:] *= 1e-3
    exact = nn.functional.conv2d(quiet, module.thin.weight, None, padding=1, groups=8)
    shift = nn.functional.conv2d(torch.zeros_like(quiet), module.thin.weight, module.thin.bias, padding=1, groups=8)
    rounded = FakeQuantizedConv2d.forward(module.thin, quiet)
    error = (rounded - shift - exact)[:, 1:].abs().max() / exact[:, 1:].std()
    assert (error < 0.1) == (not is_fused)
    negative = module.first.input_quantizer(images.reshape(1, -1))
    step = images.abs().max() / 127.5
    assert ((negative / step - (negative / step).round()).abs().max() < 1e-2) == (engine == "tensorrt")


class Shared(nn.Module):
    """A convolution of two levels with a normalisation each, then one with a normalisation that INT8 does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.group = nn.Conv2d(8, 8, 1)
        self.group_norm = nn.GroupNorm(2, 8)
        self.classes = nn.Conv2d(8, 5, 1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        levels = [norm(self.conv(images)).sigmoid() for norm in self.norms]
        return {str(index): self.classes(self.group_norm(self.group(x)).sigmoid()) for index, x in enumerate(levels)}


def test_every_normalisation_of_a_shared_layer_is_rounded_and_no_group_norm() -> None:
    torch.manual_seed(0)
    module = Shared().eval()
    images = torch.rand(1, 3, 8, 10)
    assert insert_fake_quantization(module, images, rules_for("onnxruntime")) == ("conv", "group")
    for norm in module.norms:
        assert number_of_steps(norm(module.conv(images))) < 1e-3
    maps = torch.randn(1, 8, 8, 10)
    assert number_of_steps(module.group(maps)) > 0.1
    assert number_of_steps(module.group_norm(maps)) > 0.1


class Scaled(nn.Module):
    """Results that are only multiplied, only gated, and gated by their own sigmoid as SiLU is."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplied, self.sigmoid, self.written_out = (nn.Conv2d(3, 8, 3, padding=1) for _ in range(3))
        self.classes = nn.Conv2d(24, 5, 1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        silu = self.written_out(images)
        maps = [self.multiplied(images) * 0.5, self.sigmoid(images).sigmoid(), silu * silu.sigmoid()]
        return {"class_logits": self.classes(torch.cat(maps, 1))}


def test_low_numbers_are_cut_before_silu_alone() -> None:
    torch.manual_seed(0)
    module = Scaled().eval()
    insert_fake_quantization(module, torch.rand(1, 3, 8, 10), rules_for("onnxruntime"))
    loud = 100 * torch.randn(1, 3, 8, 10)
    for layer in (module.multiplied, module.sigmoid):
        assert number_of_steps(layer(loud)) < 1e-2 and layer(loud).min() < -50
    assert -6 < module.written_out(loud).min() <= -4


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_run_rounds_for_the_engine_that_it_names(engine: str, shapes_dir: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=shapes_dir, model="yolox-pico", out=tmp_path, qat=True, qat_engine=engine)  # type: ignore[arg-type]
    model = build_model("yolox-pico", num_classes=3)
    options = StepOptions(model, config, size_hw=(64, 96), preprocess=model.default_preprocess((64, 96)))
    (note,) = options.transform_model()
    assert note.endswith(f"as INT8 on {engine} rounds them")
    activations = [layer for layer in model.modules() if isinstance(layer, nn.SiLU)]
    assert activations
    assert all(isinstance(layer, FakeQuantizedSiLU) == (engine == "onnxruntime") for layer in activations)


def test_gradients_pass_the_rounding_for_onnxruntime() -> None:
    torch.manual_seed(0)
    module = WithNormalisation()
    images = torch.rand(4, 3, 8, 10)
    insert_fake_quantization(module, images[:1], rules_for("onnxruntime"))
    module.train()(images)["class_logits"].square().mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    twin = copy.deepcopy(module).eval()
    assert torch.equal(twin(images)["class_logits"], module.eval()(images)["class_logits"])


def test_gradients_pass_and_weights_learn() -> None:
    module = small()
    insert_fake_quantization(module, torch.rand(1, 3, 8, 10))
    images = torch.rand(4, 3, 8, 10)
    wanted = small()(images)["class_logits"].detach() * 0.5
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = (module(images)["class_logits"] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert module.first.weight.grad is not None and module.first.weight.grad.abs().sum() > 0
    assert losses[-1] < 0.3 * losses[0]


def test_a_copy_computes_the_same_and_the_weights_fit_the_plain_network(tmp_path: Path) -> None:
    module = small()
    images = torch.rand(2, 3, 8, 10)
    plain = copy.deepcopy(module)
    insert_fake_quantization(module, images[:1])
    module(images)["class_logits"].sum().backward()  # what a step leaves behind must not be in the way of copies
    twin = copy.deepcopy(module).eval()
    assert torch.equal(twin(images)["class_logits"], module(images)["class_logits"])
    assert not torch.equal(twin(images)["class_logits"], plain(images)["class_logits"])
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    plain.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))


@pytest.mark.parametrize("variant", ["yolox-pico", "retinanet-pico", "detr-pico"])
def test_detectors_keep_their_predictions_in_float(variant: str) -> None:
    torch.manual_seed(0)
    model = build_model(variant, num_classes=3)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for parameter in model.parameters():  # some families' predictions begin at zero
            parameter += 0.01 * torch.randn_like(parameter)
        before = model.eval()(images)["class_logits"]
        names = insert_fake_quantization(model, images)
        after = model.eval()(images)["class_logits"]
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    left = [name for name in layers if name not in names]
    assert len(names) > 10
    assert 0 < len(left) < len(names)
    assert 0 < (after - before).abs().max() < 1


def test_a_run_learns_with_it_and_keeps_the_plain_network(shapes_dir: Path, tmp_path: Path) -> None:
    results = {}
    for qat in (False, True):
        config = TrainConfig(
            data=shapes_dir, model="yolox-pico", out=tmp_path / str(qat), epochs=2, size_hw=(64, 96), batch=16,
            workers=0, device="cpu", val_every=0, qat=qat,
        )  # fmt: skip
        results[qat] = train(config, show_progress=False)
    losses = [results[qat].history[-1].losses["loss"] for qat in (False, True)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.3)
    loaded = load_model(results[True].best)
    assert not any(isinstance(layer, FakeQuantizedConv2d) for layer in loaded.module.modules())
