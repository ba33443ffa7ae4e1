"""Anchors from the data, for families whose published ones follow from a formula and Darknet heads with own lists."""

from pathlib import Path

import numpy as np
import pytest
import torch

from boxwright.data import Dataset, load_dataset
from boxwright.models import Targets, build_model, load_model
from boxwright.models.common.auto_anchor import best_possible_recall
from boxwright.models.common.kmeans_anchors import kmeans_anchors
from boxwright.models.common.saving import save_checkpoint
from boxwright.models.darknet import Darknet
from boxwright.training.fit_anchors import fit_anchors, network_sizes_wh

SIZE_HW = (160, 256)
# Heads of stride 32 and 16: the first lists its own anchors and one of the other's, the second its own alone.
TWO_LISTS = """[net]
width=256
height=160
channels=3
[convolutional]
filters=8
size=3
stride=16
pad=1
activation=leaky
[convolutional]
filters=8
size=3
stride=2
pad=1
activation=leaky
[convolutional]
filters=18
size=1
activation=linear
[yolo]
mask=2,1
anchors=300,3, 310,4, 320,5
classes=4
num=3
[route]
layers=0
[convolutional]
filters=27
size=1
activation=linear
[yolo]
anchors=200,2, 210,3, 220,4
classes=4
num=3
"""


@pytest.fixture
def shapes(shapes_dir: Path) -> Dataset:
    return load_dataset(shapes_dir, "train")


@pytest.fixture
def two_lists(tmp_path: Path) -> Path:
    (tmp_path / "two.cfg").write_text(TWO_LISTS)
    return tmp_path / "two.cfg"


@pytest.mark.parametrize("variant", ["retinanet-pico", "efficientdet-pico", "ssd-pico", "two.cfg"])
def test_auto_replaces_anchors_that_few_boxes_fit_and_keeps_the_others(
    shapes: Dataset, two_lists: Path, variant: str
) -> None:
    model = build_model(str(two_lists) if variant == "two.cfg" else variant, num_classes=4)
    preprocess = model.default_preprocess(SIZE_HW)
    sizes = network_sizes_wh(shapes, preprocess)
    if variant != "two.cfg":  # whose own ones are as bad
        model.set_anchors([(2.0, 150.0 + index) for index in range(model.num_anchor_sizes)])
    assert best_possible_recall(sizes, np.array(model.anchor_sizes_wh(SIZE_HW))) < 0.5
    (note,) = fit_anchors(model, shapes, preprocess, "auto", seed=0)
    assert "best possible recall 1.000" in note
    fitted = model.anchor_sizes_wh(SIZE_HW)
    assert best_possible_recall(sizes, np.array(fitted)) == 1
    (note,) = fit_anchors(model, shapes, preprocess, "auto", seed=0)
    assert note.startswith("the anchors are kept") and model.anchor_sizes_wh(SIZE_HW) == fitted


def test_heads_with_lists_of_their_own_are_dealt_anchors_from_fine_to_coarse(
    shapes: Dataset, two_lists: Path, tmp_path: Path
) -> None:
    before = load_model(two_lists, class_names=shapes.class_names)
    model = before.module
    assert isinstance(model, Darknet) and model.num_anchor_sizes == 5
    names = set(model.state_dict())
    assert [level.anchors_wh[0] for level in model.decode_spec(SIZE_HW).levels] == [(320, 5), (200, 2)]  # by the mask
    fit_anchors(model, shapes, before.preprocess, "kmeans", seed=0)
    expected = kmeans_anchors(network_sizes_wh(shapes, before.preprocess), 5, 0)
    coarse, fine = (level.anchors_wh for level in model.decode_spec(SIZE_HW).levels)
    np.testing.assert_allclose([*fine, *coarse], expected, rtol=1e-5)
    # The head that listed more than its own goes on leaving to the other what fits that better.
    assert [len(rule.all_anchors_wh) for rule in model.rules] == [5, 3]
    assert [rule.anchors_wh for rule in model.rules] == [coarse, fine]
    assert set(model.state_dict()) - names == {"fitted_anchors_wh"}
    targets = Targets(boxes_xyxy=[torch.tensor([[8.0, 8, 40, 60]])], class_ids=[torch.tensor([1])])
    parts = model.train().loss(model(torch.zeros(1, 3, *SIZE_HW)), targets)
    assert all(part.isfinite() for part in parts.values()) and parts["box"] > 0
    save_checkpoint(tmp_path / "m.pt", model.state_dict(), before.manifest())
    assert load_model(tmp_path / "m.pt").module.decode_spec(SIZE_HW) == model.decode_spec(SIZE_HW)
