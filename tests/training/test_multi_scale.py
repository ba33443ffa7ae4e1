"""Batches of changing size."""

import pytest
import torch

from boxwright.core.errors import InputError
from boxwright.models import Targets, build_model
from boxwright.training.dataset import TrainBatch
from boxwright.training.multi_scale import resize_batch, scaled_sizes, size_of_batch


def test_sizes_are_multiples_near_the_usual_one() -> None:
    model = build_model("yolox-pico", num_classes=2)
    assert scaled_sizes(model, (128, 128), 0.5) == ((64, 64), (96, 96), (128, 128), (160, 160), (192, 192))
    sizes = scaled_sizes(model, (256, 416), 0.3)
    assert (256, 416) in sizes and len(sizes) > 2
    for height, width in sizes:
        assert height % 32 == width % 32 == 0
        assert abs(height - 256) <= 0.3 * 256 and abs(width - 416) <= 0.3 * 416


def test_a_spread_that_reaches_no_other_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"pass at least 0\.250, or leave it out"):
        scaled_sizes(build_model("yolox-pico", num_classes=2), (128, 128), 0.1)


def test_a_network_of_one_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("yolox-pico", num_classes=2)

    def only_128(size_hw: tuple[int, int]) -> None:
        if size_hw != (128, 128):
            raise InputError("size", expected="128x128", got=str(size_hw), fix="pass it")

    monkeypatch.setattr(model, "decode_spec", only_128)
    with pytest.raises(InputError, match="expected a network that takes inputs of several sizes"):
        scaled_sizes(model, (128, 128), 0.5)


def test_the_draw_depends_on_seed_epoch_and_batch_alone() -> None:
    sizes = ((64, 64), (96, 96), (128, 128))
    drawn = [size_of_batch(sizes, seed=3, epoch=1, batch_index=index) for index in range(60)]
    assert drawn == [size_of_batch(sizes, seed=3, epoch=1, batch_index=index) for index in range(60)]
    assert set(drawn) == set(sizes)
    assert drawn != [size_of_batch(sizes, seed=3, epoch=2, batch_index=index) for index in range(60)]
    assert drawn != [size_of_batch(sizes, seed=4, epoch=1, batch_index=index) for index in range(60)]


def test_boxes_and_mask_go_with_the_pixels() -> None:
    images = torch.zeros(2, 3, 64, 96)
    images[0, :, 16:32, 24:72] = 1.0
    mask = torch.ones(2, 64, 96, dtype=torch.int64)
    mask[1, :, 48:] = 0
    batch = TrainBatch(
        images=images,
        targets=Targets(
            boxes_xyxy=[torch.tensor([[24.0, 16, 72, 32]]), torch.zeros(0, 4)],
            class_ids=[torch.tensor([1]), torch.zeros(0, dtype=torch.int64)],
        ),
        pixel_mask=mask,
        unreadable=("a.jpg: broken",),
    )
    resized = resize_batch(batch, (128, 128))
    assert resized.images.shape == (2, 3, 128, 128)
    assert resized.targets.boxes_xyxy[0].tolist() == [[32, 32, 96, 64]]
    rows, columns = (resized.images[0, 0] > 0.5).nonzero(as_tuple=True)
    assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == [32, 32, 96, 64]
    assert resized.targets.boxes_xyxy[1].shape == (0, 4)
    assert resized.pixel_mask is not None and resized.pixel_mask.dtype == torch.int64
    assert resized.pixel_mask[1].sum() == 128 * 64
    assert resized.unreadable == batch.unreadable
    assert resize_batch(batch, (64, 96)) is batch
