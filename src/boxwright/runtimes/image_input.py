"""The forms in which people have images, brought into the one that everything here takes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeGuard

import cv2
import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import ImageError
from boxwright.core.images import read_image
from boxwright.core.preprocess import check_image

if TYPE_CHECKING:
    import PIL.Image

    ImageInput = NDArray[np.uint8] | str | os.PathLike[str] | PIL.Image.Image

# Modes whose conversion to RGB keeps the picture; 16-bit and float modes would be cut off at 255.
_PIL_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})


def as_bgr_image(image: ImageInput) -> NDArray[np.uint8]:
    """An image as (H, W, 3) uint8 in BGR order.

    Args:
        image: such an array, which is returned as it is; a path; or a PIL image of 8 bits a channel.

    Raises:
        ImageError: where it is none of these, or cannot be read.
    """
    if not isinstance(image, np.ndarray):
        if isinstance(image, (str, os.PathLike)):
            return read_image(image)
        if _is_pil(image):
            return _from_pil(image)
    check_image(image)
    assert isinstance(image, np.ndarray)
    return image


def _is_pil(image: object) -> TypeGuard[PIL.Image.Image]:
    """Whether this is a PIL image, found out without importing PIL."""
    return any(cls.__module__ == "PIL.Image" and cls.__name__ == "Image" for cls in type(image).__mro__)


def _from_pil(image: PIL.Image.Image) -> NDArray[np.uint8]:
    if image.mode not in _PIL_MODES:
        raise ImageError(
            "image",
            expected="a PIL image of 8 bits a channel",
            got=f"mode {image.mode!r}",
            fix="scale it to 0..255 and convert it to RGB first",
        )
    try:
        rgb = np.asarray(image.convert("RGB"))
    except OSError as error:  # PIL reads a file when it is first used, so a truncated one shows here
        raise ImageError(
            "image", expected="a PIL image that can be read", got=str(error), fix="get an intact copy of the file"
        ) from error
    bgr: NDArray[np.uint8] = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)  # type: ignore[assignment]
    return bgr
