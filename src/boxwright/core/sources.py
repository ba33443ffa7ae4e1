"""Where images come from: a file, a folder, a glob, a video or a camera, one image in memory at a time."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from boxwright.core.errors import ImageError
from boxwright.core.images import IMAGE_SUFFIXES, Image, quiet_opencv, read_image

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts", ".mjpg", ".mjpeg")


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceItem:
    """One image of a source, or the reason why it could not be read.

    Attributes:
        name: path of the image; of a video or camera, its name, '#' and the frame's number from 0.
        image: (H, W, 3) uint8, BGR; None where there is an error.
        error: None where there is an image.
        frame_rate: of a video or camera, in frames a second; 0 where it does not say. None for an image file.
    """

    name: str
    image: Image | None = None
    error: ImageError | None = None
    frame_rate: float | None = None

    def __post_init__(self) -> None:
        assert (self.image is None) != (self.error is None)


def open_source(source: str | os.PathLike[str] | int) -> Iterator[SourceItem]:
    """Iterate over the images of a source, reading each when it is asked for.

    An image that cannot be read is an item with an error where the source names several images; where it names this
    one alone, and where there is nothing to read at all, the error is raised, and before the first item.

    Args:
        source: an image file; a video file (by its suffix); a folder, whose image files are taken in the order of
            their names, without its subfolders; a glob pattern ('**' enters subfolders); a camera's index, also as
            text; a stream's URL, such as rtsp://...

    Raises:
        ImageError: where the source does not exist, holds no image, or cannot be opened.
    """
    if isinstance(source, int):
        return _open_video(source, f"camera {source}", is_live=True)
    text = os.fspath(source)
    path = Path(text)
    if text and os.path.isdir(text):  # an empty text would be the current folder
        return _each(_images_in(path))
    if os.path.isfile(text):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return _open_video(text, text, is_live=False)
        return iter([SourceItem(name=text, image=read_image(path))])
    if text.isdecimal():
        return _open_video(int(text), f"camera {text}", is_live=True)
    if "://" in text or os.path.exists(text):  # what exists and is no file is a device such as /dev/video0
        return _open_video(text, text, is_live=True)
    if glob.has_magic(text):
        return _each(_files_matching(text))
    raise ImageError(
        text or "source",
        expected="an image, video, folder, glob pattern, camera index or stream URL",
        got="a path that does not exist",
        fix="check the path",
    )


def _images_in(folder: Path) -> list[Path]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    except OSError as error:
        raise ImageError(
            str(folder),
            expected="a folder that can be read",
            got=error.strerror or type(error).__name__,
            fix="check its permissions",
        ) from error
    if not paths:
        raise ImageError(
            str(folder),
            expected=f"image files ({', '.join(IMAGE_SUFFIXES)}) in the folder",
            got="none",
            fix="give another folder, or a glob pattern such as 'folder/**/*.jpg' to enter subfolders",
        )
    return paths


def _files_matching(pattern: str) -> list[Path]:
    paths = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))
    if not paths:
        raise ImageError(
            pattern, expected="files that match the pattern", got="none", fix="check the pattern, and quote it"
        )
    return paths


def _each(paths: Iterable[Path]) -> Iterator[SourceItem]:
    """The images, and the frames of the videos, among these files."""
    for path in paths:
        try:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                yield from _open_video(str(path), str(path), is_live=False)
            else:
                yield SourceItem(name=str(path), image=read_image(path))
        except ImageError as error:
            yield SourceItem(name=str(path), error=error)


def _open_video(address: str | int, name: str, *, is_live: bool) -> Iterator[SourceItem]:
    with quiet_opencv():
        capture = cv2.VideoCapture(address)
        is_open, first = capture.read() if capture.isOpened() else (False, None)
    if not is_open or first is None:
        capture.release()
        raise ImageError(
            name,
            expected="a video or camera that OpenCV can open and read",
            got="none" if isinstance(address, int) else "no frame",
            fix="check that it is there, in no other program's use, and of a format that OpenCV reads",
        )
    return _frames(capture, np.asarray(first, dtype=np.uint8), name, is_live=is_live)


def _frames(capture: cv2.VideoCapture, first: Image, name: str, *, is_live: bool) -> Iterator[SourceItem]:
    """The frames, `first` among them; a live source that stops has failed, a file that stops has ended."""
    frame_rate = float(capture.get(cv2.CAP_PROP_FPS))
    try:
        yield SourceItem(name=f"{name}#0", image=first, frame_rate=frame_rate)
        index, (is_read, frame) = 1, capture.read()
        while is_read:
            yield SourceItem(name=f"{name}#{index}", image=np.asarray(frame, dtype=np.uint8), frame_rate=frame_rate)
            index, (is_read, frame) = index + 1, capture.read()
        if is_live:
            error = ImageError(
                name, expected="another frame", got=f"none after {index}", fix="check the camera or the connection"
            )
            yield SourceItem(name=f"{name}#{index}", error=error, frame_rate=frame_rate)
    finally:
        capture.release()
