"""Images with one class each: folders of images, or the objects cut out of a detection data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import DatasetError, ImageError
from boxwright.core.images import Image, read_image
from boxwright.data import Dataset, list_splits, load_dataset
from boxwright.training.augment import flip_horizontally, jitter_color, with_visible_boxes
from boxwright.training.config import Augmentation

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
# An object is cut out with this part of its sides around it.
MARGIN = 0.15
# A training image shows at least this part of what was cut out. Source: Szegedy et al., GoogLeNet, CVPR 2015, sec. 6,
# with a larger smallest part, since objects fill their boxes.
SMALLEST_AREA = 0.4
_SMALLEST_SIDE = 8.0


@dataclass(frozen=True, kw_only=True)
class ClassifiedImage:
    """An image, or a part of one, and its class.

    Attributes:
        path: of the image file.
        box_xyxy: the part, in pixels; None for all of it.
        class_id: index of its class.
    """

    path: Path
    box_xyxy: tuple[float, float, float, float] | None
    class_id: int


@dataclass(frozen=True, kw_only=True)
class ClassificationData:
    """A split of classified images."""

    class_names: tuple[str, ...]
    samples: tuple[ClassifiedImage, ...]


def load_classification(root: Path, split: str) -> ClassificationData | None:
    """A split of a folder with a folder of images a class, or of the objects of a detection data set.

    Args:
        root: holds `<split>/<class>/` with images; or is a detection data set of any layout.
        split: its name.

    Returns:
        None where there is no such split.

    Raises:
        DatasetError: where it is neither, or a split has nothing to learn from.
    """
    try:
        splits = list_splits(root)
    except DatasetError:
        # No detection data set. Where it is no folder of classes either, the layouts that were looked for help most.
        if not root.is_dir() or not any(_class_folders(path) for path in root.iterdir() if path.is_dir()):
            raise
        data = _from_folders(root, root / split)
    else:
        data = _from_boxes(load_dataset(root, split)) if split in splits else None
    if data is not None and not data.samples:
        raise DatasetError(f"{root} (split {split})", expected="images with a class", got="none", fix="check --data")
    return data


def _class_folders(split_folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(split_folder.iterdir())
        if path.is_dir() and any(image.suffix.lower() in IMAGE_SUFFIXES for image in path.iterdir())
    ]


def _from_folders(root: Path, folder: Path) -> ClassificationData | None:
    if not folder.is_dir():
        return None
    # The classes of all splits, so that an index means the same in each.
    names = sorted({path.name for split in root.iterdir() if split.is_dir() for path in _class_folders(split)})
    samples = [
        ClassifiedImage(path=path, box_xyxy=None, class_id=names.index(class_folder.name))
        for class_folder in _class_folders(folder)
        for path in sorted(class_folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    return ClassificationData(class_names=tuple(names), samples=tuple(samples))


def _from_boxes(dataset: Dataset) -> ClassificationData:
    samples = []
    for sample in dataset.samples:
        for box, class_id, is_crowd in zip(sample.boxes_xyxy, sample.class_ids, sample.is_crowd, strict=True):
            left, top, right, bottom = box.tolist()
            if not is_crowd and min(right - left, bottom - top) >= _SMALLEST_SIDE:
                part = (left, top, right, bottom)
                samples.append(ClassifiedImage(path=sample.image_path, box_xyxy=part, class_id=int(class_id)))
    return ClassificationData(class_names=dataset.class_names, samples=tuple(samples))


class ClassificationImages:
    """Reads and varies classified images; the same seed, epoch and place give the same image.

    Args:
        data: the split.
        size_hw: of the results.
        seed: of the run.
        augmentation: whose colours and mirror images are used; None for the middle of the image as it is.
    """

    def __init__(
        self, data: ClassificationData, *, size_hw: tuple[int, int], seed: int, augmentation: Augmentation | None
    ) -> None:
        self.data = data
        self.size_hw = size_hw
        self.seed = seed
        self.augmentation = augmentation

    def read(self, index: int, epoch: int) -> Image:
        """An image (H, W, 3) uint8 BGR.

        Raises:
            ImageError: where it cannot be read.
        """
        sample = self.data.samples[index]
        image = read_image(sample.path)
        if sample.box_xyxy is not None:
            image = _cut_out(image, np.array(sample.box_xyxy))
        if self.augmentation is not None:
            random = np.random.default_rng([self.seed, epoch, index])
            image = jitter_color(_random_part(image, random), self.augmentation, random)
            if random.random() < self.augmentation.flip:
                no_boxes = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
                image = flip_horizontally(with_visible_boxes(image, *no_boxes)).image
        resized = cv2.resize(image, (self.size_hw[1], self.size_hw[0]), interpolation=cv2.INTER_AREA)
        return np.asarray(resized, dtype=np.uint8)

    def read_batch(self, indices: list[int], epoch: int) -> tuple[list[Image], list[int], list[str]]:
        """Images and class ids of those that can be read, and why the others cannot."""
        images, class_ids, problems = [], [], []
        for index in indices:
            try:
                images.append(self.read(index, epoch))
            except ImageError as error:
                problems.append(str(error))
            else:
                class_ids.append(self.data.samples[index].class_id)
        return images, class_ids, problems


def _cut_out(image: Image, box_xyxy: NDArray[np.float64]) -> Image:
    margin = MARGIN * (box_xyxy[2:] - box_xyxy[:2])
    left, top = np.maximum(np.floor(box_xyxy[:2] - margin), 0).astype(int)
    right, bottom = np.ceil(box_xyxy[2:] + margin).astype(int)
    part = image[top:bottom, left:right]
    # An annotation may speak of a larger image than the file holds.
    if part.size == 0:
        raise ImageError("object", expected="a box inside its image", got=f"box {box_xyxy.tolist()}", fix="mend it")
    return part


def _random_part(image: Image, random: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    share = np.sqrt(random.uniform(SMALLEST_AREA, 1.0))
    part_h, part_w = max(1, round(height * share)), max(1, round(width * share))
    top, left = int(random.integers(height - part_h + 1)), int(random.integers(width - part_w + 1))
    return image[top : top + part_h, left : left + part_w]
