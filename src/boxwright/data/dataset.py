"""The types of a data set: images, their boxes, and what was wrong with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import FloatArray
from boxwright.core.errors import DatasetError
from boxwright.data.problems import Problem


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """An image and its annotated boxes; every box has an area and lies in the image.

    Attributes:
        image_path: of the image file, which exists but may not decode.
        image_id: COCO's own, else the position in the split, from 1; unique within the split.
        size_hw: of the image, in pixels, as its annotation or header says.
        boxes_xyxy: (N, 4) float32, pixels.
        class_ids: (N,) int64, indices into `Dataset.class_names`.
        is_crowd: (N,) bool: neither trained on nor counted for or against in evaluation (COCO's `iscrowd`, PASCAL
            VOC's `difficult`).
        areas: (N,) float32, square pixels: COCO's own (of the segment), else of the box.
    """

    image_path: Path
    image_id: int
    size_hw: tuple[int, int]
    boxes_xyxy: FloatArray
    class_ids: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    areas: FloatArray

    def __post_init__(self) -> None:
        count = len(self.boxes_xyxy)
        _check("boxes_xyxy", self.boxes_xyxy, np.float32, (count, 4))
        _check("class_ids", self.class_ids, np.int64, (count,))
        _check("is_crowd", self.is_crowd, np.bool_, (count,))
        _check("areas", self.areas, np.float32, (count,))

    def __len__(self) -> int:
        return len(self.boxes_xyxy)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """One split of a data set, its usable part, with the problems met in reading it.

    Attributes:
        name: of the folder.
        root: the folder.
        split: such as "train", "val" or "test".
        layout: "coco", "voc" or "yolo".
        class_names: by class index.
        category_ids: of a COCO file, by class index; unique. Without a COCO file, the class index + 1.
        samples: in the order of the split's list.
        problems: found without decoding images; `check_dataset` finds the others.
        chosen_classes: the names that `only_classes` was called with, in the order of the classes; empty for all.
    """

    name: str
    root: Path
    split: str
    layout: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...] = ()
    chosen_classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.category_ids) != len(self.class_names) or len(set(self.category_ids)) != len(self.category_ids):
            raise DatasetError(
                f"{self.name}: category_ids",
                expected=f"{len(self.class_names)} different ids, one a class",
                got=str(self.category_ids),
                fix="give each class an id of its own",
            )

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def num_boxes(self) -> int:
        """Boxes of all samples, crowds included."""
        return sum(len(sample) for sample in self.samples)

    def boxes_per_class(self) -> dict[str, int]:
        """How many boxes each class has, by its name, in the order of the classes."""
        counts = np.zeros(len(self.class_names), np.int64)
        for sample in self.samples:
            counts += np.bincount(sample.class_ids, minlength=len(counts))
        totals: dict[str, int] = dict.fromkeys(self.class_names, 0)
        for name, count in zip(self.class_names, counts, strict=True):  # two classes may bear one name
            totals[name] += int(count)
        return totals

    def with_samples(self, samples: Iterable[Sample]) -> Dataset:
        """The same data set with these samples alone."""
        return dataclasses.replace(self, samples=tuple(samples))

    def with_classes(self, class_ids: Sequence[int]) -> Dataset:
        """All images with the boxes of these classes alone, which become the classes 0, 1 ..."""
        new_ids = np.full(len(self.class_names), -1, np.int64)
        new_ids[list(class_ids)] = np.arange(len(class_ids))
        return dataclasses.replace(
            self,
            class_names=tuple(self.class_names[class_id] for class_id in class_ids),
            category_ids=tuple(self.category_ids[class_id] for class_id in class_ids),
            samples=tuple(_with_class_ids(sample, new_ids[sample.class_ids]) for sample in self.samples),
        )

    def only_classes(self, names: Sequence[str]) -> Dataset:
        """All images with the boxes of the classes of these names alone.

        Raises:
            DatasetError: where there is no such class.
        """
        unknown = [name for name in names if name not in self.class_names]
        if unknown or not names:
            raise DatasetError(
                f"{self.root} (split {self.split}): classes",
                expected="names among " + ", ".join(self.class_names),
                got=", ".join(unknown) or "none",
                fix="correct them",
            )
        kept = self.with_classes([index for index, name in enumerate(self.class_names) if name in names])
        return dataclasses.replace(kept, chosen_classes=tuple(dict.fromkeys(kept.class_names)))

    def without_images(self, image_paths: Collection[Path]) -> Dataset:
        """The same data set less these images, such as `Report.unusable_images`."""
        excluded = set(image_paths)
        return self.with_samples(sample for sample in self.samples if sample.image_path not in excluded)


def _with_class_ids(sample: Sample, class_ids: NDArray[np.int64]) -> Sample:
    """The boxes whose class is not -1."""
    kept = class_ids >= 0
    return dataclasses.replace(
        sample,
        boxes_xyxy=sample.boxes_xyxy[kept],
        class_ids=class_ids[kept],
        is_crowd=sample.is_crowd[kept],
        areas=sample.areas[kept],
    )


def _check(name: str, array: object, dtype: type, shape: tuple[int, ...]) -> None:
    if isinstance(array, np.ndarray) and array.dtype == dtype and array.shape == shape:
        return
    got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
    raise DatasetError(f"Sample.{name}", expected=f"{np.dtype(dtype).name} {shape}", got=got, fix="convert it")
