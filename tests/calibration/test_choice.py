"""The images that candidates are compared on: each measured on by a form whose ranges never saw it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boxwright.calibration.budget_images import SearchImages, batches_without, fold_batches, read_images
from boxwright.calibration.candidate import observed_tensors
from boxwright.calibration.choice import ChoiceSet, prepare_choice
from boxwright.calibration.float_model import FloatModel, load_float_model
from boxwright.calibration.statistics import collect_statistics
from colour_data import write_colour_data
from colour_network import save_colour_network


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FloatModel:
    return load_float_model(save_colour_network(tmp_path_factory.mktemp("model") / "m.onnx"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> SearchImages:
    root = write_colour_data(tmp_path_factory.mktemp("data") / "colours", num_images=15)
    return read_images(root, "val", None, "val", None)


@pytest.fixture
def choice(tmp_path: Path, model: FloatModel, images: SearchImages) -> ChoiceSet:
    return prepare_choice(images.choice, images.choice_folds, model.manifest, model.proto, tmp_path)


def test_every_image_is_in_one_fold_and_copies_are_left_out(choice: ChoiceSet, images: SearchImages) -> None:
    contents = [sample.image_path.read_bytes() for sample in choice.samples]
    assert len(contents) == len(set(contents)) == len(images.calibration.samples) < 15
    assert sorted({fold.leave_out for fold in choice.folds}) == sorted(set(images.folds))
    inputs = choice.folds[0].batches[0].inputs()["images"]
    assert inputs.shape == (1, 3, 48, 64) and inputs.dtype == np.float32


def test_ranges_of_a_fold_do_not_hang_on_its_images(model: FloatModel, images: SearchImages) -> None:
    tensors = observed_tensors(model, fused=False)
    whole = collect_statistics(model, fold_batches(model, images), tensors=tensors, num_folds=max(images.folds) + 1)
    for fold in sorted(set(images.folds)):
        alone = collect_statistics(
            model, ((inputs, count, 0) for inputs, count in batches_without(model, images, fold)), tensors=tensors
        )
        for name in tensors:
            assert np.array_equal(whole.of(name, fold).counts, alone.of(name).counts)
            assert np.array_equal(whole.of(name, fold).maximum, alone.of(name).maximum)


def test_a_part_is_of_one_fold(choice: ChoiceSet) -> None:
    part = choice.part(2)
    assert len(part.samples) == 2 and len(part.folds) == 1
    assert part.folds[0].leave_out == choice.folds[0].leave_out
    assert len(choice.part(10**6).samples) == len(choice.folds[0].samples)
