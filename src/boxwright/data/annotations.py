"""What the readers of all layouts share: boxes are checked and problems written down in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

import numpy as np

from boxwright.core.boxes import box_areas
from boxwright.core.errors import DatasetError, ImageError
from boxwright.core.images import read_image_size_hw
from boxwright.data.dataset import Sample
from boxwright.data.problems import Problem, ProblemKind

# Annotation tools round, and PASCAL VOC counts pixels from 1: a box that overshoots by no more than this is clipped
# without a word.
OVERSHOOT_PIXELS = 1.0
MAX_SIDE_PIXELS = 2**20  # what OpenCV reads at most; a larger size in an annotation is not believed


class ProblemLog:
    """The problems of a data set in the order they are met."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._problems: list[Problem] = []

    def add(self, file: Path | str, kind: ProblemKind, detail: str) -> None:
        """Write one down; a path under the data set's folder is shortened to the part below it."""
        self._problems.append(Problem(file=relative_name(file, self._root), kind=kind, detail=detail))

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All of them."""
        return tuple(self._problems)


def relative_name(file: Path | str, root: Path) -> str:
    """The path of a file below `root`, or the whole path where it lies elsewhere."""
    path = Path(file)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(file)


class SampleBuilder:
    """Collects the boxes of one image and keeps those that can be used.

    Args:
        image_path: of the image.
        image_id: see `Sample`.
        size_hw: of the image.
        annotation_file: named in problems.
        log: takes the problems.
    """

    def __init__(
        self, image_path: Path, image_id: int, size_hw: tuple[int, int], annotation_file: Path, log: ProblemLog
    ) -> None:
        self._image_path, self._image_id, self._size_hw = image_path, image_id, size_hw
        self._annotation_file, self._log = annotation_file, log
        self._boxes: list[Sequence[float]] = []
        self._class_ids: list[int] = []
        self._is_crowd: list[bool] = []
        self._areas: list[float] = []

    def report(self, kind: ProblemKind, detail: str) -> None:
        """Write a problem of this image's annotation down."""
        self._log.add(self._annotation_file, kind, detail)

    def add_box(
        self, box_xyxy: Sequence[float], class_id: int, *, where: str, is_crowd: bool = False, area: float | None = None
    ) -> None:
        """Keep a box, clipped to the image, or leave it out; what is wrong with it is written down.

        Args:
            box_xyxy: four numbers, pixels.
            class_id: index of the class.
            where: names the box in a problem, e.g. "line 3".
            is_crowd: see `Sample`.
            area: square pixels, where the annotation has its own; not used where no such area fits into the image.
        """
        if not all(math.isfinite(number) for number in box_xyxy):
            self.report("malformed_annotation", f"{where}: box {_text(box_xyxy)} is not finite; left out")
            return
        height, width = self._size_hw
        clipped = np.array(
            [min(max(0, x), side) for x, side in zip(box_xyxy, (width, height) * 2, strict=True)], np.float32
        )
        has_area = bool(box_areas(clipped) > 0)
        overshoot = max(-box_xyxy[0], -box_xyxy[1], box_xyxy[2] - width, box_xyxy[3] - height)
        is_empty = box_xyxy[2] <= box_xyxy[0] or box_xyxy[3] <= box_xyxy[1]
        if is_empty or (overshoot <= 0 and not has_area):  # the latter: too small for float32
            self.report("zero_area_box", f"{where}: box {_text(box_xyxy)} has no area; left out")
            return
        if overshoot > OVERSHOOT_PIXELS or not has_area:
            outcome = f"clipped to {_text(clipped.tolist())}" if has_area else "left out"
            self.report(
                "box_outside_image", f"{where}: box {_text(box_xyxy)} in an image of {width}x{height}; {outcome}"
            )
        if has_area:
            self._boxes.append(clipped.tolist())
            self._class_ids.append(class_id)
            self._is_crowd.append(is_crowd)
            is_plausible = area is not None and 0 < area <= height * width
            self._areas.append(area if area is not None and is_plausible else float(box_areas(clipped)))

    def build(self) -> Sample:
        """The sample with the boxes kept."""
        return Sample(
            image_path=self._image_path,
            image_id=self._image_id,
            size_hw=self._size_hw,
            boxes_xyxy=np.array(self._boxes, np.float32).reshape(-1, 4),
            class_ids=np.array(self._class_ids, np.int64),
            is_crowd=np.array(self._is_crowd, np.bool_),
            areas=np.array(self._areas, np.float32),
        )


def known_size_hw(
    image_path: Path, declared_height: object, declared_width: object, log: ProblemLog
) -> tuple[int, int] | None:
    """The size that an annotation declares, else the image's own, else None with a problem written down."""
    if _is_side(declared_height) and _is_side(declared_width):
        return declared_height, declared_width
    try:
        return read_image_size_hw(image_path)
    except ImageError as error:
        log.add(image_path, "undecodable_image", f"{error.got}; the image and its boxes are left out")
        return None


def _is_side(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and 0 < value <= MAX_SIDE_PIXELS


class ClassIndex:
    """Class names in their order, and the index of each.

    Args:
        found: the names that the data set itself gives, in its order.
        wanted: the names in the order that the caller needs (a model's), or None for the data set's own.
        what: names the data set in errors.

    Raises:
        DatasetError: where no class of the data set is among those wanted, or there is none at all.
    """

    def __init__(self, found: Sequence[str], wanted: Sequence[str] | None, what: str) -> None:
        if wanted is None and not found:
            raise DatasetError(what, expected="at least one class", got="none", fix="name the classes in it")
        if wanted is not None and found and not set(found) & set(wanted):
            raise DatasetError(
                what,
                expected=f"classes of the model ({_some(wanted)})",
                got=f"others alone ({_some(found)})",
                fix="pass the data set that the model is for, or the labels that it was trained on",
            )
        self.names = tuple(found if wanted is None else wanted)
        self._indices = {name: index for index, name in reversed(list(enumerate(self.names)))}

    def __getitem__(self, name: str) -> int | None:
        return self._indices.get(name)


def read_text(path: Path, what: str) -> str:
    """The content of a UTF-8 text file that the data set cannot do without.

    Raises:
        DatasetError: where it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        got = error.strerror or type(error).__name__
    except UnicodeDecodeError:
        got = "a file that is not UTF-8 text"
    raise DatasetError(str(path), expected=f"{what} that can be read", got=got, fix="restore the file")


def _text(box_xyxy: Sequence[float]) -> str:
    return "(" + ", ".join(f"{number:.6g}" for number in box_xyxy) + ")"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
