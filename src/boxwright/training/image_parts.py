"""Parts of many images, of which only so many are kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import cv2
import numpy as np
from numpy.typing import NDArray

from boxwright.core.images import read_image

Image = NDArray[np.uint8]
# Of all parts that are kept; others are read again whenever they are looked at.
_MOST_BYTES = 2_000_000_000


class ImageParts(Sequence[Image]):
    """A sequence of (h, w, 3) uint8 BGR parts of image files, or (h, w) grey ones."""

    def __init__(self, *, is_grey: bool) -> None:
        self._is_grey = is_grey
        self._places: list[tuple[Path, tuple[int, int, int, int]]] = []
        self._kept: dict[int, Image] = {}
        self._num_bytes = 0

    def read(self, path: Path) -> Image:
        """A whole image, in grey where the parts are."""
        image = read_image(path)
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), dtype=np.uint8) if self._is_grey else image

    def append(self, path: Path, part_xyxy: tuple[int, int, int, int], image: Image) -> None:
        """Add a part of an image that `read` has just given."""
        part = _cut(image, part_xyxy)
        if self._num_bytes + part.nbytes <= _MOST_BYTES:
            self._num_bytes += part.nbytes
            self._kept[len(self._places)] = part
        self._places.append((path, part_xyxy))

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        if isinstance(index, slice):
            return [self[entry] for entry in range(len(self))[index]]
        index = range(len(self))[index]  # also from the end, and refused beyond it
        if index in self._kept:
            return self._kept[index]
        path, part_xyxy = self._places[index]
        return _cut(self.read(path), part_xyxy)


def _cut(image: Image, part_xyxy: tuple[int, int, int, int]) -> Image:
    left, top, right, bottom = part_xyxy
    return np.array(image[top:bottom, left:right])  # a copy, so that the image itself need not be kept
