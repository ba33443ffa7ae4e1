"""YOLOv5 against its published formulas, written out in numpy prediction by prediction, nothing of ours in them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from boxwright.core.decode import decode_boxes
from boxwright.models import Targets
from boxwright.models.common.ratio_matching import match_by_ratio
from boxwright.models.yolov5 import COCO_ANCHORS_WH, STRIDES, Yolov5, build
from tolerances import LOSSES

SIZE_HW = (64, 96)
NUM_CLASSES = 3
Array = NDArray[np.float64]
# Of an object that fits one: level, row, column, anchor.
Place = tuple[int, int, int, int]


def sigmoid(values: Array | float) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.asarray(values, dtype=np.float64))))


def published_box(raw: Array, place: Place) -> Array:
    """Corners in pixels: centre (2 s - 0.5 + cell) * stride, sides (2 s)^2 * anchor."""
    level, row, column, anchor = place
    s = sigmoid(raw)
    centre_x = (2 * s[0] - 0.5 + column) * STRIDES[level]
    centre_y = (2 * s[1] - 0.5 + row) * STRIDES[level]
    width = (2 * s[2]) ** 2 * COCO_ANCHORS_WH[level][anchor][0]
    height = (2 * s[3]) ** 2 * COCO_ANCHORS_WH[level][anchor][1]
    return np.array([centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2])


def published_places(box: Array, level: int, grid_hw: tuple[int, int]) -> set[Place]:
    """Where an object is learned: anchors within a ratio of 4, its cell, and one beside it in either direction."""
    stride = STRIDES[level]
    x, y = (box[0] + box[2]) / 2 / stride, (box[1] + box[3]) / 2 / stride
    width, height = box[2] - box[0], box[3] - box[1]
    cells = [(int(x), int(y))]
    if x % 1 < 0.5 and x > 1:
        cells.append((int(x) - 1, int(y)))
    if (grid_hw[1] - x) % 1 < 0.5 and grid_hw[1] - x > 1:
        cells.append((int(x) + 1, int(y)))
    if y % 1 < 0.5 and y > 1:
        cells.append((int(x), int(y) - 1))
    if (grid_hw[0] - y) % 1 < 0.5 and grid_hw[0] - y > 1:
        cells.append((int(x), int(y) + 1))
    places = set()
    for anchor, (anchor_w, anchor_h) in enumerate(COCO_ANCHORS_WH[level]):
        worst = max(width / anchor_w, anchor_w / width, height / anchor_h, anchor_h / height)
        if worst < 4:
            places |= {(level, row, column, anchor) for column, row in cells}
    return places


def published_ciou(a: Array, b: Array) -> float:
    """IoU less the distance of the centres over the enclosing diagonal, and less the weighted unlikeness of shapes."""
    overlap_w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    overlap_h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    wa, ha, wb, hb = a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]
    iou = overlap_w * overlap_h / (wa * ha + wb * hb - overlap_w * overlap_h)
    diagonal = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    distance = ((a[0] + a[2] - b[0] - b[2]) ** 2 + (a[1] + a[3] - b[1] - b[3]) ** 2) / 4
    shape = 4 / math.pi**2 * (math.atan(wb / hb) - math.atan(wa / ha)) ** 2
    return float(iou - distance / diagonal - shape**2 / (1 - iou + shape))


def cross_entropy(logit: float, target: float) -> float:
    probability = float(sigmoid(logit))
    return -target * math.log(probability) - (1 - target) * math.log(1 - probability)


def grids() -> list[tuple[int, int]]:
    return [(SIZE_HW[0] // stride, SIZE_HW[1] // stride) for stride in STRIDES]


def all_places() -> list[Place]:
    """In the order of the predictions."""
    return [
        (level, row, column, anchor)
        for level, (rows, columns) in enumerate(grids())
        for row in range(rows)
        for column in range(columns)
        for anchor in range(3)
    ]


def random_targets(seed: int, num_images: int) -> Targets:
    """Objects of 4 to 90 pixels anywhere inside, with none in the last image."""
    random = np.random.default_rng(seed)
    boxes, class_ids = [], []
    for image in range(num_images):
        count = 0 if image == num_images - 1 else 9
        sides = np.exp(random.uniform(math.log(4), math.log(60), size=(count, 2)))
        corners = random.uniform(0, 1, size=(count, 2)) * (np.array(SIZE_HW[::-1]) - sides)
        boxes.append(torch.from_numpy(np.concatenate([corners, corners + sides], axis=1)).float())
        class_ids.append(torch.from_numpy(random.integers(NUM_CLASSES, size=count)))
    return Targets(boxes_xyxy=boxes, class_ids=class_ids)


@pytest.fixture(scope="module")
def model() -> Yolov5:
    torch.manual_seed(7)
    return build("yolov5-pico", NUM_CLASSES)


def test_every_output_channel_lands_in_its_prediction_and_decodes_as_published(model: Yolov5) -> None:
    outputs: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: outputs.append(out)) for layer in model.head.predictions]
    with torch.no_grad():
        heads = model.eval()(torch.rand(2, 3, *SIZE_HW) * 3)
    for hook in hooks:
        hook.remove()
    spec = model.decode_spec(SIZE_HW)
    priors = spec.priors()
    assert priors is not None
    places = all_places()
    assert heads["box_regression"].shape == (2, len(places), 4)
    indices = np.arange(len(places))
    boxes = decode_boxes(heads["box_regression"][1].numpy(), priors, indices, np.zeros_like(indices), spec.attributes())
    for index, place in enumerate(places):
        level, row, column, anchor = place
        numbers = outputs[level][1, anchor * 8 : (anchor + 1) * 8, row, column].double().numpy()
        np.testing.assert_allclose(boxes[index], published_box(numbers[:4], place), rtol=1e-5, atol=1e-3)
        assert heads["objectness"][1, index] == numbers[4]
        np.testing.assert_array_equal(heads["class_logits"][1, index].numpy(), numbers[5:])


@pytest.mark.parametrize("seed", range(5))
def test_matches_are_the_published_ones(seed: int) -> None:
    targets = random_targets(seed, 3)
    order = {place: index for index, place in enumerate(all_places())}
    first = 0
    num_pairs = 0
    for level, grid_hw in enumerate(grids()):
        anchors = torch.tensor(COCO_ANCHORS_WH[level], dtype=torch.float32)
        matches = match_by_ratio(targets, anchors, grid_hw=grid_hw, stride=STRIDES[level])
        boxes = [tuple(box) for box in matches.boxes_xyxy.tolist()]
        found = sorted(zip(matches.image.tolist(), (matches.prediction + first).tolist(), boxes, strict=True))
        expected = sorted(
            (image, order[place], tuple(box.tolist()))
            for image, image_boxes in enumerate(targets.boxes_xyxy)
            for box in image_boxes
            for place in published_places(box.double().numpy(), level, grid_hw)
        )
        assert found == expected
        first += grid_hw[0] * grid_hw[1] * 3
        num_pairs += len(expected)
    assert num_pairs > 50


def test_loss_is_the_published_one(model: Yolov5) -> None:
    targets = random_targets(11, 2)
    torch.manual_seed(1)
    places = all_places()
    heads = {
        "box_regression": torch.randn(2, len(places), 4),
        "class_logits": torch.randn(2, len(places), NUM_CLASSES),
        "objectness": torch.randn(2, len(places)),
        "_grids_hw": torch.tensor(grids()),
    }
    found = model.loss(heads, targets)
    expected = {"box": 0.0, "object": 0.0, "class": 0.0}
    for level, grid_hw in enumerate(grids()):
        wanted: dict[tuple[int, int], float] = {}
        boxes, classes = [], []
        for image in range(2):
            for box, class_id in zip(targets.boxes_xyxy[image].double(), targets.class_ids[image], strict=True):
                for place in published_places(box.numpy(), level, grid_hw):
                    index = places.index(place)
                    raw = heads["box_regression"][image, index].double().numpy()
                    overlap = published_ciou(published_box(raw, place), box.numpy())
                    boxes.append(1 - overlap)
                    wanted[image, index] = max(wanted.get((image, index), 0.0), overlap)
                    for number in range(NUM_CLASSES):
                        logit = float(heads["class_logits"][image, index, number])
                        classes.append(cross_entropy(logit, float(number == class_id)))
        objects = [
            cross_entropy(float(heads["objectness"][image, index]), wanted.get((image, index), 0.0))
            for image in range(2)
            for index, place in enumerate(places)
            if place[0] == level
        ]
        # Weights 0.05, 1 and 0.5, the second by the area of the image against 640 x 640 and by level, the third by the
        # number of classes against 80; all times the nominal batch of 64.
        if boxes:
            expected["box"] += 64 * 0.05 * float(np.mean(boxes))
            expected["class"] += 64 * 0.5 * NUM_CLASSES / 80 * float(np.mean(classes))
        area_share = SIZE_HW[0] * SIZE_HW[1] / 640**2
        expected["object"] += 64 * area_share * (4.0, 1.0, 0.4)[level] * float(np.mean(objects))
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=LOSSES), name


@pytest.mark.parametrize(
    ("variant", "widths", "num_tensors"), [("yolov5n", (64, 128, 256), 349), ("yolov5s", (128, 256, 512), 349)]
)
def test_heads_have_the_published_shapes(variant: str, widths: tuple[int, int, int], num_tensors: int) -> None:
    """At 80 classes: 3 * 85 channels; as many tensors as the authors' program reports when it loads a file."""
    with torch.device("meta"):
        state = build(variant, 80).state_dict()
    assert len(state) == num_tensors
    for level, width in enumerate(widths):
        assert tuple(state[f"head.predictions.{level}.weight"].shape) == (255, width, 1, 1)
