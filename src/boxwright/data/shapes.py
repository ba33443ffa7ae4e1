"""A generated data set: coloured shapes on textured backgrounds, for a first run, tests and demonstrations.

Each image has a random generator of its own, seeded by (seed, split, number), so that an image does not depend on how
many others there are. Pixels are computed in integers, so that the same seed gives the same bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import InputError, OutputError
from boxwright.core.files import atomic_directory
from boxwright.core.images import Image
from boxwright.data.textures import Color, Random, random_background, random_color

CLASS_NAMES = ("circle", "square", "triangle", "star")
DESCRIPTION = "Boxwright shapes"
MIN_SIDE_PIXELS = 64
EMPTY_IMAGES = 0.05  # part of the images that hold no object
MAX_OBJECTS = 8
SMALLEST_PIXELS, LARGEST = 14.0, 0.55  # longer side of an object's box; the latter a part of the image's shorter side
MIN_VISIBLE = 0.55  # part of an object that later ones leave visible
MIN_CONTRAST = 90.0  # distance of an object's colour from what lies under it; black and white are 441 apart
JPEG_QUALITY = 92
_TRIES = 25  # to find a place or a colour
_SUPERSAMPLING = 4
_FRACTION_BITS = 4

Mask = NDArray[np.int32]
Window = tuple[slice, slice]  # rows, columns


@dataclass(frozen=True, kw_only=True, eq=False)
class Shape:
    """An object in a generated image.

    Attributes:
        class_id: index into `CLASS_NAMES`.
        outline_xy: (V, 2) float64, the corners of its polygon in pixels.
    """

    class_id: int
    outline_xy: NDArray[np.float64]

    @property
    def box_xyxy(self) -> tuple[float, float, float, float]:
        """Its bounding box in pixels, to a hundredth."""
        (left, top), (right, bottom) = self.outline_xy.min(axis=0), self.outline_xy.max(axis=0)
        return round(float(left), 2), round(float(top), 2), round(float(right), 2), round(float(bottom), 2)

    @property
    def area(self) -> float:
        """Of the polygon, in square pixels, to a hundredth."""
        x, y = self.outline_xy.T
        return round(abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2, 2)


def generate_shapes(
    directory: str | os.PathLike[str],
    *,
    num_train: int = 1600,
    num_val: int = 200,
    num_test: int = 0,
    seed: int = 0,
    image_size_hw: tuple[int, int] = (160, 160),
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Generate the data set in the COCO layout: about four objects an image, few images without.

    Args:
        directory: to write; one that this function wrote before is replaced, any other must be empty.
        num_train: images of the split.
        num_val: images of the split.
        num_test: images of the split; a split of none is not written.
        seed: the same seed gives the same bytes.
        image_size_hw: in pixels.
        on_progress: called with the number of images done and of all.

    Returns:
        The directory.

    Raises:
        InputError: where a number is out of range.
        OutputError: where the directory holds something else, or cannot be written.
    """
    counts = {"train": num_train, "val": num_val, "test": num_test}
    _check_arguments(counts, seed, image_size_hw)
    target = Path(directory)
    _check_replaceable(target)
    total, done = sum(counts.values()), 0
    with atomic_directory(target) as temporary:
        (temporary / "annotations").mkdir()
        for split_index, (split, count) in enumerate(counts.items()):
            if count == 0:
                continue
            (temporary / split).mkdir()
            rendered: list[tuple[str, list[Shape]]] = []
            for number in range(count):
                image, shapes = render_shapes(np.random.default_rng([seed, split_index, number]), image_size_hw)
                file_name = f"{split}_{number:05d}.jpg"
                (temporary / split / file_name).write_bytes(_encode(image))
                rendered.append((file_name, shapes))
                done += 1
                if on_progress is not None:
                    on_progress(done, total)
            text = json.dumps(_coco_document(rendered, image_size_hw, seed), separators=(",", ":"))
            (temporary / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
    return target


def render_shapes(random: Random, size_hw: tuple[int, int]) -> tuple[Image, list[Shape]]:
    """Draw one image.

    Args:
        random: what it is drawn from.
        size_hw: in pixels.

    Returns:
        (H, W, 3) uint8 BGR, and its objects, the ones in front last.
    """
    canvas = random_background(random, size_hw).astype(np.int32)
    owners = np.full(size_hw, -1, np.int32)  # which object is seen at each pixel
    seen, sizes = np.zeros(MAX_OBJECTS, np.int64), np.zeros(MAX_OBJECTS, np.int64)  # of each object, in pixels
    shapes: list[Shape] = []
    count = 0 if random.uniform() < EMPTY_IMAGES else int(random.integers(1, MAX_OBJECTS + 1))
    for _ in range(count):
        for _ in range(_TRIES):
            shape = _random_shape(random, size_hw)
            window = _window(shape, size_hw)
            is_inside = coverage(shape.outline_xy, window) >= 128
            hidden = owners[window][is_inside]
            seen_after = seen - np.bincount(hidden[hidden >= 0], minlength=MAX_OBJECTS)
            if (seen_after >= MIN_VISIBLE * sizes).all():
                _paint(random, canvas[window], shape, window)
                owners[window][is_inside] = len(shapes)
                seen, sizes[len(shapes)] = seen_after, is_inside.sum()
                seen[len(shapes)] = sizes[len(shapes)]
                shapes.append(shape)
                break
    return canvas.astype(np.uint8), shapes


def _window(shape: Shape, size_hw: tuple[int, int]) -> Window:
    """The rows and columns that a shape and its shadow touch."""
    left, top, right, bottom = shape.box_xyxy
    margin = 2 + round(max(right - left, bottom - top) / 6)
    rows = slice(max(0, math.floor(top) - margin), min(size_hw[0], math.ceil(bottom) + margin))
    return rows, slice(max(0, math.floor(left) - margin), min(size_hw[1], math.ceil(right) + margin))


def _random_shape(random: Random, size_hw: tuple[int, int]) -> Shape:
    class_id = int(random.integers(len(CLASS_NAMES)))
    corners = _turned(_unit_outline(CLASS_NAMES[class_id]), _random_angle(random, CLASS_NAMES[class_id]))
    corners = corners - (corners.min(axis=0) + corners.max(axis=0)) / 2
    largest = LARGEST * min(size_hw)
    extent = SMALLEST_PIXELS * (largest / SMALLEST_PIXELS) ** random.uniform()  # as many small as large ones
    corners *= extent / np.ptp(corners, axis=0).max()
    half_width, half_height = corners.max(axis=0)
    centre = random.uniform(half_width, size_hw[1] - half_width), random.uniform(half_height, size_hw[0] - half_height)
    return Shape(class_id=class_id, outline_xy=corners + np.array(centre))


def _unit_outline(name: str) -> NDArray[np.float64]:
    """The corners (V, 2) of an upright shape in a circle of radius 1."""
    if name == "star":
        radii, num_corners = (1.0, 0.42), 10
    else:
        radii, num_corners = (1.0, 1.0), {"circle": 48, "square": 4, "triangle": 3}[name]
    start = math.pi / 4 if name == "square" else -math.pi / 2
    angles = [start + 2 * math.pi * corner / num_corners for corner in range(num_corners)]
    return np.array(
        [
            (radii[corner % 2] * math.cos(angle), radii[corner % 2] * math.sin(angle))
            for corner, angle in enumerate(angles)
        ]
    )


def _random_angle(random: Random, name: str) -> float:
    """Any angle for a star; less for what turned further would look like another pose of itself or a diamond."""
    largest = {"circle": 0.0, "square": math.pi / 9, "triangle": math.pi / 6, "star": math.pi / 5}[name]
    return float(random.uniform(-largest, largest))


def _turned(points_xy: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    cosine, sine = math.cos(angle), math.sin(angle)
    x, y = points_xy[:, 0], points_xy[:, 1]
    return np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=1)


def coverage(outline_xy: NDArray[np.float64], window: Window, *, line_pixels: float = 0.0) -> Mask:
    """How much of each pixel of a window a polygon covers, or the line along its edge.

    Args:
        outline_xy: (V, 2), pixels of the image.
        window: rows and columns of the image.
        line_pixels: width of the line; the polygon is filled where 0.

    Returns:
        (H, W) int32 of the window, 0 to 255.
    """
    height, width = window[0].stop - window[0].start, window[1].stop - window[1].start
    large = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.uint8)
    # OpenCV's coordinates mean the centres of pixels, ours their corners.
    corners = (outline_xy - (window[1].start, window[0].start)) * _SUPERSAMPLING - 0.5
    points = np.rint(corners * 2**_FRACTION_BITS).astype(np.int32)
    if line_pixels > 0:
        thickness = max(1, round(line_pixels * _SUPERSAMPLING))
        cv2.polylines(large, [points], True, 1, thickness, cv2.LINE_8, _FRACTION_BITS)
    else:
        cv2.fillPoly(large, [points], 1, cv2.LINE_8, _FRACTION_BITS)
    counts = np.zeros((height, width), np.int32)  # of the samples covered
    for row in range(_SUPERSAMPLING):
        for column in range(_SUPERSAMPLING):
            counts += large[row::_SUPERSAMPLING, column::_SUPERSAMPLING]
    return counts * 255 // _SUPERSAMPLING**2


def _paint(random: Random, canvas: NDArray[np.int32], shape: Shape, window: Window) -> None:
    """Draw a shape with its shadow, shading and edge onto the part (H, W, 3) of the canvas that the window shows."""
    left, top, right, bottom = shape.box_xyxy
    extent = max(right - left, bottom - top)
    mask = coverage(shape.outline_xy, window)
    color = _contrasting_color(random, canvas, mask)
    offset = max(1, round(extent / 16))
    shadow = coverage(shape.outline_xy + offset, window).astype(np.uint8)
    _blend(canvas, np.zeros(3, np.int32), cv2.blur(shadow, (2 * offset + 1, 2 * offset + 1)).astype(np.int32) * 2 // 5)
    rows = np.arange(window[0].start, window[0].stop)[:, None, None]
    shade = (rows - round((top + bottom) / 2)) * 40 // round(bottom - top)  # lighter above, darker below
    grain = random.integers(-5, 6, (*mask.shape, 1))
    _blend(canvas, np.clip(color - shade + grain, 0, 255), mask)
    edge = coverage(shape.outline_xy, window, line_pixels=extent / 14)
    _blend(canvas, color * 11 // 20, np.minimum(edge, mask))


def _contrasting_color(random: Random, canvas: NDArray[np.int32], mask: Mask) -> Color:
    """A strong colour that differs from what it will cover, as far as a few tries find one."""
    covered = canvas[mask >= 128].mean(axis=0)
    best, best_distance = random_color(random, (0.55, 1.0), (0.6, 1.0)), -1.0
    for _ in range(_TRIES):
        color = random_color(random, (0.55, 1.0), (0.6, 1.0))
        distance = math.dist(color.tolist(), covered.tolist())
        if distance > best_distance:
            best, best_distance = color, distance
        if distance >= MIN_CONTRAST:
            break
    return best


def _blend(canvas: NDArray[np.int32], color: NDArray[np.int32], opacity: Mask) -> None:
    """Lay a colour, (3,) or (H, W, 3), over the canvas with an opacity (H, W) of 0 to 255."""
    weight = opacity[..., None]
    canvas[:] = (canvas * (255 - weight) + color * weight + 127) // 255


def _encode(image: Image) -> bytes:
    is_encoded, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert is_encoded
    return data.tobytes()


def _coco_document(rendered: list[tuple[str, list[Shape]]], size_hw: tuple[int, int], seed: int) -> dict[str, Any]:
    height, width = size_hw
    images = [
        {"id": number, "file_name": name, "height": height, "width": width}
        for number, (name, _) in enumerate(rendered, start=1)
    ]
    annotations: list[dict[str, Any]] = []
    for number, (_, shapes) in enumerate(rendered, start=1):
        for shape in shapes:
            left, top, right, bottom = shape.box_xyxy
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": shape.class_id + 1,
                    "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
                    "area": shape.area,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": index, "name": name} for index, name in enumerate(CLASS_NAMES, start=1)]
    info = {"description": DESCRIPTION, "seed": seed}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def _check_arguments(counts: dict[str, int], seed: int, image_size_hw: tuple[int, int]) -> None:
    for split, count in counts.items():
        if count < 0:
            raise InputError(f"num_{split}", expected="0 or more images", got=str(count), fix="pass another number")
    if seed < 0:
        raise InputError("seed", expected="0 or more", got=str(seed), fix="pass another number")
    if min(image_size_hw) < MIN_SIDE_PIXELS:
        raise InputError(
            "image_size_hw",
            expected=f"at least {MIN_SIDE_PIXELS} pixels a side",
            got=f"{image_size_hw[0]}, {image_size_hw[1]}",
            fix="pass a larger size",
        )


def _check_replaceable(directory: Path) -> None:
    """Refuse to replace a folder that holds anything but shapes."""
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    annotation_files = list((directory / "annotations").glob("instances_*.json"))
    try:
        documents = [json.loads(file.read_text(encoding="utf-8")) for file in annotation_files]
        is_ours = bool(documents) and all(item["info"]["description"] == DESCRIPTION for item in documents)
    except (OSError, ValueError, KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise OutputError(
            str(directory),
            expected="a new or empty folder, or shapes generated before",
            got="a folder with other content",
            fix="choose another path",
        )
