"""Boxes must go where their pixels go: a bright rectangle on grey is found again after each variation."""

import numpy as np
import pytest

from boxwright.core.preprocess import Preprocess, ResizeMode
from boxwright.training.augment import (
    LabeledImage,
    flip_horizontally,
    jitter_color,
    mixup,
    mosaic,
    mosaic_of_nine,
    place,
    random_affine,
    with_visible_boxes,
)
from boxwright.training.config import Augmentation
from boxwright.training.copy_paste import copy_paste
from boxwright.training.dataset import resize_as_preprocessed

GREY = (114.0, 114.0, 114.0)
STILL = Augmentation(mosaic=0, mixup=0, flip=0, scale_range=(1, 1), translate=0, hue=0, saturation=0, brightness=0)


def rectangle(size_hw: tuple[int, int], box: tuple[int, int, int, int], class_id: int = 0) -> LabeledImage:
    image = np.full((*size_hw, 3), 114, np.uint8)
    left, top, right, bottom = box
    image[top:bottom, left:right] = 250
    return LabeledImage(
        image=image, boxes_xyxy=np.array([box], dtype=np.float32), class_ids=np.array([class_id], dtype=np.int64)
    )


def bright_box(image: np.ndarray) -> list[float]:
    """The box around what is brighter than halfway."""
    rows, columns = np.nonzero(image[..., 1] > 182)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def assert_box_is_where_the_pixels_are(labeled: LabeledImage, tolerance: float = 1.0) -> None:
    assert len(labeled.boxes_xyxy) == 1
    np.testing.assert_allclose(labeled.boxes_xyxy[0], bright_box(labeled.image), atol=tolerance)


def test_flip() -> None:
    flipped = flip_horizontally(rectangle((40, 70), (5, 8, 25, 30)))
    assert flipped.boxes_xyxy.tolist() == [[45, 8, 65, 30]]
    assert_box_is_where_the_pixels_are(flipped, 0)
    back = flip_horizontally(flipped)
    assert back.boxes_xyxy.tolist() == [[5, 8, 25, 30]]


def test_place() -> None:
    placed = place(rectangle((40, 70), (5, 8, 25, 30)), (65, 80), GREY)
    assert placed.size_hw == (65, 80)
    assert_box_is_where_the_pixels_are(placed, 0)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("degrees", [0.0, 90.0])
def test_affine_moves_boxes_with_their_pixels(seed: int, degrees: float) -> None:
    augmentation = Augmentation(scale_range=(0.6, 1.3), translate=0.1, degrees=0.0)
    labeled = rectangle((90, 120), (40, 30, 75, 62))
    random = np.random.default_rng(seed)
    if degrees:  # a quarter turn keeps the rectangle upright
        augmentation = Augmentation(scale_range=(0.6, 1.0), translate=0.05, degrees=90.0)
        random = _FullTurns(random)
    moved = random_affine(labeled, (96, 128), augmentation, GREY, random)
    assert moved.size_hw == (96, 128)
    assert_box_is_where_the_pixels_are(moved)


class _FullTurns:
    """A generator whose draw from [-pi/2, pi/2], the angle, is at the upper end."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random

    def uniform(self, low: float, high: float, size: int | None = None) -> object:
        return high if high == 90.0 else self._random.uniform(low, high, size=size)


def test_affine_that_does_nothing_changes_no_pixel() -> None:
    labeled = rectangle((64, 96), (10, 20, 50, 40))
    same = random_affine(labeled, (64, 96), STILL, GREY, np.random.default_rng(0))
    np.testing.assert_array_equal(same.image, labeled.image)
    assert same.boxes_xyxy.tolist() == labeled.boxes_xyxy.tolist()


@pytest.mark.parametrize("seed", range(12))
def test_mosaic_keeps_every_box_on_its_pixels(seed: int) -> None:
    sizes = [(50, 96), (64, 64), (64, 40), (33, 96)]
    parts = [rectangle(size, (8, 9, 30, 28), class_id) for class_id, size in enumerate(sizes)]
    composed = mosaic(parts, (64, 96), GREY, np.random.default_rng(seed))
    assert composed.size_hw == (128, 192)
    assert len(composed.boxes_xyxy) >= 1
    covered = np.zeros((128, 192), dtype=bool)
    for left, top, right, bottom in composed.boxes_xyxy.astype(int):
        assert (composed.image[top:bottom, left:right] == 250).all()
        covered[top:bottom, left:right] = True
    # What is bright outside the boxes belongs to an object of which too little is left.
    remainder = (composed.image[..., 0] == 250) & ~covered
    assert remainder.sum() <= (4 - len(composed.boxes_xyxy)) * 0.2 * 22 * 19 + 1
    assert len(set(composed.class_ids.tolist())) == len(composed.class_ids)


def test_mosaic_puts_each_part_in_its_quarter() -> None:
    parts = [rectangle((64, 96), (40, 20, 60, 40), class_id) for class_id in range(4)]
    composed = mosaic(parts, (64, 96), GREY, np.random.default_rng(3))
    centres = {
        class_id: (box[:2] + box[2:]) / 2
        for class_id, box in zip(composed.class_ids.tolist(), composed.boxes_xyxy, strict=True)
    }
    assert set(centres) == {0, 1, 2, 3}
    assert centres[0][0] < centres[1][0] and centres[2][0] < centres[3][0]
    assert centres[0][1] < centres[2][1] and centres[1][1] < centres[3][1]


def test_mixup_has_the_objects_of_both() -> None:
    mixed = mixup(rectangle((40, 40), (2, 2, 12, 12), 3), rectangle((40, 40), (20, 20, 30, 30), 5))
    assert mixed.boxes_xyxy.tolist() == [[2, 2, 12, 12], [20, 20, 30, 30]]
    assert mixed.class_ids.tolist() == [3, 5]
    assert mixed.image[5, 5, 0] == mixed.image[25, 25, 0] == 182


def test_boxes_that_a_crop_leaves_too_little_of_are_dropped() -> None:
    boxes = np.array([[-90, 0, 10, 20], [-5, 0, 10, 20], [50, 10, 51, 30], [99, 0, 140, 20]], dtype=np.float32)
    kept = with_visible_boxes(np.zeros((40, 100, 3), np.uint8), boxes, np.arange(4))
    assert kept.class_ids.tolist() == [1]
    assert kept.boxes_xyxy.tolist() == [[0, 0, 10, 20]]


def test_no_boxes_go_through_everything() -> None:
    empty = LabeledImage(
        image=np.zeros((32, 48, 3), np.uint8), boxes_xyxy=np.zeros((0, 4), np.float32), class_ids=np.zeros(0, np.int64)
    )
    random = np.random.default_rng(0)
    composed = mosaic([empty] * 4, (32, 48), GREY, random)
    moved = flip_horizontally(random_affine(composed, (32, 48), Augmentation(degrees=10), GREY, random))
    assert mixup(moved, moved).boxes_xyxy.shape == (0, 4)


def test_color_jitter_stays_within_its_limits_and_does_nothing_at_zero() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(jitter_color(image, STILL, np.random.default_rng(0)), image)
    dimmed = Augmentation(hue=0, saturation=0, brightness=0.4)
    grey = np.full((4, 4, 3), 100, np.uint8)
    values = [int(jitter_color(grey, dimmed, np.random.default_rng(seed))[0, 0, 0]) for seed in range(60)]
    assert 59 <= min(values) < 75 and 125 < max(values) <= 140


PREPROCESSES: list[tuple[ResizeMode, dict[str, int]]] = [
    ("letterbox", {}),
    ("letterbox_topleft", {}),
    ("stretch", {}),
    ("shortest_edge", {"shortest_edge": 48, "max_size": 80}),
]


@pytest.mark.parametrize(("resize", "more"), PREPROCESSES)
@pytest.mark.parametrize("image_hw", [(100, 161), (161, 100), (33, 40), (64, 96)])
def test_preprocessing_a_resized_image_is_preprocessing_the_image(
    resize: ResizeMode, more: dict[str, int], image_hw: tuple[int, int]
) -> None:
    preprocess = Preprocess(size_hw=(64, 96), resize=resize, **more)  # type: ignore[arg-type]
    image = np.random.default_rng(0).integers(0, 256, (*image_hw, 3), dtype=np.uint8)
    boxes = np.array([[3, 4, 20, 30]], dtype=np.float32)
    resized = resize_as_preprocessed(
        LabeledImage(image=image, boxes_xyxy=boxes, class_ids=np.zeros(1, np.int64)), preprocess, (64, 96)
    )
    expected, transform = preprocess.apply(image)
    found, resized_transform = preprocess.apply(resized.image)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(resized_transform.to_network(resized.boxes_xyxy), transform.to_network(boxes), atol=1e-3)


@pytest.mark.parametrize("seed", range(12))
def test_mosaic_of_nine_keeps_every_box_on_its_pixels(seed: int) -> None:
    sizes = [(50, 96), (64, 64), (64, 40), (33, 96), (64, 96), (20, 96), (64, 96), (64, 30), (41, 96)]
    parts = [rectangle(size, (8, 3, 28, 17), class_id) for class_id, size in enumerate(sizes)]
    composed = mosaic_of_nine(parts, (64, 96), GREY, np.random.default_rng(seed))
    assert composed.size_hw == (128, 192)
    assert len(composed.boxes_xyxy) >= 2
    covered = np.zeros((128, 192), dtype=bool)
    for left, top, right, bottom in composed.boxes_xyxy.astype(int):
        assert (composed.image[top:bottom, left:right] == 250).all()
        assert not covered[top:bottom, left:right].any()  # no image lies on another
        covered[top:bottom, left:right] = True
    remainder = (composed.image[..., 0] == 250) & ~covered
    assert remainder.sum() <= (9 - len(composed.boxes_xyxy)) * 0.2 * 20 * 14 + 1
    assert len(set(composed.class_ids.tolist())) == len(composed.class_ids)


def test_mosaic_of_nine_puts_eight_around_the_first() -> None:
    parts = [rectangle((64, 96), (40, 20, 60, 40), class_id) for class_id in range(9)]
    seen: dict[int, set[tuple[int, int]]] = {}
    for seed in range(30):
        composed = mosaic_of_nine(parts, (64, 96), GREY, np.random.default_rng(seed))
        centres = (composed.boxes_xyxy[:, :2] + composed.boxes_xyxy[:, 2:]) / 2
        ids = composed.class_ids.tolist()
        assert 0 in ids  # the window is so large that the middle is always in it
        own = centres[ids.index(0)]
        for class_id, centre in zip(ids, centres, strict=True):
            x, y = np.sign(np.round((centre - own) / [96, 64])).astype(int).tolist()
            seen.setdefault(class_id, set()).add((y, x))
    places = [(0, 0), (-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    assert seen == {class_id: {place} for class_id, place in enumerate(places)}


def test_copy_paste_adds_boxes_on_their_pixels_and_hides_none() -> None:
    base = rectangle((64, 96), (10, 10, 40, 40), 7)
    base.image[base.image == 250] = 30
    donor = rectangle((48, 48), (5, 6, 25, 30), 3)
    before = base.image.copy()
    for seed in range(20):
        pasted = copy_paste(base, donor, np.random.default_rng(seed))
        assert pasted.class_ids.tolist() == [7, 3]
        assert pasted.boxes_xyxy[0].tolist() == [10, 10, 40, 40]
        np.testing.assert_allclose(pasted.boxes_xyxy[1], bright_box(pasted.image), atol=0)
        left, top, right, bottom = pasted.boxes_xyxy[1].astype(int)
        assert (right - left, bottom - top) == (20, 24)
        assert (pasted.image[10:40, 10:40] == 250).mean() <= 0.3 + 1e-6
    np.testing.assert_array_equal(base.image, before)


def test_copy_paste_leaves_out_what_has_no_room() -> None:
    full = rectangle((40, 40), (0, 0, 40, 40), 1)
    random = np.random.default_rng(0)
    too_large = copy_paste(rectangle((40, 40), (1, 1, 9, 9), 1), rectangle((90, 90), (0, 0, 80, 80)), random)
    assert too_large.class_ids.tolist() == [1]
    assert copy_paste(full, rectangle((40, 40), (5, 5, 33, 33)), random).class_ids.tolist() == [1]
    assert copy_paste(full, rectangle((40, 40), (5, 5, 15, 15)), random).class_ids.tolist() == [1, 0]
    nothing = LabeledImage(
        image=np.zeros((32, 48, 3), np.uint8), boxes_xyxy=np.zeros((0, 4), np.float32), class_ids=np.zeros(0, np.int64)
    )
    assert copy_paste(nothing, nothing, random).boxes_xyxy.shape == (0, 4)
    assert len(copy_paste(nothing, rectangle((32, 32), (2, 2, 9, 9)), random).boxes_xyxy) == 1
