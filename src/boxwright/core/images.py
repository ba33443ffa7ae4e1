"""Reading an image file into the one form that everything here takes: (H, W, 3) uint8, BGR."""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import ImageError
from boxwright.core.image_format import displayed_size_hw, find_damage

Image = NDArray[np.uint8]
# What a folder is searched for; a file named by itself may have any suffix.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jp2", ".ppm", ".pgm", ".avif")
# Older OpenCV keeps the two functions at its top.
_LOGGING: Any = getattr(cv2.utils, "logging", cv2)
_SILENT = 0


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read an image file.

    Grey becomes three equal channels, an alpha channel is dropped, and of 16-bit samples the high byte is kept. The
    EXIF orientation is applied: the image lies as viewers and annotation tools show it, so that boxes drawn there
    fit. (The images of COCO and PASCAL VOC carry no orientation that turns them.)

    Args:
        path: any format that OpenCV reads.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        ImageError: where the file cannot be opened, is no image, or is cut off or damaged in its structure
            (`boxwright.core.image_format.find_damage`).
    """
    return decode_image(read_image_bytes(path), str(path))


def read_image_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of an image file.

    Raises:
        ImageError: where the file cannot be opened or is empty.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    if not data:
        raise _broken(str(path), "an empty file")
    return data


def decode_image(data: bytes, name: str = "image") -> Image:
    """Decode the content of an image file; see `read_image`.

    Args:
        data: the whole file.
        name: of the image, for errors.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        ImageError: where it is no image, or is cut off or damaged in its structure.
    """
    if not data:
        raise _broken(name, "no bytes")
    damage = find_damage(data)
    if damage is not None:
        raise _broken(name, damage)
    try:
        with _QUIET:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # e.g. more pixels than OpenCV allows
        raise _broken(name, f"one that OpenCV refuses ({error.err})") from error
    if image is None:
        raise _undecoded(data, name)
    return np.asarray(image, dtype=np.uint8)


def read_image_size_hw(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width that `read_image` would return, from the file's header alone where it is a JPEG or PNG.

    Raises:
        ImageError: where the file cannot be opened or is no image; a cut-off file may pass.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise _broken(str(path), "an empty file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                size_hw = displayed_size_hw(data)
    except OSError as error:
        raise _unreadable(path, error) from error
    return size_hw if size_hw is not None else read_image(path).shape[:2]


class QuietOpenCV:
    """Silences OpenCV's own messages within a block: what goes wrong there is raised as an error of ours.

    The log level is the whole process's, so threads share one block: the first to enter saves it, the last to leave
    restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._level = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._level = _LOGGING.getLogLevel()
                _LOGGING.setLogLevel(_SILENT)
            self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                _LOGGING.setLogLevel(self._level)


_QUIET = QuietOpenCV()


def quiet_opencv() -> QuietOpenCV:
    """A context manager that silences OpenCV's own messages; see `QuietOpenCV`."""
    return _QUIET


def _undecoded(data: bytes, name: str) -> ImageError:
    """Why OpenCV gives no picture: the file is none, or its samples are not whole numbers of 8 or 16 bits."""
    try:
        with _QUIET:
            samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        samples = None
    if samples is None or samples.dtype in (np.uint8, np.uint16):
        return _broken(name, f"{len(data)} bytes that do not decode (they begin with {data[:8]!r})")
    return ImageError(
        name,
        expected="an image with samples of 8 or 16 bits",
        got=f"an image with samples of {samples.dtype}",
        fix="scale it to 0..255 and save it with 8 bits a sample",
    )


def _broken(name: str, got: str) -> ImageError:
    return ImageError(
        name,
        expected="an image file that decodes, such as JPEG or PNG",
        got=got,
        fix="get an intact copy of it, convert it, or leave it out",
    )


def _unreadable(path: str | os.PathLike[str], error: OSError) -> ImageError:
    return ImageError(
        str(path),
        expected="an image file that can be read",
        got=error.strerror or type(error).__name__,
        fix="check the path and its permissions",
    )
