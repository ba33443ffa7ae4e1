"""What the training step is given."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from boxwright.core.errors import DatasetError
from boxwright.core.preprocess_presets import preset
from boxwright.data import Dataset, Sample, load_dataset
from boxwright.training.config import Augmentation
from boxwright.training.dataset import Collate, EpochSampler, SampleKey, TrainDataset

SIZE_HW = (64, 96)


def train_dataset(dataset: Dataset, *, name: str = "yolox", seed: int = 0, **augmentation: float) -> TrainDataset:
    return TrainDataset(
        dataset,
        preprocess=preset(name, SIZE_HW),
        size_hw=SIZE_HW,
        augmentation=Augmentation(**augmentation),  # type: ignore[arg-type]
        seed=seed,
    )


@pytest.fixture
def shapes(shapes_dir: Path) -> Dataset:
    return load_dataset(shapes_dir, "train")


@pytest.mark.parametrize("strong", [True, False])
def test_the_same_key_gives_the_same_image_whatever_came_before(shapes: Dataset, *, strong: bool) -> None:
    fresh, used = train_dataset(shapes, mixup=0.5), train_dataset(shapes, mixup=0.5)
    for index in range(5):
        used[SampleKey(0, index, strong)]
    key = SampleKey(3, 2, strong)
    one, two = fresh[key].labeled, used[key].labeled
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.boxes_xyxy, two.boxes_xyxy)
    other_epoch = fresh[SampleKey(4, 2, strong)].labeled
    assert other_epoch.image.shape != one.image.shape or (other_epoch.image != one.image).any()
    other_seed = train_dataset(shapes, mixup=0.5, seed=1)[key].labeled
    assert other_seed.image.shape != one.image.shape or (other_seed.image != one.image).any()


def test_reading_does_not_change_what_is_cached(shapes: Dataset) -> None:
    samples = train_dataset(shapes)
    samples[SampleKey(0, 1, False)]
    before = samples._cache[1].image.copy(), samples._cache[1].boxes_xyxy.copy()
    for epoch in range(6):
        samples[SampleKey(epoch, 1, epoch % 2 == 0)]
    np.testing.assert_array_equal(samples._cache[1].image, before[0])
    np.testing.assert_array_equal(samples._cache[1].boxes_xyxy, before[1])


@pytest.mark.parametrize("name", ["yolox", "yolov5", "darknet"])
def test_without_variation_the_batch_is_what_the_deployed_box_makes(shapes: Dataset, name: str) -> None:
    samples = train_dataset(shapes, name=name, flip=0, hue=0, saturation=0, brightness=0)
    batch = Collate(preprocess=samples.preprocess)([samples[SampleKey(0, index, False)] for index in (0, 1)])
    assert batch.images.shape == (2, 3, *SIZE_HW) and batch.images.dtype == torch.float32
    for item in range(2):
        sample = shapes.samples[item]
        expected, transform = samples.preprocess.apply(cv2.imread(str(sample.image_path)))
        np.testing.assert_array_equal(batch.images[item].numpy(), expected)
        np.testing.assert_allclose(
            batch.targets.boxes_xyxy[item].numpy(), transform.to_network(sample.boxes_xyxy), atol=1e-3
        )
        assert batch.targets.class_ids[item].tolist() == sample.class_ids.tolist()


@pytest.mark.parametrize("epoch", range(8))
def test_strong_images_fill_the_canvas_and_boxes_stay_inside(shapes: Dataset, epoch: int) -> None:
    labeled = train_dataset(shapes, mosaic=0.7, mixup=0.5)[SampleKey(epoch, 3, True)].labeled
    assert labeled.size_hw == SIZE_HW and labeled.image.dtype == np.uint8
    assert (labeled.boxes_xyxy >= 0).all() and (labeled.boxes_xyxy <= [96, 64, 96, 64]).all()
    assert (labeled.boxes_xyxy[:, 2:] > labeled.boxes_xyxy[:, :2]).all()
    assert len(labeled.boxes_xyxy) == len(labeled.class_ids)


@pytest.mark.parametrize("name", ["yolox", "darknet"])
def test_ssds_crop_fills_the_canvas_and_rests_in_the_final_phase(shapes: Dataset, name: str) -> None:
    samples = train_dataset(shapes, name=name, ssd_crop=1.0)
    sizes = set()
    for epoch in range(12):
        labeled = samples[SampleKey(epoch, 3, True)].labeled
        assert labeled.size_hw == SIZE_HW
        assert (labeled.boxes_xyxy >= 0).all() and (labeled.boxes_xyxy <= [96, 64, 96, 64]).all()
        again = samples[SampleKey(epoch, 3, True)].labeled
        np.testing.assert_array_equal(labeled.image, again.image)
        sizes |= {tuple(np.round(side).tolist()) for side in labeled.boxes_xyxy[:, 2:] - labeled.boxes_xyxy[:, :2]}
    assert len(sizes) > 12  # enlarged and cropped in many ways
    plain = train_dataset(shapes, name=name)
    np.testing.assert_array_equal(
        samples[SampleKey(1, 3, False)].labeled.image, plain[SampleKey(1, 3, False)].labeled.image
    )


@pytest.mark.parametrize("augmentation", [{"mosaic9": 1.0}, {"copy_paste": 1.0}, {"mixup": 1.0, "ssd_crop": 1.0}])
def test_what_is_asked_for_shows_in_the_images(shapes: Dataset, augmentation: dict[str, float]) -> None:
    counts = []
    for changes in ({"mixup": 0.0}, {"mixup": 0.0, **augmentation}):
        samples = train_dataset(shapes, mosaic=0.0, **changes)
        counts.append(sum(len(samples[SampleKey(0, index, True)].labeled.class_ids) for index in range(24)))
    assert counts[1] > counts[0]


def test_crowds_are_no_targets(shapes: Dataset) -> None:
    sample = next(sample for sample in shapes.samples if len(sample) >= 2)
    crowd = np.zeros(len(sample), dtype=bool)
    crowd[0] = True
    marked = shapes.with_samples([dataclasses.replace(sample, is_crowd=crowd)])
    assert len(train_dataset(marked)[SampleKey(0, 0, False)].labeled.class_ids) == len(sample) - 1


def broken(sample: Sample, path: Path) -> Sample:
    path.write_bytes(b"no picture")
    return dataclasses.replace(sample, image_path=path)


def test_an_image_that_does_not_decode_is_passed_over_and_told_once(shapes: Dataset, tmp_path: Path) -> None:
    samples = list(shapes.samples[:3])
    samples[1] = broken(samples[1], tmp_path / "bad.jpg")
    training = train_dataset(shapes.with_samples(samples), flip=0, hue=0, saturation=0, brightness=0)
    first = training[SampleKey(0, 1, False)]
    assert len(first.unreadable) == 1 and "bad.jpg" in first.unreadable[0]
    np.testing.assert_array_equal(first.labeled.image, training[SampleKey(0, 2, False)].labeled.image)
    assert training[SampleKey(1, 1, False)].unreadable == ()


def test_nothing_but_broken_images_is_an_error(shapes: Dataset, tmp_path: Path) -> None:
    only = shapes.with_samples([broken(shapes.samples[0], tmp_path / "bad.jpg")])
    with pytest.raises(DatasetError, match="expected at least one training image that can be read"):
        train_dataset(only)[SampleKey(0, 0, True)]


def test_the_cache_is_bounded(shapes: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boxwright.training.dataset.CACHE_BYTES", 2 * 64 * 85 * 3 + 10)
    samples = train_dataset(shapes)
    for index in range(6):
        samples[SampleKey(0, index, False)]
    assert len(samples._cache) == 2


def test_batches_of_an_epoch_hold_every_image_once_in_an_order_of_their_own() -> None:
    epoch = 0
    sampler = EpochSampler(11, 4, 5, epoch=lambda: epoch, strong=lambda: epoch < 2)
    first = list(sampler)
    assert len(sampler) == len(first) == 2 and all(len(batch) == 4 for batch in first)
    assert len({key.image_index for batch in first for key in batch}) == 8
    assert list(sampler) == first
    epoch = 2
    later = list(sampler)
    assert [key.image_index for key in later[0]] != [key.image_index for key in first[0]]
    assert {key.epoch for batch in later for key in batch} == {2}
    assert not any(key.strong for batch in later for key in batch)


def test_fewer_images_than_a_batch_make_one() -> None:
    sampler = EpochSampler(3, 16, 0, epoch=lambda: 0, strong=lambda: True)
    assert [len(batch) for batch in sampler] == [3]
