"""Which layers are the backbone, freezing them, and letting them learn more slowly."""

import pytest
import torch

from boxwright.core.errors import InputError
from boxwright.models import DetectionModel, build_model
from boxwright.training.backbone import (
    backbone_layers,
    find_frozen,
    freeze_parameters,
    keep_frozen_statistics,
    parameter_groups,
)


def layer_names(model: DetectionModel) -> list[tuple[str, ...]]:
    return [layer.names for layer in backbone_layers(model, needed_for="--layer-decay")]


def test_layers_of_a_backbone_of_our_own() -> None:
    names = layer_names(build_model("yolox-pico", num_classes=3))
    assert names == [("backbone.stem",), *((f"backbone.stages.{index}",) for index in range(4))]


def test_layers_of_a_resnet_without_its_pyramid() -> None:
    names = layer_names(build_model("retinanet-r18", num_classes=3))
    assert names[0] == ("backbone.body.conv1", "backbone.body.bn1")  # a normalisation goes with its convolution
    assert names[1:] == [(f"backbone.body.layer{index}",) for index in range(1, 5)]


def test_blocks_of_one_resolution_are_a_layer() -> None:
    names = layer_names(build_model("ssdlite320-mobilenetv3", num_classes=3))
    first = [range(2), range(2, 4), range(4, 7), range(7, 14)]  # stride 2, 4, 8 and 16, to within a block
    assert names[:-1] == [tuple(f"backbone.features.0.{index}" for index in stage) for stage in first]
    assert names[-1] == ("backbone.features.1",)


def test_layers_hold_every_parameter_of_the_backbone_once() -> None:
    model = build_model("retinanet-pico", num_classes=3)
    layers = backbone_layers(model, needed_for="--layer-decay")
    for name, _ in model.named_parameters():
        count = sum(layer.holds(name) for layer in layers)
        assert count == int(name.startswith("backbone.body.")), name


def test_rates_fall_from_layer_to_layer() -> None:
    model = build_model("yolox-pico", num_classes=3)
    groups = parameter_groups(model, weight_decay=0.1, layer_decay=0.5)
    factor_of = {id(tensor): factor for factor, group in groups for tensor in group["params"]}
    decay_of = {id(tensor): group["weight_decay"] for _, group in groups for tensor in group["params"]}
    assert len(factor_of) == len(list(model.parameters()))
    expected = {"head.": 1.0, "neck.": 1.0, "backbone.stages.3.": 0.5, "backbone.stages.0.": 0.5**4}
    for beginning, factor in {**expected, "backbone.stem.": 0.5**5}.items():
        found = {factor_of[id(tensor)] for name, tensor in model.named_parameters() if name.startswith(beginning)}
        assert found == {factor}, beginning
    for name, tensor in model.named_parameters():
        assert decay_of[id(tensor)] == (0.1 if tensor.ndim > 1 else 0.0), name
    assert groups[0][0] == 1.0


def test_without_decay_there_are_two_groups() -> None:
    assert [
        factor
        for factor, _ in parameter_groups(build_model("yolox-pico", num_classes=3), weight_decay=0.1, layer_decay=1.0)
    ] == [1.0, 1.0]


def test_freezing_the_backbone_stops_its_weights_and_statistics() -> None:
    model = build_model("yolox-pico", num_classes=3)
    frozen = find_frozen(model, ["backbone"])
    assert frozen and all(name.startswith("backbone.") for name in frozen)
    freeze_parameters(model, frozen)
    model.train()
    keep_frozen_statistics(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(torch.randn(2, 3, 64, 96))["class_logits"].sum().backward()
    for name, tensor in model.state_dict().items():
        if name.startswith("backbone."):
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(
        model.state_dict()["neck.lateral_p5.bn.running_mean"], before["neck.lateral_p5.bn.running_mean"]
    )
    assert all(tensor.grad is None for name, tensor in model.named_parameters() if name.startswith("backbone."))


def test_freezing_by_name() -> None:
    model = build_model("yolox-pico", num_classes=3)
    frozen = find_frozen(model, ["backbone.stages.1", "head.objectness.0.bias"])
    assert {name.rpartition(".")[0] for name in frozen if not name.startswith("backbone.stages.1.")} == {
        "head.objectness.0"
    }
    assert not any(name.startswith("backbone.stages.10") for name in frozen)


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["stem"], "got no parameter of yolox-pico"),
        (["backbone.stage"], "got no parameter of yolox-pico"),  # a whole name, not a part of one
        (["backbone", "neck", "head"], "expected parameters left to learn"),
    ],
)
def test_what_cannot_be_frozen(freeze: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_frozen(build_model("yolox-pico", num_classes=3), freeze)


def test_a_family_without_a_known_backbone_says_so() -> None:
    model = build_model("yolox-pico", num_classes=3)
    del model.backbone
    with pytest.raises(InputError, match="a family that says which of its layers are the backbone"):
        backbone_layers(model, needed_for="--layer-decay")
    with pytest.raises(InputError, match="'backbone' of a family that knows its own"):
        find_frozen(model, ["backbone"])
