"""Boxes and labels drawn into images of any size."""

import itertools

import numpy as np
import pytest

from boxwright.core.detections import Detections
from boxwright.core.draw import class_colour, draw_detections

NAMES = ("cat", "größter Hund", "猫")


def _detections(*boxes: list[float], class_id: int = 0) -> Detections:
    return Detections(
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.linspace(0.9, 0.5, len(boxes), dtype=np.float32),
        class_ids=np.full(len(boxes), class_id, np.int32),
    )


@pytest.mark.parametrize("size_hw", [(480, 640), (1080, 1920), (300, 5000)])
def test_the_line_lies_on_the_box(size_hw: tuple[int, int]) -> None:
    image = np.full((*size_hw, 3), 128, np.uint8)
    drawn = draw_detections(image, _detections([50, 150, 250, 260]), NAMES)
    assert drawn.shape == image.shape
    assert (image == 128).all()
    for x, y in ((150, 260), (50, 205), (250, 205)):
        assert tuple(drawn[y, x].tolist()) == class_colour(0)
    assert (drawn[205, 150] == 128).all()  # the inside stays as it is
    assert (drawn[5, 5] == 128).all()


@pytest.mark.parametrize(("size_hw", "factor"), [((48, 64), 5), ((2, 300), 120), ((239, 400), 2), ((240, 240), 1)])
def test_small_images_are_enlarged(size_hw: tuple[int, int], factor: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size_hw, 3)).astype(np.uint8)
    drawn = draw_detections(image, Detections.empty(), NAMES)
    assert drawn.shape == (size_hw[0] * factor, size_hw[1] * factor, 3)
    assert (drawn[::factor, ::factor] == image).all()
    assert drawn.base is None or not np.shares_memory(drawn, image)


@pytest.mark.parametrize(
    "box", [[0, 0, 640, 480], [639, 479, 640, 480], [0, 0, 1, 1], [300, 0, 300, 480], [0, 470, 9, 480]]
)
@pytest.mark.parametrize("class_id", range(3))
def test_every_label_is_inside_the_image(box: list[float], class_id: int) -> None:
    """The label is a filled area of the class's colour, which can be counted."""
    drawn = draw_detections(np.zeros((480, 640, 3), np.uint8), _detections(box, class_id=class_id), NAMES)
    label_pixels = (drawn == class_colour(class_id)).all(axis=2)
    rows = np.flatnonzero(label_pixels.sum(axis=1) > 25)
    assert len(rows) >= 10


def test_labels_of_one_box_do_not_cover_each_other() -> None:
    """White pixels of the letters are counted: none of them is painted over."""
    background = np.full((480, 640, 3), 200, np.uint8)
    box = [100.0, 100.0, 400.0, 300.0]
    letters = [
        (draw_detections(background, _detections(*[box] * count), ("yellow",)) > 225).all(axis=2).sum()
        for count in (1, 3)
    ]
    assert letters[0] > 30
    assert letters[1] > 2.8 * letters[0]


def test_colours_differ() -> None:
    colours = [class_colour(class_id) for class_id in range(80)]
    assert len(set(colours)) == 80
    neighbours = [np.abs(np.subtract(a, b)).sum() for a, b in itertools.pairwise(colours)]
    assert min(neighbours) > 100
    assert class_colour(0) == class_colour(0)
