"""Where the backbones of Darknet's networks end, and that they share the detector's layers."""

import pytest
import torch

from boxwright.models import build_model
from boxwright.models.darknet import Darknet
from boxwright.training.backbone import backbone_layers
from boxwright.training.drop_block import insert_drop_block

LENGTHS = {"yolov2": 23, "yolov2-tiny": 13, "yolov3": 75, "yolov3-tiny": 13, "yolov4": 105}
LENGTHS |= {"yolov4-tiny": 27, "yolov4-pico": 27}


@pytest.mark.parametrize("variant", LENGTHS)
def test_the_backbone_ends_where_the_authors_classifier_does(variant: str) -> None:
    model = build_model(variant, num_classes=3)
    assert isinstance(model, Darknet)
    last = model.backbone_prefixes[-1]
    # Shortcuts, which hold nothing, may follow the last convolution.
    assert int(last.rpartition(".")[2]) == LENGTHS[variant] - (2 if variant == "yolov3" else 1)
    backbone = model.backbone_module()
    assert backbone is not None and len(list(backbone.get_submodule("layers").children())) == LENGTHS[variant]


def test_the_backbone_is_the_detectors_own() -> None:
    model = build_model("yolov4-pico", num_classes=3).eval()
    names = list(model.state_dict())
    backbone = model.backbone_module()
    assert backbone is not None and isinstance(model, Darknet)
    seen = []
    model.network.layers[26].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        model(images)
        torch.testing.assert_close(backbone(images), seen[0])
    assert backbone(images).shape == (2, 128, 2, 3)
    own = {id(parameter) for parameter in model.parameters()}
    assert all(id(parameter) in own for parameter in backbone.parameters())
    assert len(backbone_layers(model, needed_for="--layer-decay")) == len(model.backbone_prefixes)
    assert insert_drop_block(model) == ("network.layers.23", "network.layers.26")
    assert list(model.state_dict()) == names
