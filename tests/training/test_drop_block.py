"""DropBlock against its definition, and that nothing of it is left in evaluation."""

import pytest
import torch

from boxwright.core.errors import InputError
from boxwright.models import build_model
from boxwright.training.drop_block import DropBlock, insert_drop_block, set_drop_probability


def test_squares_of_every_channel_are_taken_out_and_the_rest_is_scaled_up() -> None:
    torch.manual_seed(0)
    layer = DropBlock(5).train()
    layer.probability = 0.1
    features = torch.ones(8, 16, 24, 30)
    dropped = layer(features)
    zeros = dropped == 0
    # Overlapping squares take out a little less than the paper's gamma promises.
    assert 0.06 < zeros.float().mean().item() < 0.11
    assert dropped.mean().item() == pytest.approx(1.0, abs=1e-5)
    values = dropped[~zeros].unique()
    assert len(values) == 1 and values.item() > 1
    # Every zero lies in a 5x5 square of zeros: eroding and dilating by it changes nothing.
    eroded = -torch.nn.functional.max_pool2d(-zeros.float(), 5, stride=1)
    opened = torch.nn.functional.max_pool2d(torch.nn.functional.pad(eroded, [4] * 4), 5, stride=1)
    assert torch.equal(opened > 0.5, zeros)
    assert not torch.equal(zeros[0, 0], zeros[0, 1])


def test_maps_smaller_than_the_square() -> None:
    torch.manual_seed(0)
    layer = DropBlock(7).train()
    layer.probability = 0.5
    dropped = layer(torch.ones(64, 4, 3, 2))
    assert dropped.shape == (64, 4, 3, 2) and dropped.isfinite().all() and (dropped == 0).any()


@pytest.mark.parametrize("variant", ["yolox-pico", "retinanet-pico"])
def test_it_acts_in_training_alone_and_leaves_the_state_dict(variant: str) -> None:
    torch.manual_seed(0)
    model = build_model(variant, num_classes=3)
    keys = list(model.state_dict())
    images = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        plain = model.eval()(images)["class_logits"]
        layers = insert_drop_block(model)
        assert len(layers) == 2 and all(name.startswith(model.backbone_prefixes[0]) for name in layers)
        set_drop_probability(model, 0.5)
        assert torch.equal(model.eval()(images)["class_logits"], plain)
        assert list(model.state_dict()) == keys
        model.train()
        first = model(images)["class_logits"]
        assert not torch.equal(first, model(images)["class_logits"])


def test_nothing_of_it_is_exported() -> None:
    model = build_model("yolox-pico", num_classes=3).eval()

    def graph() -> list[str]:
        program = torch.export.export(model, (torch.zeros(1, 3, 64, 64),))
        return [str(node.target) for node in program.graph.nodes]

    before = graph()
    insert_drop_block(model)
    set_drop_probability(model, 0.3)
    assert graph() == before


def test_layers_that_give_no_map_are_refused() -> None:
    model = build_model("yolox-pico", num_classes=3)

    class Pair(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 1)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.conv(images), images

    pair = Pair()
    model.backbone = torch.nn.ModuleDict({"pair": pair})  # type: ignore[assignment]
    insert_drop_block(model)
    with pytest.raises(InputError, match="expected a backbone whose layers give feature maps"):
        pair(torch.zeros(1, 3, 8, 8))
