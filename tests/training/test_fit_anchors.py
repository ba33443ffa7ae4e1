"""Anchors from the training boxes, in pixels of the network's input."""

from pathlib import Path

import numpy as np
import pytest
import torch

from boxwright.core.errors import CheckpointError, InputError
from boxwright.data import Dataset, load_dataset
from boxwright.models import DetectionModel, build_model, load_model
from boxwright.models.common.checkpoint import load_weights
from boxwright.models.common.kmeans_anchors import kmeans_anchors, mean_best_overlap
from boxwright.models.common.targets import Targets
from boxwright.training import TrainConfig, train
from boxwright.training.fit_anchors import fit_anchors, network_sizes_wh


@pytest.fixture
def shapes(shapes_dir: Path) -> Dataset:
    return load_dataset(shapes_dir, "train")


def test_sizes_are_those_on_the_networks_input(shapes: Dataset) -> None:
    model = build_model("yolov5-pico", num_classes=4)
    sizes = network_sizes_wh(shapes, model.default_preprocess((192, 128)))
    # 96x128 images, letterboxed into 192x128: the width decides, nothing is enlarged.
    expected = np.concatenate([sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2] for sample in shapes.samples])
    np.testing.assert_allclose(sizes, expected, rtol=1e-5)
    np.testing.assert_allclose(network_sizes_wh(shapes, model.default_preprocess((192, 256))), 2 * expected, rtol=1e-5)


@pytest.mark.parametrize("variant", ["yolov5-pico", "yolov4-pico"])
@pytest.mark.parametrize("source", ["kmeans", "auto"])
def test_anchors_go_into_the_decoding_and_the_state_dict(shapes: Dataset, variant: str, source: str) -> None:
    model = build_model(variant, num_classes=4)
    preprocess = model.default_preprocess((96, 128))
    if source == "auto":  # whose anchors would fit well enough
        model.set_anchors([(2.0 + index, 100.0 + index) for index in range(model.num_anchor_sizes)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (note,) = fit_anchors(model, shapes, preprocess, source, seed=0)  # type: ignore[arg-type]
    assert "mean best IoU" in note
    levels = model.decode_spec((96, 128)).levels  # type: ignore[union-attr]
    used = np.array([anchor for level in levels for anchor in level.anchors_wh])  # type: ignore[union-attr]
    sizes = network_sizes_wh(shapes, preprocess)
    best = kmeans_anchors(sizes, model.num_anchor_sizes, 0)
    if source == "kmeans":
        np.testing.assert_allclose(sorted(used.prod(axis=1)), sorted(best.prod(axis=1)), rtol=1e-4)
    plain = build_model(variant, num_classes=4).decode_spec((96, 128)).levels  # type: ignore[union-attr]
    usual = np.array([anchor for level in plain for anchor in level.anchors_wh])  # type: ignore[union-attr]
    assert mean_best_overlap(sizes, used) > mean_best_overlap(sizes, usual)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert len(changed) == 1 and "anchor" in changed[0]


@pytest.mark.parametrize("variant", ["yolov5-pico", "yolov4-pico"])
def test_auto_keeps_anchors_that_nearly_all_boxes_fit(shapes: Dataset, variant: str) -> None:
    model = build_model(variant, num_classes=4)
    preprocess = model.default_preprocess((96, 128))
    good = kmeans_anchors(network_sizes_wh(shapes, preprocess), model.num_anchor_sizes, 0)
    model.set_anchors([(float(width), float(height)) for width, height in good])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (note,) = fit_anchors(model, shapes, preprocess, "auto", seed=0)
    assert "the anchors are kept: best possible recall 1.000" in note
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("variant", ["yolox-pico", "fastrcnn-pico"])
def test_families_without_such_anchors_refuse(shapes: Dataset, variant: str) -> None:
    model = build_model(variant, num_classes=4)
    assert fit_anchors(model, shapes, model.default_preprocess((96, 128)), "family", seed=0) == ()
    with pytest.raises(InputError, match=f"expected a family whose anchors depend on the data, got {variant}"):
        fit_anchors(model, shapes, model.default_preprocess((96, 128)), "kmeans", seed=0)


def test_a_run_keeps_its_anchors_through_checkpoint_and_resume(shapes_dir: Path, tmp_path: Path) -> None:
    plain = TrainConfig(
        data=shapes_dir,
        model="yolov5-pico",
        out=tmp_path / "run",
        epochs=1,
        size_hw=(96, 128),
        batch=8,
        workers=0,
        device="cpu",
        anchors="kmeans",
        val_split="none",
    )
    loaded = load_model(train(plain, show_progress=False).best)
    fitted = build_model("yolov5-pico", num_classes=4)
    fit_anchors(fitted, load_dataset(shapes_dir, "train"), loaded.preprocess, "kmeans", seed=0)
    assert loaded.module.decode_spec((96, 128)) == fitted.decode_spec((96, 128))
    assert loaded.manifest().decode == fitted.decode_spec((96, 128))


@pytest.mark.parametrize("variant", ["retinanet-pico", "efficientdet-pico", "ssd-pico"])
def test_published_anchors_give_way_to_fitted_ones(shapes: Dataset, variant: str) -> None:
    size_hw = (160, 256)
    model = build_model(variant, num_classes=4)
    preprocess = model.default_preprocess(size_hw)
    published_state, published = model.state_dict(), model.decode_spec(size_hw)
    sizes = network_sizes_wh(shapes, preprocess)
    usual = mean_best_overlap(sizes, np.array(model.anchor_sizes_wh(size_hw)))
    fit_anchors(model, shapes, preprocess, "kmeans", seed=0)
    used = np.array(model.anchor_sizes_wh(size_hw))
    assert mean_best_overlap(sizes, used) > usual
    np.testing.assert_allclose(used, kmeans_anchors(sizes, model.num_anchor_sizes, 0), rtol=1e-4)
    fitted = model.decode_spec(size_hw)
    before, after = published.priors(), fitted.priors()
    assert before is not None and after is not None and before.shape == after.shape
    # The anchors stay where they were, and nothing else of the decoding changes.
    np.testing.assert_allclose(after[:, :2] + after[:, 2:], before[:, :2] + before[:, 2:], atol=1e-3)
    assert not np.allclose(before, after)
    assert set(model.state_dict()) - set(published_state) == {"fitted_anchors_wh"}

    other = build_model(variant, num_classes=4)
    load_weights(other, model.state_dict(), "fitted")
    assert other.decode_spec(size_hw) == fitted
    load_weights(other, published_state, "published")
    assert other.decode_spec(size_hw) == published and set(other.state_dict()) == set(published_state)
    other.load_state_dict(model.state_dict())
    assert other.decode_spec(size_hw) == fitted
    misshapen = {**model.state_dict(), "fitted_anchors_wh": torch.ones(3, 2)}
    with pytest.raises(CheckpointError, match="fitted_anchors_wh"):
        load_weights(other, misshapen, "misshapen")


def test_the_loss_assigns_to_fitted_anchors() -> None:
    model = build_model("ssd-pico", num_classes=2).train()
    targets = Targets(boxes_xyxy=[torch.tensor([[40.0, 40.0, 64.0, 72.0]])] * 2, class_ids=[torch.tensor([1])] * 2)
    heads = model(torch.zeros(2, 3, 160, 160))
    usual = model.loss(heads, targets)["box"]
    model.set_anchors([(8.0 + index, 90.0 + index) for index in range(model.num_anchor_sizes)])
    assert not torch.isclose(model.loss(heads, targets)["box"], usual)


@pytest.mark.parametrize("variant", ["fasterrcnn-pico", "fasterrcnn-pico-plain", "cascadercnn-pico"])
def test_regions_are_proposed_from_fitted_anchors(shapes: Dataset, variant: str) -> None:
    size_hw = (96, 160)
    model = build_model(variant, num_classes=4).train()
    preprocess = model.default_preprocess(size_hw)
    sizes = network_sizes_wh(shapes, preprocess)
    published_state, published = model.state_dict(), anchors_of(model, size_hw)
    usual = mean_best_overlap(sizes, np.array(model.anchor_sizes_wh(size_hw)))
    assert model.anchor_sizes_wh(size_hw) == [size for sizes in sizes_by_map(published, model) for size in sizes]
    (note,) = fit_anchors(model, shapes, preprocess, "kmeans", seed=0)
    assert "mean best IoU" in note
    expected = kmeans_anchors(sizes, model.num_anchor_sizes, 0)
    assert mean_best_overlap(sizes, expected) > usual
    fitted = anchors_of(model, size_hw)
    torch.testing.assert_close(fitted[:, :2] + fitted[:, 2:], published[:, :2] + published[:, 2:], atol=1e-3, rtol=0)
    dealt = [size for sizes in sizes_by_map(fitted, model) for size in sizes]  # the finest map has the smallest
    np.testing.assert_allclose(dealt, expected, rtol=1e-3)
    np.testing.assert_allclose(model.anchor_sizes_wh(size_hw), expected, rtol=1e-4)
    assert set(model.state_dict()) - set(published_state) == {"fitted_anchors_wh"}

    other = build_model(variant, num_classes=4).train()
    load_weights(other, model.state_dict(), "fitted")
    assert torch.equal(anchors_of(other, size_hw), fitted)
    load_weights(other, published_state, "published")
    assert torch.equal(anchors_of(other, size_hw), published) and set(other.state_dict()) == set(published_state)


def anchors_of(model: DetectionModel, size_hw: tuple[int, int]) -> torch.Tensor:
    """That the proposals learn from, (N, 4)."""
    return model(torch.zeros(2, 3, *size_hw))["_anchors_xyxy"]


def sizes_by_map(anchors_xyxy: torch.Tensor, model: DetectionModel) -> list[list[tuple[float, float]]]:
    """The sizes of one cell of each map, in the order of the maps."""
    sizes_wh = [tuple(size) for size in (anchors_xyxy[:, 2:] - anchors_xyxy[:, :2]).tolist()]
    found, start = [], 0
    counts = model.anchors_per_level
    grids = [6 * 10] if len(counts) == 1 else [12 * 20, 6 * 10, 3 * 5, 2 * 3]
    for count, cells in zip(counts, grids, strict=True):
        found.append(sizes_wh[start : start + count])
        start += count * cells
    assert start == len(sizes_wh)
    return found
