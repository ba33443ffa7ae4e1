"""Windows cut out of background images at random places and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import InputError

_MIN_SIDE = 4


def random_windows(
    backgrounds: Sequence[NDArray[np.uint8]], window_hw: tuple[int, int], count: int, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Cut windows out, from the smallest to the largest that fit, each size as likely as its double.

    Args:
        backgrounds: (h, w) or (h, w, 3) uint8, none smaller than the window.
        window_hw: of what is returned.
        count: how many.
        random: of the draws.

    Returns:
        (count, H, W) or (count, H, W, 3) uint8
    """
    height, width = window_hw
    windows = []
    for index in random.integers(len(backgrounds), size=count):
        image = backgrounds[index]
        largest = min(image.shape[0] / height, image.shape[1] / width)
        scale = float(np.exp(random.uniform(0.0, np.log(largest)))) if largest > 1 else 1.0
        cut_h, cut_w = min(round(height * scale), image.shape[0]), min(round(width * scale), image.shape[1])
        top = int(random.integers(image.shape[0] - cut_h + 1))
        left = int(random.integers(image.shape[1] - cut_w + 1))
        cut = image[top : top + cut_h, left : left + cut_w]
        windows.append(cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA))
    return np.stack(windows).astype(np.uint8, copy=False)


def check_windows(positives: NDArray[Any], backgrounds: Sequence[NDArray[Any]], *, num_channels: int = 1) -> None:
    """Raise `InputError` where these are no windows of an object and no images without it.

    Args:
        positives: (N, H, W) uint8, or (N, H, W, 3).
        backgrounds: (h, w) uint8 each, or (h, w, 3), none smaller than the window.
        num_channels: 1 or 3.
    """
    shape = "(N, H, W)" if num_channels == 1 else "(N, H, W, 3)"
    is_shaped = positives.ndim == 3 if num_channels == 1 else positives.ndim == 4 and positives.shape[3] == 3
    if not is_shaped or positives.dtype != np.uint8 or min(positives.shape[1:3], default=0) < _MIN_SIDE:
        raise InputError(
            "positives",
            expected=f"{shape} uint8 with sides of at least {_MIN_SIDE}",
            got=f"{positives.dtype} {positives.shape}",
            fix="convert them",
        )
    if len(positives) == 0 or len(backgrounds) == 0:
        raise InputError(
            "windows to learn from",
            expected="at least one positive and one background",
            got=f"{len(positives)} and {len(backgrounds)}",
            fix="pass more images",
        )
    for index, image in enumerate(backgrounds):
        is_right = image.dtype == np.uint8 and image.ndim == (2 if num_channels == 1 else 3)
        if not is_right or image.shape[0] < positives.shape[1] or image.shape[1] < positives.shape[2]:
            raise InputError(
                f"backgrounds[{index}]",
                expected=f"a uint8 image of {num_channels} channels, not smaller than the window of "
                f"{positives.shape[2]}x{positives.shape[1]}",
                got=f"{image.dtype} {image.shape}",
                fix="convert or enlarge it, or leave it out",
            )
