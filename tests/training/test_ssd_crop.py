"""SSD's crops: what stays of an image and its objects, and what must not."""

from __future__ import annotations

import numpy as np
import pytest

from boxwright.core.boxes import pairwise_overlaps
from boxwright.training import ssd_crop
from boxwright.training.augment import LabeledImage
from boxwright.training.ssd_crop import LARGEST_RATIO, crop_by_overlap, distort_colors, expand, ssd_augment

SIZE_HW = (90, 140)
PAD = (10.0, 20.0, 30.0)
# Each object is filled with a colour of its own, so that a test can see where it lies.
BOXES = np.array([[10, 12, 50, 62], [70, 20, 130, 80], [60, 2, 68, 9]], dtype=np.float32)
COLORS = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], dtype=np.uint8)


def picture(boxes: np.ndarray = BOXES) -> LabeledImage:
    image = np.full((*SIZE_HW, 3), 90, dtype=np.uint8)
    for box, color in zip(boxes.astype(int), COLORS, strict=False):
        image[box[1] : box[3], box[0] : box[2]] = color
    return LabeledImage(image=image, boxes_xyxy=boxes, class_ids=np.arange(len(boxes)))


def assert_boxes_hold_their_objects(labeled: LabeledImage) -> None:
    for box, class_id in zip(labeled.boxes_xyxy, labeled.class_ids, strict=True):
        left, top, right, bottom = box.astype(int)
        assert 0 <= left < right <= labeled.size_hw[1] and 0 <= top < bottom <= labeled.size_hw[0]
        assert (labeled.image[top:bottom, left:right] == COLORS[class_id]).all()


@pytest.mark.parametrize("seed", range(20))
def test_zooming_out_keeps_every_pixel(seed: int) -> None:
    original = picture()
    labeled = expand(original, PAD, np.random.default_rng(seed))
    assert_boxes_hold_their_objects(labeled)
    assert len(labeled.boxes_xyxy) == len(BOXES)
    assert all(side <= 4 * before for side, before in zip(labeled.size_hw, SIZE_HW, strict=True))
    is_padding = (labeled.image == np.array(PAD, dtype=np.uint8)).all(axis=2)
    assert (~is_padding).sum() == SIZE_HW[0] * SIZE_HW[1]


def test_zooming_out_reaches_from_1_to_4() -> None:
    sides = [expand(picture(), PAD, np.random.default_rng(seed)).size_hw[0] / SIZE_HW[0] for seed in range(200)]
    assert min(sides) < 1.1 and max(sides) > 3.9


@pytest.mark.parametrize("least", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_cuts_overlap_an_object_as_much_as_was_drawn(least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssd_crop, "LEAST_OVERLAPS", (least,))
    num_cut = 0
    for seed in range(60):
        labeled = crop_by_overlap(picture(), np.random.default_rng(seed))
        assert_boxes_hold_their_objects(labeled)
        if labeled.size_hw == SIZE_HW:
            continue
        num_cut += 1
        height, width = labeled.size_hw
        assert max(height, width) <= LARGEST_RATIO * min(height, width)
        assert len(labeled.boxes_xyxy) >= 1
        whole = np.array([[0, 0, width, height]], dtype=np.float32)
        seen = pairwise_overlaps(labeled.boxes_xyxy, whole).max()
        # Of what is seen of an object; of the whole object the overlap is smaller still, and that is what must suffice.
        assert seen >= least
    assert num_cut >= {0.9: 0, 0.7: 1}.get(least, 20)


def test_an_object_stays_where_its_middle_does() -> None:
    for seed in range(100):
        labeled = crop_by_overlap(picture(), np.random.default_rng(seed))
        gone = set(range(3)) - set(labeled.class_ids.tolist())
        for class_id in gone:  # at most half of it in either direction can still be seen
            rows, columns = np.nonzero((labeled.image == COLORS[class_id]).all(axis=2))
            extent = BOXES[class_id, 2:] - BOXES[class_id, :2]
            seen = (np.ptp(columns) + 1, np.ptp(rows) + 1) if len(rows) else (0, 0)
            assert seen[0] <= extent[0] / 2 + 1 or seen[1] <= extent[1] / 2 + 1


def test_whole_images_are_drawn_too_and_images_without_objects_stay() -> None:
    whole = [crop_by_overlap(picture(), np.random.default_rng(seed)).size_hw == SIZE_HW for seed in range(200)]
    assert 20 < sum(whole) < 150
    empty = picture(np.zeros((0, 4), dtype=np.float32))
    for seed in range(10):
        assert crop_by_overlap(empty, np.random.default_rng(seed)).size_hw == SIZE_HW


def test_colours_change_and_shapes_do_not() -> None:
    image = picture().image
    results = [distort_colors(image, np.random.default_rng(seed)) for seed in range(40)]
    assert all(result.shape == image.shape and result.dtype == np.uint8 for result in results)
    changed = [np.abs(result.astype(int) - image).max() for result in results]
    assert np.mean(np.array(changed) > 5) > 0.7
    # Grey has no hue and no saturation: all that changes it is brightness and contrast.
    grey = np.full((4, 4, 3), 100, dtype=np.uint8)
    for seed in range(40):
        result = distort_colors(grey, np.random.default_rng(seed))
        assert np.ptp(result) <= 1 and (100 - 32) / 2 - 1 <= result[0, 0, 0] <= (100 + 32) * 1.5 + 1


def test_the_same_seed_gives_the_same_image() -> None:
    first, second = (ssd_augment(picture(), PAD, np.random.default_rng(5)) for _ in range(2))
    assert (first.image == second.image).all() and (first.boxes_xyxy == second.boxes_xyxy).all()
    other = ssd_augment(picture(), PAD, np.random.default_rng(6))
    assert other.size_hw != first.size_hw or (other.image != first.image).any()
