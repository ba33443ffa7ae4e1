"""SSD's own augmentation: zoom out, cut out a part that shows objects well, distort the colours.

Source: Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016, sec. 2.2 "Data augmentation" (crops) and sec. 3.6
(zooming out); the colours after Howard, Some Improvements on Deep CNN Based Image Classification, 2013, which it cites.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from boxwright.core.boxes import FloatArray, pairwise_overlaps
from boxwright.core.images import Image
from boxwright.training.augment import Color, LabeledImage, with_visible_boxes

# None: the whole image; otherwise the least overlap with some object that a cut must have.
LEAST_OVERLAPS: tuple[float | None, ...] = (None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
TRIALS = 50
SMALLEST_SIDE = 0.3  # of the image's
LARGEST_RATIO = 2.0  # of a cut's sides
LARGEST_EXPANSION = 4.0
BRIGHTNESS = 32.0
CONTRAST = SATURATION = (0.5, 1.5)
HUE_DEGREES = 18.0


def ssd_augment(labeled: LabeledImage, pad_color: Color, random: np.random.Generator) -> LabeledImage:
    """Distort the colours, zoom out half of the time, and cut; the size changes."""
    labeled = LabeledImage(
        image=distort_colors(labeled.image, random), boxes_xyxy=labeled.boxes_xyxy, class_ids=labeled.class_ids
    )
    if random.random() < 0.5:
        labeled = expand(labeled, pad_color, random)
    return crop_by_overlap(labeled, random)


def expand(
    labeled: LabeledImage, pad_color: Color, random: np.random.Generator, *, largest: float = LARGEST_EXPANSION
) -> LabeledImage:
    """Put the image somewhere on a canvas of 1 to `largest` times its sides, so that its objects become small."""
    height, width = labeled.size_hw
    factor = random.uniform(1.0, largest)
    canvas_h, canvas_w = int(height * factor), int(width * factor)
    top, left = int(random.uniform(0, canvas_h - height)), int(random.uniform(0, canvas_w - width))
    canvas: Image = np.full((canvas_h, canvas_w, 3), np.round(pad_color), dtype=np.uint8)
    canvas[top : top + height, left : left + width] = labeled.image
    shift = np.array([left, top, left, top], dtype=np.float32)
    return LabeledImage(image=canvas, boxes_xyxy=labeled.boxes_xyxy + shift, class_ids=labeled.class_ids)


def crop_by_overlap(labeled: LabeledImage, random: np.random.Generator) -> LabeledImage:
    """Cut out a part that overlaps some object by at least a number drawn from a list; that may say the whole image.

    Objects whose middle lies in the cut stay, clipped to it. An image without objects, and one of which no fitting part
    is found, stays as it is.
    """
    least = LEAST_OVERLAPS[int(random.integers(len(LEAST_OVERLAPS)))]
    if least is None or len(labeled.boxes_xyxy) == 0:
        return labeled
    for _ in range(TRIALS):
        cut = _draw_cut(labeled.size_hw, random)
        if cut is None:
            continue
        stays = _has_middle_in(labeled.boxes_xyxy, cut)
        overlaps = pairwise_overlaps(labeled.boxes_xyxy, cut[None])[:, 0]
        if stays.any() and overlaps.max() >= least:
            left, top, right, bottom = (int(side) for side in cut)
            shift = np.array([left, top, left, top], dtype=np.float32)
            image = np.ascontiguousarray(labeled.image[top:bottom, left:right])
            return with_visible_boxes(image, labeled.boxes_xyxy[stays] - shift, labeled.class_ids[stays])
    return labeled


def _draw_cut(size_hw: tuple[int, int], random: np.random.Generator) -> FloatArray | None:
    """A part (4,) xyxy in whole pixels, or None where it is too long."""
    height, width = size_hw
    cut_h = max(1, round(height * random.uniform(SMALLEST_SIDE, 1.0)))
    cut_w = max(1, round(width * random.uniform(SMALLEST_SIDE, 1.0)))
    if max(cut_h, cut_w) > LARGEST_RATIO * min(cut_h, cut_w):
        return None
    top, left = int(random.integers(height - cut_h + 1)), int(random.integers(width - cut_w + 1))
    return np.array([left, top, left + cut_w, top + cut_h], dtype=np.float32)


def _has_middle_in(boxes_xyxy: FloatArray, cut: FloatArray) -> np.ndarray:
    middles = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    return np.asarray(((middles > cut[:2]) & (middles < cut[2:])).all(axis=1))


def distort_colors(image: Image, random: np.random.Generator) -> Image:
    """Change brightness, contrast, saturation and hue, each half of the time; contrast first or last."""
    pixels = image.astype(np.float32)
    if random.random() < 0.5:
        pixels += np.float32(random.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast = np.float32(random.uniform(*CONTRAST)) if random.random() < 0.5 else None
    is_contrast_first = random.random() < 0.5
    if contrast is not None and is_contrast_first:
        pixels *= contrast
    pixels = _distort_hue_and_saturation(pixels, random)
    if contrast is not None and not is_contrast_first:
        pixels *= contrast
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def _distort_hue_and_saturation(pixels: FloatArray, random: np.random.Generator) -> FloatArray:
    saturation = random.uniform(*SATURATION) if random.random() < 0.5 else 1.0
    turn = random.uniform(-HUE_DEGREES, HUE_DEGREES) if random.random() < 0.5 else 0.0
    if math.isclose(saturation, 1.0) and math.isclose(turn, 0.0, abs_tol=1e-9):
        return pixels
    hsv = cv2.cvtColor(np.clip(pixels, 0, 255) / np.float32(255), cv2.COLOR_BGR2HSV)  # hue in degrees
    hsv[..., 0] = (hsv[..., 0] + np.float32(turn)) % np.float32(360)
    hsv[..., 1] = np.clip(hsv[..., 1] * np.float32(saturation), 0, 1)
    result: FloatArray = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR) * np.float32(255)
    return result
