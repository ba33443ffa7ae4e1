"""The generated data set: what it holds, and that its bytes and boxes are what they should be."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from boxwright.core.boxes import pairwise_overlaps
from boxwright.core.errors import InputError, OutputError
from boxwright.core.images import read_image
from boxwright.data import generate_shapes, load_dataset
from boxwright.data.shapes import (
    CLASS_NAMES,
    MAX_OBJECTS,
    MIN_VISIBLE,
    SMALLEST_PIXELS,
    Shape,
    coverage,
    render_shapes,
)


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    size_hw = (70, 100)
    one = files_of(generate_shapes(tmp_path / "one", num_train=6, num_val=3, seed=5, image_size_hw=size_hw))
    again = files_of(generate_shapes(tmp_path / "again", num_train=6, num_val=3, seed=5, image_size_hw=size_hw))
    other = files_of(generate_shapes(tmp_path / "other", num_train=6, num_val=3, seed=6, image_size_hw=size_hw))
    more = files_of(generate_shapes(tmp_path / "more", num_train=8, num_val=3, seed=5, image_size_hw=size_hw))
    assert len(one) == 6 + 3 + 2 and one == again
    assert all(one[name] != other[name] for name in one)
    images = [name for name in one if name.endswith(".jpg")]
    assert len({one[name] for name in images}) == len(images)  # the splits share no image
    assert all(one[name] == more[name] for name in images)  # an image does not depend on how many others there are


@pytest.fixture(scope="module")
def drawn() -> list[tuple[np.ndarray, list[Shape]]]:
    return [render_shapes(np.random.default_rng([3, number]), (160, 192)) for number in range(150)]


def test_small_and_large_overlapping_and_empty(drawn) -> None:
    shapes = [shape for _, found in drawn for shape in found]
    boxes = np.float32([shape.box_xyxy for shape in shapes])
    longer_sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert longer_sides.min() >= SMALLEST_PIXELS - 0.02
    assert 0.2 < np.mean(longer_sides < 24) < 0.4 and 0.2 < np.mean(longer_sides > 48) < 0.45
    assert (boxes >= 0).all() and (boxes <= [192, 160, 192, 160]).all()
    counts = [len(found) for _, found in drawn]
    assert 1 <= counts.count(0) <= 20 and max(counts) == MAX_OBJECTS and 3 < np.mean(counts) < 5
    per_class = np.bincount([shape.class_id for shape in shapes], minlength=len(CLASS_NAMES))
    assert per_class.min() > 0.15 * len(shapes)
    overlapping = 0
    for _, found in drawn:
        overlaps = pairwise_overlaps(*[np.float32([shape.box_xyxy for shape in found]).reshape(-1, 4)] * 2)
        overlapping += bool((np.triu(overlaps, 1) > 0.1).any())
    assert overlapping > 0.2 * len(drawn)


def test_coverage_lies_where_the_polygon_does(drawn) -> None:
    for shape in (shape for _, found in drawn[:40] for shape in found):
        mask = coverage(shape.outline_xy, (slice(0, 160), slice(0, 192))) / 255
        left, top, right, bottom = (round(side) for side in shape.box_xyxy)
        window = slice(max(0, top - 3), bottom + 3), slice(max(0, left - 2), right + 2)
        window = slice(window[0].start, min(160, window[0].stop)), slice(window[1].start, min(192, window[1].stop))
        np.testing.assert_array_equal(coverage(shape.outline_xy, window), np.rint(mask[window] * 255))
        rows, columns = np.mgrid[:160, :192] + 0.5
        # Pixels are sampled at a quarter of a pixel; half a sample is how far the centre may be off.
        moments = cv2.moments(np.float32(shape.outline_xy))
        centre = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
        np.testing.assert_allclose([(mask * columns).sum(), (mask * rows).sum()] / mask.sum(), centre, atol=1 / 8)
        perimeter = cv2.arcLength(np.float32(shape.outline_xy), True)
        assert 0 <= mask.sum() - shape.area < 0.2 * perimeter  # OpenCV's polygons include their edge


def test_enough_is_seen_of_every_object(drawn) -> None:
    lowest = 1.0
    for _, found in drawn:
        owners = np.full((160, 192), -1)
        inside = [coverage(shape.outline_xy, (slice(0, 160), slice(0, 192))) >= 128 for shape in found]
        for index, pixels in enumerate(inside):
            owners[pixels] = index
        lowest = min([lowest, *((owners == index).sum() / pixels.sum() for index, pixels in enumerate(inside))])
    assert MIN_VISIBLE <= lowest < MIN_VISIBLE + 0.1


def test_objects_are_seen_where_their_boxes_are(drawn) -> None:
    """Redrawn without its last object, an image changes in that object's box, to its edges, and in its shadow."""
    checked = 0
    for number, (image, shapes) in enumerate(drawn):
        if len(shapes) != 1:
            continue
        background = render_background(number)
        changed = np.abs(image.astype(int) - background).max(axis=2) > 60
        rows, columns = np.nonzero(changed)
        left, top, right, bottom = shapes[0].box_xyxy
        reach = 0.2 * max(right - left, bottom - top) + 3  # of the shadow, to the right and below
        assert abs(columns.min() - left) < 2.5 and abs(rows.min() - top) < 2.5
        assert right - 2.5 < columns.max() + 1 < right + reach and bottom - 2.5 < rows.max() + 1 < bottom + reach
        checked += 1
    assert checked >= 5


def render_background(number: int) -> np.ndarray:
    from boxwright.data.textures import random_background

    return random_background(np.random.default_rng([3, number]), (160, 192)).astype(int)


def test_backgrounds_have_a_texture(drawn) -> None:
    for number in range(len(drawn)):
        assert render_background(number).std(axis=(0, 1)).max() > 3


def test_the_annotations_agree_with_the_shapes(tmp_path: Path) -> None:
    generate_shapes(tmp_path / "set", num_train=5, num_val=0, num_test=2, seed=4, image_size_hw=(96, 64))
    document = json.loads((tmp_path / "set" / "annotations" / "instances_train.json").read_text())
    assert not (tmp_path / "set" / "annotations" / "instances_val.json").exists()
    dataset = load_dataset(tmp_path / "set", "train")
    assert dataset.class_names == CLASS_NAMES and dataset.problems == ()
    for number, sample in enumerate(dataset.samples):
        image, shapes = render_shapes(np.random.default_rng([4, 0, number]), (96, 64))
        np.testing.assert_allclose(
            sample.boxes_xyxy, np.float32([s.box_xyxy for s in shapes]).reshape(-1, 4), atol=1e-4
        )
        np.testing.assert_array_equal(sample.class_ids, [shape.class_id for shape in shapes])
        np.testing.assert_allclose(sample.areas, np.float32([shape.area for shape in shapes]))
        stored = read_image(sample.image_path)
        assert stored.shape == (96, 64, 3) and np.abs(stored.astype(int) - image).mean() < 8  # JPEG
    assert [row["id"] for row in document["annotations"]] == list(range(1, dataset.num_boxes + 1))


@pytest.mark.parametrize(
    ("outline", "box", "area"),
    [
        ([[0, 0], [10, 0], [10, 4], [0, 4]], (0, 0, 10, 4), 40),
        ([[1, 1], [4, 1], [1, 5]], (1, 1, 4, 5), 6),
        ([[1, 5], [4, 1], [1, 1]], (1, 1, 4, 5), 6),
    ],
)
def test_box_and_area_of_a_polygon(outline: list[list[float]], box: tuple[float, ...], area: float) -> None:
    shape = Shape(class_id=0, outline_xy=np.array(outline, float))
    assert shape.box_xyxy == box and shape.area == area
    assert shape.area == cv2.contourArea(np.float32(outline))


def test_shapes_are_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    directory = tmp_path / "set"
    directory.mkdir()
    for seed in (1, 2):  # into an empty folder, then over its own
        generate_shapes(directory, num_train=2, num_val=1, seed=seed, image_size_hw=(64, 64))
    assert len(files_of(directory)) == 5
    (directory / "annotations" / "instances_train.json").write_text('{"info": {"description": "mine"}}')
    before = files_of(directory)
    with pytest.raises(OutputError, match="other content"):
        generate_shapes(directory, num_train=2, num_val=1, image_size_hw=(64, 64))
    other = tmp_path / "photos"
    other.mkdir()
    (other / "photo.jpg").write_bytes(b"dear to me")
    with pytest.raises(OutputError, match="other content"):
        generate_shapes(other, num_train=1, num_val=1)
    assert files_of(directory) == before and (other / "photo.jpg").read_bytes() == b"dear to me"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_train": -1}, "num_train"),
        ({"num_test": -5}, "num_test"),
        ({"seed": -1}, "seed"),
        ({"image_size_hw": (160, 63)}, "at least 64"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, arguments: dict, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        generate_shapes(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_an_interrupted_generation_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_shapes(tmp_path / "set", num_train=5, num_val=1, on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []
