"""YOLOv1: the grid, who is responsible, and the loss of squared errors, against numbers computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from boxwright.core.decode import decode_nms
from boxwright.core.errors import CheckpointError
from boxwright.models import Targets
from boxwright.models.common.loss_options import LossOptions
from boxwright.models.yolov1 import VARIANTS, Yolov1, build, import_checkpoint, yolov1_loss

GRID_HW, STRIDE, NUM_BOXES, NUM_CLASSES = (2, 3), 32, 2, 3
SIZE = GRID_HW[0] * GRID_HW[1] * NUM_BOXES
# An untouched prediction: objectness 1/2, classes 1/2.
UNSURE = 0.25
AS_PUBLISHED = LossOptions()


def outputs() -> tuple[Tensor, Tensor, Tensor]:
    """Boxes in the middle of their cells, the first of 48 x 32 pixels, the second of 96 x 64; nothing is known."""
    boxes = torch.tensor([[0.5, 0.5, math.sqrt(0.5), math.sqrt(0.5)], [0.5, 0.5, 1.0, 1.0]]).repeat(6, 1)
    return boxes, torch.zeros(SIZE, NUM_CLASSES), torch.zeros(SIZE)


def loss_of(
    boxes_xyxy: list[list[float]],
    class_ids: list[int],
    changed: tuple[Tensor, Tensor, Tensor] | None = None,
    options: LossOptions = AS_PUBLISHED,
) -> dict[str, float]:
    raw, logits, objectness = changed or outputs()
    parts = yolov1_loss(
        raw,
        logits,
        objectness,
        torch.tensor(boxes_xyxy).reshape(-1, 4),
        torch.tensor(class_ids, dtype=torch.int64),
        grid_hw=GRID_HW,
        stride=STRIDE,
        options=options,
    )
    return {name: value.item() for name, value in parts.items()}


def test_no_object() -> None:
    assert loss_of([], []) == pytest.approx({"box": 0, "object": 0, "no_object": 0.5 * SIZE * UNSURE, "class": 0})


def test_the_box_that_overlaps_best_is_responsible() -> None:
    # About (48, 16), the middle of cell (1, 0): exactly what its first box predicts.
    found = loss_of([[24.0, 0.0, 72.0, 32.0]], [1])
    assert found["box"] == pytest.approx(0, abs=1e-10)
    assert found["object"] == pytest.approx((0.5 - 1.0) ** 2)  # learns the overlap 1
    assert found["no_object"] == pytest.approx(0.5 * (SIZE - 1) * UNSURE)
    assert found["class"] == pytest.approx(3 * UNSURE)  # once a cell, not once a box


def test_places_in_cells_and_roots_of_sizes() -> None:
    # About (40, 40) in cell (1, 1): a quarter of the cell from its corner; 24 x 16 are 1/4 of the image's 96 x 64.
    found = loss_of([[28.0, 32.0, 52.0, 48.0]], [0])
    offsets, roots = 2 * (0.5 - 0.25) ** 2, 2 * (math.sqrt(0.5) - 0.5) ** 2
    assert found["box"] == pytest.approx(5 * (offsets + roots), rel=1e-5)
    iou = 24 * 16 / (48 * 32)  # the object lies within the first box, (24, 32) to (72, 64), up to the edges
    assert found["object"] == pytest.approx((0.5 - iou) ** 2, rel=1e-5)


def test_an_overlap_in_place_of_the_squared_errors() -> None:
    # Within the first box of cell (1, 1), up to its edges: a quarter of its 48 x 32 pixels.
    found = loss_of([[28.0, 32.0, 52.0, 48.0]], [0], options=LossOptions(box_loss="iou"))
    plain = loss_of([[28.0, 32.0, 52.0, 48.0]], [0])
    assert found["box"] == pytest.approx(5 * (1 - 0.25), rel=1e-5)
    assert {**found, "box": plain["box"]} == pytest.approx(plain)


def test_smoothed_classes() -> None:
    found = loss_of([[24.0, 0.0, 72.0, 32.0]], [1], options=LossOptions(label_smoothing=0.2))
    assert found["class"] == pytest.approx(3 * (0.9 - 0.5) ** 2)


def test_small_boxes_weigh_more_than_large_ones() -> None:
    """Two pixels less on a side cost more where the side is short: the reason for the roots."""
    large, small = outputs(), outputs()
    small[0][:, 2:] = math.sqrt(1 / 8)  # 12 x 8
    by_size = [
        loss_of([[48 - w / 2, 16 - h / 2, 48 + w / 2, 16 + h / 2]], [0], changed)["box"]
        for (w, h), changed in (((46.0, 30.0), large), ((10.0, 6.0), small))
    ]
    assert by_size[1] > 2 * by_size[0]


def test_a_cell_learns_one_object_the_largest() -> None:
    both = loss_of([[40.0, 8.0, 56.0, 24.0], [24.0, 0.0, 72.0, 32.0]], [2, 1])
    assert both == pytest.approx(loss_of([[24.0, 0.0, 72.0, 32.0]], [1]))


def test_where_no_box_touches_the_object_the_nearest_numbers_are_responsible() -> None:
    raw, logits, objectness = outputs()
    raw[:, :2] = 40.0  # all boxes far outside of the image
    raw[1::2, 2:] = 0.2  # the second of each cell is nearer in size to the object, 1/5 by 1/5 of the image in its root
    objectness[3] = 2.0  # the second box of cell (1, 0)
    found = loss_of([[46.08, 14.72, 49.92, 17.28]], [0], (raw, logits, objectness))
    assert found["object"] == pytest.approx((1 / (1 + math.exp(-2.0))) ** 2, rel=1e-4)


def test_objects_on_the_edges_belong_to_the_outer_cells() -> None:
    found = loss_of([[90.0, 60.0, 102.0, 68.0]], [0])  # about (96, 64), the image's lower right corner
    assert found["no_object"] == pytest.approx(0.5 * (SIZE - 1) * UNSURE)


def test_the_paper_s_grid() -> None:
    spec = build("yolov1-r18", 20).decode_spec(VARIANTS["yolov1-r18"].size_hw)
    assert spec.levels[0].grid_hw == (7, 7) and spec.levels[0].size == 7 * 7 * 2


def test_boxes_of_a_cell_share_their_classes() -> None:
    model = build("yolov1-pico", 4).eval()
    with torch.no_grad():
        heads = model(torch.randn(2, 3, 64, 96))
    logits = heads["class_logits"].view(2, 4 * 6, 2, 4)
    assert torch.equal(logits[:, :, 0], logits[:, :, 1]) and logits.std() > 0


def test_a_perfect_prediction_is_detected_where_the_object_is() -> None:
    """What the loss calls perfect, the operator decodes to the object."""
    model = build("yolov1-pico", NUM_CLASSES)
    spec = model.decode_spec((64, 96))  # 4 x 6 cells of 16 pixels
    box = [20.0, 30.0, 52.0, 46.0]  # about (36, 38): cell (2, 2)
    raw, logits = torch.zeros(48, 4), torch.full((48, NUM_CLASSES), -9.0)
    objectness = torch.full((48,), -20.0)
    place = (2 * 6 + 2) * 2 + 1
    raw[place] = torch.tensor([36 / 16 - 2, 38 / 16 - 2, math.sqrt(32 / 96), math.sqrt(16 / 64)])
    logits[place - 1 : place + 1, 2], objectness[place] = 9.0, 20.0
    parts = yolov1_loss(raw, logits, objectness, torch.tensor([box]), torch.tensor([2]), grid_hw=(4, 6), stride=16)
    assert sum(parts.values()).item() < 1e-3
    found = decode_nms(
        raw[None].numpy(),
        logits[None].numpy(),
        objectness=objectness[None].numpy(),
        priors=spec.priors(),
        attributes=spec.attributes(),
        score_threshold=0.5,
        iou_threshold=0.5,
    )
    assert found.num_detections.tolist() == [[1]] and found.class_ids[0, 0] == 2
    np.testing.assert_allclose(found.boxes[0, 0], box, atol=1e-4)


def test_a_batch_averages_its_images() -> None:
    model = build("yolov1-pico", 3)
    assert isinstance(model, Yolov1)
    heads = model.train()(torch.randn(2, 3, 64, 64))
    boxes, ids = torch.tensor([[4.0, 4.0, 40.0, 40.0]]), torch.tensor([1])
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    both = model.loss(heads, Targets(boxes_xyxy=[boxes, none[0]], class_ids=[ids, none[1]]))["loss"]
    halves = []
    for image, (image_boxes, image_ids) in enumerate(((boxes, ids), none)):
        alone = {name: head if name.startswith("_") else head[image : image + 1] for name, head in heads.items()}
        halves.append(model.loss(alone, Targets(boxes_xyxy=[image_boxes], class_ids=[image_ids]))["loss"])
    torch.testing.assert_close(both, torch.stack(halves).mean())


def test_foreign_checkpoints_are_refused() -> None:
    with pytest.raises(CheckpointError, match="boxwright train"):
        import_checkpoint({"a": torch.zeros(1)}, "yolov1-r18")
