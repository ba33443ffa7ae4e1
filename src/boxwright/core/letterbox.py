"""Resize, pad and normalise: the OpenCV reference of the letterbox kernel."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import FloatArray, clip_boxes

INTERPOLATIONS = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA, "cubic": cv2.INTER_CUBIC}


def letterbox(
    image: NDArray[np.uint8] | FloatArray,
    *,
    resized_hw: tuple[int, int],
    offset_tl: tuple[int, int],
    size_hw: tuple[int, int],
    pad_value: tuple[float, float, float],
    scale: tuple[float, float, float],
    bias: tuple[float, float, float],
    swap_channels: bool,
    interpolation: str = "linear",
    out: FloatArray | None = None,
) -> FloatArray:
    """Resize an image, place it on a padded canvas and normalise it.

    Args:
        image: (H, W, 3) uint8 or float32, values 0 to 255, in any row stride.
        resized_hw: size of the resized image on the canvas, in pixels.
        offset_tl: row and column of its top-left corner on the canvas.
        size_hw: of the canvas.
        pad_value: per output channel, in the units of the image (0 to 255).
        scale: per output channel; the result is value * scale + bias.
        bias: per output channel.
        swap_channels: whether the output's channels are the input's reversed (BGR to RGB).
        interpolation: "linear", "area" or "cubic".
        out: (3, *size_hw) float32 to write into; a new array where None.

    Returns:
        (3, *size_hw) float32.
    """
    height, width = size_hw
    top, left = offset_tl
    resized_h, resized_w = resized_hw
    resized = image
    if image.shape[:2] != resized_hw:
        resized = cv2.resize(image, (resized_w, resized_h), interpolation=INTERPOLATIONS[interpolation])  # type: ignore[assignment]
    planes = np.moveaxis(resized, 2, 0)  # (3, h, w)
    if swap_channels:
        planes = planes[::-1]
    factors = np.array(scale, dtype=np.float32)[:, None, None]
    offsets = np.array(bias, dtype=np.float32)[:, None, None]
    if out is None:
        out = np.empty((3, height, width), dtype=np.float32)
    out[:] = np.array(pad_value, dtype=np.float32)[:, None, None] * factors + offsets
    out[:, top : top + resized_h, left : left + resized_w] = planes.astype(np.float32) * factors + offsets
    return out


def boxes_to_image(
    boxes_xyxy: FloatArray,
    *,
    resized_hw: tuple[int, int],
    offset_tl: tuple[int, int],
    image_size_hw: tuple[int, int],
) -> FloatArray:
    """The reference of the way back; see `boxwright.core.kernels.boxes_to_image`."""
    top, left = offset_tl
    scales = np.array([resized_hw[1] / image_size_hw[1], resized_hw[0] / image_size_hw[0]] * 2, dtype=np.float32)
    offsets = np.array([left, top] * 2, dtype=np.float32)
    return clip_boxes(((boxes_xyxy - offsets) / scales).astype(np.float32), image_size_hw)
