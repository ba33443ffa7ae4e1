"""What a family fits at the end of a run instead of training it, and the images that it gets for it."""

from pathlib import Path

import pytest

from boxwright.core.errors import InputError
from boxwright.data import load_dataset
from boxwright.models import load_model
from boxwright.models.common.crop_rcnn import CropRcnn
from boxwright.training import TrainConfig, train
from boxwright.training.fitting import fitting_indices


def test_svms_are_fitted_before_the_last_measurement_and_kept(shapes_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    run = TrainConfig(
        data=shapes_dir, model="rcnn-pico", out=tmp_path, epochs=1, size_hw=(64, 96), batch=8, workers=0, device="cpu"
    )
    result = train(run, show_progress=False)
    module = load_model(result.best).module
    assert isinstance(module, CropRcnn) and bool(module.has_svms)
    assert module.svms.weight.abs().sum() > 0 and result.best_map is not None


def test_every_class_is_among_the_images(shapes_dir: Path) -> None:
    dataset = load_dataset(shapes_dir, "train")
    chosen = fitting_indices(dataset, 1, seed=0)
    present = {int(class_id) for index in chosen for class_id in dataset.samples[index].class_ids}
    assert present == set(range(len(dataset.class_names)))
    assert len(set(chosen)) == len(chosen) < len(dataset)
    without = dataset.with_samples([sample for sample in dataset.samples if 0 not in sample.class_ids])
    with pytest.raises(InputError, match="objects of every class") as caught:
        fitting_indices(without, 2, seed=0)
    assert "\n" not in str(caught.value)
