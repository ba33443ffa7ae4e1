"""The batch that a network alters against itself."""

import torch

from boxwright.core.preprocess_presets import preset
from boxwright.models import Targets, build_model
from boxwright.training.self_adversarial import STEP_GREY_LEVELS, alter_against, is_altered

PREPROCESS = preset("imagenet-letterbox", (64, 96))


def test_pixels_move_to_where_no_object_is_seen_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    model = build_model("yolox-pico", num_classes=3).train()
    mean = torch.tensor(PREPROCESS.mean).view(1, 3, 1, 1)
    std = torch.tensor(PREPROCESS.std).view(1, 3, 1, 1)
    pixels = torch.randint(0, 256, (2, 3, 64, 96)).float()
    images = (pixels * PREPROCESS.scale - mean) / std
    with torch.no_grad():
        for _ in range(50):  # until the statistics of normalisation are those of the images
            model(images)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    altered = alter_against(model, images, None, PREPROCESS)
    altered_pixels = (altered * std + mean) / PREPROCESS.scale
    change = (altered_pixels - pixels).abs()
    assert change.max().item() <= STEP_GREY_LEVELS + 1e-3 and change.mean().item() > 0.8 * STEP_GREY_LEVELS
    assert altered_pixels.min().item() > -1e-3 and altered_pixels.max().item() < 255 + 1e-3
    assert not altered.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(layer.training for layer in model.modules())

    def loss_of_no_objects(batch: torch.Tensor) -> float:
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.eval()
        empty = Targets(boxes_xyxy=[torch.zeros(0, 4)] * 2, class_ids=[torch.zeros(0, dtype=torch.int64)] * 2)
        return model.training_loss(batch, empty)["loss"].item()

    assert loss_of_no_objects(altered) < loss_of_no_objects(images)


def test_the_draw_depends_on_seed_epoch_and_batch_alone() -> None:
    drawn = [is_altered(0.3, seed=1, epoch=2, batch_index=index) for index in range(400)]
    assert drawn == [is_altered(0.3, seed=1, epoch=2, batch_index=index) for index in range(400)]
    assert 0.22 < sum(drawn) / 400 < 0.38
    assert not any(is_altered(0.0, seed=1, epoch=2, batch_index=index) for index in range(50))
    assert all(is_altered(1.0, seed=1, epoch=2, batch_index=index) for index in range(50))
