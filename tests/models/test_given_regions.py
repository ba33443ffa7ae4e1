"""Fast R-CNN and R-CNN on proposals from outside, and selective search, which gives them by default."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from boxwright.core.boxes import pairwise_overlaps
from boxwright.core.decode import decode_nms
from boxwright.core.errors import InputError, UnsupportedError
from boxwright.export.trace import trace
from boxwright.models import Targets, build_model
from boxwright.models.common import fast_rcnn
from boxwright.models.common.crop_rcnn import CropRcnn, fit_svms
from boxwright.models.common.fast_rcnn import FastRcnn
from boxwright.models.common.proposals import as_rois
from boxwright.models.common.selective_search import SelectiveSearchConfig, selective_search

SIZE_HW = (96, 128)
VARIANTS = ("fastrcnn-pico", "rcnn-pico")
SQUARES = np.array([[10, 12, 50, 60], [70, 20, 110, 50], [60, 60, 120, 90]], dtype=np.float32)
COLOURS = ((40, 60, 220), (220, 80, 30), (40, 200, 60))


def picture() -> NDArray[np.uint8]:
    """Three rectangles of one colour each on grey."""
    image = np.full((*SIZE_HW, 3), 128, np.uint8)
    for (left, top, right, bottom), colour in zip(SQUARES.astype(int), COLOURS, strict=True):
        image[top:bottom, left:right] = colour
    return image


def test_selective_search_finds_what_differs_from_its_surroundings() -> None:
    pytest.importorskip("skimage")
    image = picture()
    boxes = selective_search(image)
    assert boxes.dtype == np.float32 and boxes.shape[1] == 4
    assert (pairwise_overlaps(SQUARES, boxes).max(axis=1) > 0.85).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [128, 96]).all()
    assert ((boxes[:, 2:] - boxes[:, :2]) >= 8).all()
    np.testing.assert_array_equal(boxes, selective_search(image))
    assert len(selective_search(image, SelectiveSearchConfig(max_boxes=2))) == 2
    assert len(selective_search(np.full((40, 60, 3), 7, np.uint8))) == 1  # the image itself


def given(*boxes: Sequence[Sequence[float]]) -> list[Tensor]:
    return [torch.tensor(rows, dtype=torch.float32).reshape(-1, 4) for rows in boxes]


def model_with(variant: str, boxes: list[Tensor]) -> FastRcnn | CropRcnn:
    torch.manual_seed(0)
    model = build_model(variant, num_classes=3)
    assert isinstance(model, FastRcnn | CropRcnn)
    model.proposal_source = lambda images: boxes[: len(images)]
    return model


def fine_tune(model: FastRcnn | CropRcnn, images: Tensor, targets: Targets, *, num_steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(num_steps):
        loss = model.train().training_loss(images, targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("variant", VARIANTS)
def test_proposals_outside_the_image_and_none_at_all(variant: str) -> None:
    boxes = given([[10, 10, 60, 60], [-20, -20, 40, 30], [300, 10, 400, 50]], [])
    model = model_with(variant, boxes).eval()
    with torch.no_grad():
        heads = {name: head.numpy() for name, head in model(torch.randn(2, 3, *SIZE_HW)).items()}
    # Clipped to the image; the one beyond it is gone, like those that the second image does not have.
    assert heads["priors"].tolist() == [[[10, 10, 60, 60], [0, 0, 40, 30]], [[0, 0, 0, 0]] * 2]
    found = decode_nms(
        heads["box_regression"],
        heads["class_logits"],
        attributes=model.decode_spec(SIZE_HW).attributes(),
        score_threshold=0.0,
        iou_threshold=1.0,
        priors=heads["priors"],
        image_size_hw=np.array([SIZE_HW] * 2, dtype=np.float32),
    )
    assert found.num_detections.tolist() == [[6], [0]]  # three classes of two regions


@pytest.mark.parametrize("variant", VARIANTS)
def test_bad_proposals_are_refused(variant: str) -> None:
    model = model_with(variant, [torch.tensor([[0.0, 0.0, torch.inf, 5.0]])]).eval()
    with pytest.raises(InputError, match="finite boxes"):
        model(torch.randn(1, 3, *SIZE_HW))


@pytest.mark.parametrize("variant", VARIANTS)
def test_export_is_refused_with_the_reason(variant: str) -> None:
    model = model_with(variant, given([[10, 10, 60, 60]]))
    with pytest.raises(UnsupportedError, match="proposals from outside") as caught:
        trace(model, SIZE_HW)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_learns_without_proposals_from_the_objects_alone(variant: str) -> None:
    model = model_with(variant, given([], [])).train()
    targets = Targets(
        boxes_xyxy=given([[10, 10, 60, 60]], []), class_ids=[torch.tensor([1]), torch.zeros(0, dtype=torch.int64)]
    )
    parts = model.training_loss(torch.randn(2, 3, *SIZE_HW), targets)
    assert parts["loss"] > 0 and parts["loss"].isfinite()
    nothing = Targets(boxes_xyxy=given([], []), class_ids=[torch.zeros(0, dtype=torch.int64)] * 2)
    assert model.training_loss(torch.randn(2, 3, *SIZE_HW), nothing)["loss"] == 0


def test_a_warped_region_has_context_and_the_mean_colour_outside() -> None:
    model = model_with("rcnn-pico", given([]))
    assert isinstance(model, CropRcnn)
    columns = torch.arange(128.0).expand(1, 3, 96, 128) + 0.5  # a pixel's value is its place
    crop = model._warped(columns, torch.tensor([[0.0, 28, 20, 84, 76], [0.0, 0, 0, 56, 56]]))
    side, context = model.config.crop_side, model.config.context  # a crop's pixel is one of the image
    assert crop.shape == (2, 3, side, side) and side - 2 * context == 56
    torch.testing.assert_close(crop[0, 0, 30], torch.arange(28.0 - context, 84.0 + context) + 0.5)
    assert not crop[1, :, :, : context - 1].any() and crop[1, 0, 30, context + 1] == pytest.approx(1.5)


def test_svms_tell_the_classes_apart_and_regressors_move_boxes() -> None:
    pytest.importorskip("sklearn")
    objects = torch.from_numpy(SQUARES)
    moved = objects + torch.tensor([4.0, 0.0, 4.0, 0.0])  # every proposal lies too far to the right
    background = torch.tensor([[0.0, 60, 30, 96], [112, 0, 128, 20], [52, 0, 68, 18]])
    model = model_with("rcnn-pico", [torch.cat([objects, moved, background])]).eval()
    assert isinstance(model, CropRcnn)
    images = torch.from_numpy(model.default_preprocess(SIZE_HW).apply(picture())[0])[None]
    targets = Targets(boxes_xyxy=[objects], class_ids=[torch.arange(3)])
    fine_tune(model, images, targets, num_steps=12)
    model.eval()
    with torch.no_grad():
        before = model(images)["class_logits"]
    fit_svms(model, [(images, targets)])
    with torch.no_grad():
        heads = model(images)
        features = model.features(images, as_rois(objects[None]))
    assert bool(model.has_svms) and not torch.equal(heads["class_logits"], before)
    margins = model.svms(features)
    assert margins.argmax(dim=1).tolist() == [0, 1, 2]
    assert heads["class_logits"][0, 6:].max() < margins.diagonal().min()
    # Half of the examples want no move, half one to the left: with a strong penalty all get the mean.
    assert (heads["box_regression"][0, 3, 0] < 0) and heads["box_regression"].isfinite().all()
    with pytest.raises(InputError, match="SVM of class 1"):
        fit_svms(model, [(images, Targets(boxes_xyxy=[objects[:1]], class_ids=[torch.zeros(1, dtype=torch.int64)]))])


def test_fast_rcnn_learns_from_given_proposals() -> None:
    objects = torch.from_numpy(SQUARES)
    generator = torch.Generator().manual_seed(0)
    around = (objects.repeat(6, 1) + torch.randn(18, 4, generator=generator) * 4).clamp(min=0)
    model = model_with("fastrcnn-pico", [torch.cat([around, torch.tensor([[0.0, 60, 30, 96], [112, 0, 128, 20]])])])
    images = torch.from_numpy(model.default_preprocess(SIZE_HW).apply(picture())[0])[None]
    targets = Targets(boxes_xyxy=[objects], class_ids=[torch.arange(3)])
    losses = fine_tune(model, images, targets, num_steps=25)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_regions_are_remembered_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []

    def search(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        searched.append(1)
        return SQUARES

    monkeypatch.setattr(fast_rcnn, "selective_search", search)
    source, images = fast_rcnn.SelectiveSearchSource(), torch.zeros(1, 3, *SIZE_HW)
    with torch.no_grad():
        source(images), source(images)
    assert len(searched) == 2  # each use pays for its own
    source(images), source(images)
    assert len(searched) == 3
