"""Variations of training images, on uint8 pixels and boxes in pixels; all randomness comes from a given generator.

Every function takes and returns a `LabeledImage` and drops the boxes of which too little is left to be seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import FloatArray, box_areas, clip_boxes
from boxwright.core.images import Image
from boxwright.training.config import USUAL_SCALE_RANGE, Augmentation

# A box that a crop leaves smaller than this, or with less than this part of itself, is no object any more.
MIN_SIDE_PIXELS = 2.0
MIN_VISIBLE = 0.2
Color = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class LabeledImage:
    """An image with its objects.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        boxes_xyxy: (M, 4) float32, pixels of the image.
        class_ids: (M,) int64.
    """

    image: Image
    boxes_xyxy: FloatArray
    class_ids: NDArray[np.int64]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[0], self.image.shape[1]


def with_visible_boxes(image: Image, boxes_xyxy: FloatArray, class_ids: NDArray[np.int64]) -> LabeledImage:
    """Clip boxes that may reach out of the image and drop those of which too little is left."""
    clipped = clip_boxes(boxes_xyxy, (image.shape[0], image.shape[1]))
    sides = clipped[:, 2:] - clipped[:, :2]
    visible = (sides >= MIN_SIDE_PIXELS).all(axis=1)
    visible &= box_areas(clipped) >= MIN_VISIBLE * box_areas(boxes_xyxy)
    return LabeledImage(image=image, boxes_xyxy=clipped[visible], class_ids=class_ids[visible])


def place(labeled: LabeledImage, size_hw: tuple[int, int], pad_color: Color) -> LabeledImage:
    """Put an image into the middle of a canvas that is at least as large."""
    canvas = _canvas(size_hw, pad_color)
    height, width = labeled.size_hw
    top, left = (size_hw[0] - height) // 2, (size_hw[1] - width) // 2
    canvas[top : top + height, left : left + width] = labeled.image
    shift = np.array([left, top, left, top], dtype=np.float32)
    return LabeledImage(image=canvas, boxes_xyxy=labeled.boxes_xyxy + shift, class_ids=labeled.class_ids)


def mosaic(
    four: Sequence[LabeledImage], size_hw: tuple[int, int], pad_color: Color, random: np.random.Generator
) -> LabeledImage:
    """Four images that meet in a point near the middle of a canvas of twice the size, what reaches out cut off.

    Source: Bochkovskiy et al., YOLOv4, 2020, sec. 3.3.
    """
    height, width = size_hw
    canvas = _canvas((2 * height, 2 * width), pad_color)
    meet_y = int(random.uniform(0.5 * height, 1.5 * height))
    meet_x = int(random.uniform(0.5 * width, 1.5 * width))
    boxes, class_ids = [], []
    for index, part in enumerate(four):
        part_h, part_w = part.size_hw
        # In order: above left of the meeting point, above right, below left, below right.
        top = meet_y - part_h if index < 2 else meet_y
        left = meet_x - part_w if index % 2 == 0 else meet_x
        y1, x1 = max(top, 0), max(left, 0)
        y2, x2 = min(top + part_h, 2 * height), min(left + part_w, 2 * width)
        canvas[y1:y2, x1:x2] = part.image[y1 - top : y2 - top, x1 - left : x2 - left]
        boxes.append(part.boxes_xyxy + np.array([left, top, left, top], dtype=np.float32))
        class_ids.append(part.class_ids)
    return with_visible_boxes(canvas, np.concatenate(boxes), np.concatenate(class_ids))


def mosaic_of_nine(
    nine: Sequence[LabeledImage], size_hw: tuple[int, int], pad_color: Color, random: np.random.Generator
) -> LabeledImage:
    """Nine images, eight around one, of which a window of twice the size is taken at a random place.

    Every image is cut off where the row or column of the one in the middle ends, so none covers another.

    Source: an extension of YOLOv4's mosaic (Bochkovskiy et al., 2020, sec. 3.3) to three rows and columns.
    """
    height, width = size_hw
    canvas = _canvas((3 * height, 3 * width), pad_color)
    middle_h, middle_w = nine[0].size_hw
    row_ends = _thirds(3 * height, middle_h)
    column_ends = _thirds(3 * width, middle_w)
    boxes, class_ids = [], []
    places = [(1, 1), (0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]
    for part, (row, column) in zip(nine, places, strict=True):
        y1, y2 = row_ends[row], row_ends[row + 1]
        x1, x2 = column_ends[column], column_ends[column + 1]
        part_h, part_w = part.size_hw
        # Against the middle: what lies above ends where the middle begins, what lies left likewise.
        top = y2 - part_h if row == 0 else y1
        left = x2 - part_w if column == 0 else x1
        upper, lower = max(top, y1), min(top + part_h, y2)
        first, last = max(left, x1), min(left + part_w, x2)
        seen = part.image[upper - top : lower - top, first - left : last - left]
        canvas[upper:lower, first:last] = seen
        offset = np.array([first - left, upper - top] * 2, dtype=np.float32)
        cut = with_visible_boxes(seen, part.boxes_xyxy - offset, part.class_ids)
        boxes.append(cut.boxes_xyxy + np.array([first, upper] * 2, dtype=np.float32))
        class_ids.append(cut.class_ids)
    y, x = int(random.integers(height + 1)), int(random.integers(width + 1))
    window = canvas[y : y + 2 * height, x : x + 2 * width]
    shifted = np.concatenate(boxes) - np.array([x, y, x, y], dtype=np.float32)
    return with_visible_boxes(window, shifted, np.concatenate(class_ids))


def _thirds(total: int, middle: int) -> tuple[int, int, int, int]:
    start = (total - middle) // 2
    return 0, start, start + middle, total


def random_affine(
    labeled: LabeledImage,
    size_hw: tuple[int, int],
    augmentation: Augmentation,
    pad_color: Color,
    random: np.random.Generator,
) -> LabeledImage:
    """Scale, rotate and shift about the middle, onto a canvas of `size_hw`."""
    scale = random.uniform(*(augmentation.scale_range or USUAL_SCALE_RANGE))
    angle = math.radians(random.uniform(-augmentation.degrees, augmentation.degrees))
    largest_shift = augmentation.change("translate")
    shift = random.uniform(-largest_shift, largest_shift, size=2)  # x, y
    matrix = np.eye(2, 3)
    matrix[:, :2] = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    middle_from = np.array([labeled.size_hw[1], labeled.size_hw[0]]) / 2
    middle_to = np.array([size_hw[1], size_hw[0]]) * (0.5 + shift)
    matrix[:, 2] = middle_to - matrix[:, :2] @ middle_from
    # OpenCV counts from the middle of the first pixel, boxes from its corner.
    pixel_matrix = matrix.copy()
    pixel_matrix[:, 2] += matrix[:, :2] @ np.array([0.5, 0.5]) - 0.5
    image = cv2.warpAffine(
        labeled.image, pixel_matrix, (size_hw[1], size_hw[0]), flags=cv2.INTER_LINEAR, borderValue=pad_color
    )
    return with_visible_boxes(
        np.asarray(image, dtype=np.uint8), _transform_boxes(labeled.boxes_xyxy, matrix), labeled.class_ids
    )


def _transform_boxes(boxes_xyxy: FloatArray, matrix: NDArray[np.float64]) -> FloatArray:
    """The smallest upright boxes around the transformed ones."""
    corners = boxes_xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)  # (M, corner, xy)
    moved = corners @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1).astype(np.float32)


def mixup(labeled: LabeledImage, other: LabeledImage) -> LabeledImage:
    """The mean of two images of one size, with the objects of both.

    Source: Zhang et al., mixup, ICLR 2018, in the form for detection of Zhang et al., Bag of Freebies, 2019, sec. 3.1.
    """
    return LabeledImage(
        image=np.asarray(cv2.addWeighted(labeled.image, 0.5, other.image, 0.5, 0), dtype=np.uint8),
        boxes_xyxy=np.concatenate([labeled.boxes_xyxy, other.boxes_xyxy]),
        class_ids=np.concatenate([labeled.class_ids, other.class_ids]),
    )


def flip_horizontally(labeled: LabeledImage) -> LabeledImage:
    """The mirror image."""
    width = np.float32(labeled.image.shape[1])
    boxes = labeled.boxes_xyxy.copy()
    boxes[:, [0, 2]] = width - labeled.boxes_xyxy[:, [2, 0]]
    return LabeledImage(
        image=np.ascontiguousarray(labeled.image[:, ::-1]), boxes_xyxy=boxes, class_ids=labeled.class_ids
    )


def jitter_color(image: Image, augmentation: Augmentation, random: np.random.Generator) -> Image:
    """Change hue, saturation and brightness by random factors."""
    limits = np.array([augmentation.change(name) for name in ("hue", "saturation", "brightness")])
    if not limits.any():
        return image
    change = random.uniform(-1, 1, size=3) * limits
    levels = np.arange(256, dtype=np.float32)
    tables = np.stack(
        [(levels + change[0] * 180) % 180, levels * (1 + change[1]), levels * (1 + change[2])], axis=1
    )  # (256, 3); OpenCV's 8-bit hue goes to 180
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    changed = cv2.LUT(hsv, np.clip(tables, 0, 255).astype(np.uint8)[None])
    return np.asarray(cv2.cvtColor(changed, cv2.COLOR_HSV2BGR), dtype=np.uint8)


def _canvas(size_hw: tuple[int, int], color: Color) -> Image:
    canvas: Image = np.full((*size_hw, 3), np.round(color), dtype=np.uint8)
    return canvas
