"""Annotated copies of the images and videos that `predict` has seen."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import OutputError
from boxwright.core.files import atomic_file, check_writable
from boxwright.core.images import quiet_opencv

Image = NDArray[np.uint8]

# What OpenCV writes everywhere; images of other formats become PNG.
_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_VIDEO_SUFFIX, _VIDEO_CODEC = ".mp4", "mp4v"
_USUAL_FRAME_RATE = 25.0


class AnnotatedFolder:
    """A folder that takes annotated images under the names of their sources, and the frames of a video as a video."""

    def __init__(self, folder: Path) -> None:
        """Make the folder, and find out now whether it can be written to.

        Raises:
            OutputError: where it cannot.
        """
        self._folder = folder
        self._taken: set[Path] = set()
        self._video: _Video | None = None
        check_writable(folder / "image.png")

    def save_image(self, name: str, image: Image) -> Path:
        """Write the annotated copy of an image file.

        Args:
            name: path of the source.
            image: the annotated copy.

        Returns:
            Where it is.

        Raises:
            OutputError: where it cannot be written, or would replace the source.
        """
        source = Path(name)
        suffix = source.suffix.lower()
        target = self._free_path(source.stem, suffix if suffix in _IMAGE_SUFFIXES else ".png")
        if target.exists() and source.exists() and os.path.samefile(target, source):
            raise OutputError(
                str(target),
                expected="a folder for the annotated images that does not hold the images themselves",
                got="the folder of the images",
                fix="pass another folder to --save",
            )
        _, data = cv2.imencode(target.suffix, image)
        with atomic_file(target) as temporary:
            temporary.write_bytes(data.tobytes())
        return target

    def save_frame(self, name: str, image: Image, frame_rate: float) -> Path:
        """Add a frame to the annotated copy of a video or camera's stream.

        Args:
            name: of the source, '#' and the frame's number.
            image: the annotated frame.
            frame_rate: in frames a second; 0 where it is not known.

        Returns:
            Where the video will be after `finish_video`.

        Raises:
            OutputError: where it cannot be written.
        """
        source = name.rpartition("#")[0]
        if self._video is None or self._video.source != source:
            self.finish_video()
            stem = re.sub(r"\W+", "_", Path(source).stem).strip("_") or "video"
            target = self._free_path(stem, _VIDEO_SUFFIX)
            self._video = _Video(source, target, (image.shape[1], image.shape[0]), frame_rate or _USUAL_FRAME_RATE)
        self._video.add(image)
        return self._video.target

    def finish_video(self) -> None:
        """Complete the video that is being written, if there is one.

        Raises:
            OutputError: where not all of it could be written.
        """
        video, self._video = self._video, None
        if video is not None:
            video.finish()

    def __enter__(self) -> AnnotatedFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None or kind is KeyboardInterrupt:
            self.finish_video()
        elif self._video is not None:
            self._video.discard()

    def _free_path(self, stem: str, suffix: str) -> Path:
        """A name that no other source of this run has; files of earlier runs are replaced."""
        target, count = self._folder / f"{stem}{suffix}", 1
        while target in self._taken:
            count += 1
            target = self._folder / f"{stem}_{count}{suffix}"
        self._taken.add(target)
        return target


class _Video:
    """An MP4 file that takes its name when it is complete."""

    def __init__(self, source: str, target: Path, size_wh: tuple[int, int], frame_rate: float) -> None:
        self.source, self.target = source, target
        self._size_wh = size_wh
        self._num_frames = 0
        self._file = contextlib.ExitStack()
        self._temporary = self._file.enter_context(atomic_file(target))
        codec = cv2.VideoWriter.fourcc(*_VIDEO_CODEC)
        with quiet_opencv():
            self._writer = cv2.VideoWriter(str(self._temporary), codec, frame_rate, size_wh)
        if not self._writer.isOpened():
            with self._file:
                raise self._error("a file that OpenCV's video writer does not open")

    def add(self, image: Image) -> None:
        if (image.shape[1], image.shape[0]) != self._size_wh:  # the writer would leave the frame out
            image = np.asarray(cv2.resize(image, self._size_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        self._writer.write(image)
        self._num_frames += 1

    def finish(self) -> None:
        with self._file:  # leaving it well gives the file its name, leaving it with an error removes it
            self._writer.release()
            # The writer says nothing of a full disk, so what it wrote is counted.
            with quiet_opencv():
                reader = cv2.VideoCapture(str(self._temporary))
                num_written = int(reader.get(cv2.CAP_PROP_FRAME_COUNT)) if reader.isOpened() else 0
                reader.release()
            if num_written < self._num_frames:
                raise self._error(f"{num_written} of {self._num_frames} frames written")

    def discard(self) -> None:
        """Leave no half-written file."""
        with contextlib.suppress(_Discarded), self._file:
            self._writer.release()
            raise _Discarded

    def _error(self, got: str) -> OutputError:
        return OutputError(
            str(self.target),
            expected="a video that can be written",
            got=got,
            fix="free some space or choose another folder",
        )


class _Discarded(Exception):
    """Leaves the block of a temporary file without an error to report."""
