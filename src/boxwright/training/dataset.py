"""Training images for PyTorch: read, varied, preprocessed; the same seed, epoch and place give the same image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from boxwright.core.errors import DatasetError, ImageError
from boxwright.core.images import read_image
from boxwright.core.letterbox import INTERPOLATIONS
from boxwright.core.preprocess import Preprocess
from boxwright.data import Dataset
from boxwright.models import Targets
from boxwright.training.augment import (
    Color,
    LabeledImage,
    flip_horizontally,
    jitter_color,
    mixup,
    mosaic,
    mosaic_of_nine,
    place,
    random_affine,
)
from boxwright.training.classification_data import ClassificationData, ClassificationImages
from boxwright.training.config import Augmentation
from boxwright.training.copy_paste import copy_paste
from boxwright.training.ssd_crop import ssd_augment

# Images of small data sets stay in memory once they are read and resized; of large ones as many as fit here.
CACHE_BYTES = 1_000_000_000


class SampleKey(NamedTuple):
    """Which image of which epoch; it seeds everything random about the image."""

    epoch: int
    image_index: int
    strong: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainSample:
    """An image ready for preprocessing, and the images that had to be passed over for it."""

    labeled: LabeledImage
    unreadable: tuple[str, ...]
    is_class_only: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainBatch:
    """What a training step takes.

    Attributes:
        images: (B, 3, H, W) float32.
        targets: in network pixels.
        pixel_mask: (B, H, W) int64, for models that take one.
        unreadable: images that were passed over, each with the reason.
    """

    images: Tensor
    targets: Targets
    pixel_mask: Tensor | None
    unreadable: tuple[str, ...]

    def pin_memory(self) -> TrainBatch:
        """The same in page-locked memory, from which a GPU copies faster."""
        mask = None if self.pixel_mask is None else self.pixel_mask.pin_memory()
        return TrainBatch(
            images=self.images.pin_memory(), targets=self.targets, pixel_mask=mask, unreadable=self.unreadable
        )


class TrainDataset(TorchDataset[TrainSample]):
    """Varied training images by `SampleKey`.

    Args:
        dataset: its annotations. Crowds are left out: they mark regions, not objects.
        preprocess: of the model; decides how images are resized.
        size_hw: of the canvas on which mosaics are made.
        augmentation: how images are varied.
        seed: of the run.
        class_images: further images, of which the class alone is known; they come after the data set's own and are
            never mixed with others.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        preprocess: Preprocess,
        size_hw: tuple[int, int],
        augmentation: Augmentation,
        seed: int,
        class_images: ClassificationData | None = None,
    ) -> None:
        self.dataset = dataset
        self.preprocess = preprocess
        self.size_hw = size_hw
        self.augmentation = augmentation.resolved()
        self.seed = seed
        self.pad_color = _pad_color(preprocess)
        self._cache: dict[int, LabeledImage] = {}
        self._cache_room = CACHE_BYTES
        self._unreadable: dict[int, str] = {}
        given = class_images or ClassificationData(class_names=dataset.class_names, samples=())
        self.class_images = ClassificationImages(given, size_hw=size_hw, seed=seed, augmentation=self.augmentation)

    def __len__(self) -> int:
        return len(self.dataset) + len(self.class_images.data.samples)

    def __getitem__(self, key: SampleKey) -> TrainSample:
        if key.image_index >= len(self.dataset):
            return self._class_only(key.image_index - len(self.dataset), key.epoch)
        random = np.random.default_rng([self.seed, key.epoch, key.image_index])
        known = set(self._unreadable)
        # Nothing is drawn for what is off, so that runs without it see the images that they always saw.
        ssd_crop = _number(self.augmentation.ssd_crop) if key.strong else 0.0
        as_ssd = ssd_crop > 0 and random.random() < ssd_crop
        if key.strong:
            labeled = self._strong(key.image_index, random, as_ssd=as_ssd)
        else:
            labeled = self._resized(key.image_index)
        if not as_ssd:  # which has changed the colours in its own way
            image = jitter_color(labeled.image, self.augmentation, random)
            labeled = dataclasses.replace(labeled, image=image)
        if random.random() < self.augmentation.flip:
            labeled = flip_horizontally(labeled)
        new = tuple(reason for index, reason in self._unreadable.items() if index not in known)
        return TrainSample(labeled=labeled, unreadable=new)

    def _class_only(self, index: int, epoch: int) -> TrainSample:
        """An image whose one box, all of it, says nothing; or one with boxes, where it cannot be read."""
        images, class_ids, problems = self.class_images.read_batch([index], epoch)
        if problems:
            fallback = self[SampleKey(epoch, index % len(self.dataset), False)]
            return dataclasses.replace(fallback, unreadable=(*problems, *fallback.unreadable))
        height, width = self.size_hw
        labeled = LabeledImage(
            image=images[0],
            boxes_xyxy=np.array([[0, 0, width, height]], dtype=np.float32),
            class_ids=np.array(class_ids, dtype=np.int64),
        )
        return TrainSample(labeled=labeled, unreadable=(), is_class_only=True)

    def _strong(self, index: int, random: np.random.Generator, *, as_ssd: bool) -> LabeledImage:
        labeled = self._ssd_cropped(index, random) if as_ssd else self._composed(index, random)
        if random.random() < _number(self.augmentation.mixup):
            labeled = mixup(labeled, self._composed(int(random.integers(len(self.dataset))), random, alone=True))
        if self.augmentation.copy_paste > 0 and random.random() < self.augmentation.copy_paste:
            labeled = copy_paste(labeled, self._resized(int(random.integers(len(self.dataset)))), random)
        return labeled

    def _composed(self, index: int, random: np.random.Generator, *, alone: bool = False) -> LabeledImage:
        """One image or a mosaic of four or nine, scaled and shifted onto the canvas."""
        draw = 1.0 if alone else random.random()
        if draw < _number(self.augmentation.mosaic):
            base = mosaic(self._with_others(index, 3, random), self.size_hw, self.pad_color, random)
        elif draw < _number(self.augmentation.mosaic) + self.augmentation.mosaic9:
            base = mosaic_of_nine(self._with_others(index, 8, random), self.size_hw, self.pad_color, random)
        else:
            base = place(self._resized(index), self.size_hw, self.pad_color)
        return random_affine(base, self.size_hw, self.augmentation, self.pad_color, random)

    def _ssd_cropped(self, index: int, random: np.random.Generator) -> LabeledImage:
        """One image, enlarged or cropped as SSD does, on the canvas."""
        varied = ssd_augment(self._resized(index), self.pad_color, random)
        return place(resize_as_preprocessed(varied, self.preprocess, self.size_hw), self.size_hw, self.pad_color)

    def _with_others(self, index: int, count: int, random: np.random.Generator) -> list[LabeledImage]:
        others = random.integers(len(self.dataset), size=count).tolist()
        return [self._resized(entry) for entry in [index, *others]]

    def _resized(self, index: int) -> LabeledImage:
        """The image as large as the preprocessing would make it, or the next one that can be read."""
        for offset in range(len(self.dataset)):
            candidate = (index + offset) % len(self.dataset)
            if candidate in self._unreadable:
                continue
            try:
                return self._load(candidate)
            except ImageError as error:
                self._unreadable[candidate] = str(error)
        raise DatasetError(
            str(self.dataset.root),
            expected="at least one training image that can be read",
            got=f"none of {len(self.dataset)}; {next(iter(self._unreadable.values()))}",
            fix=f"run: boxwright doctor --data {self.dataset.root}",
        )

    def _load(self, index: int) -> LabeledImage:
        if index in self._cache:
            return self._cache[index]
        sample = self.dataset.samples[index]
        labeled = resize_as_preprocessed(
            LabeledImage(
                image=read_image(sample.image_path),
                boxes_xyxy=sample.boxes_xyxy[~sample.is_crowd],
                class_ids=sample.class_ids[~sample.is_crowd],
            ),
            self.preprocess,
            self.size_hw,
        )
        if self._cache_room >= labeled.image.nbytes:
            self._cache_room -= labeled.image.nbytes
            self._cache[index] = labeled
        return labeled


def _number(probability: float | None) -> float:
    assert probability is not None  # `Augmentation.resolved` has seen to it
    return probability


def resize_as_preprocessed(labeled: LabeledImage, preprocess: Preprocess, size_hw: tuple[int, int]) -> LabeledImage:
    """Resize an image, without padding, to what the preprocessing makes of it, so that applying that changes nothing.

    Where the preprocessing knows no canvas (`shortest_edge` without a size), the image is fitted into `size_hw`.

    Raises:
        ImageError: where the image is too small or thin.
    """
    plan = preprocess if preprocess.size_hw is not None else Preprocess(size_hw=size_hw)
    resized_hw = plan.plan(labeled.size_hw).resized_hw
    if resized_hw == labeled.size_hw:
        return labeled
    interpolation = INTERPOLATIONS[preprocess.interpolation]
    image = cv2.resize(labeled.image, (resized_hw[1], resized_hw[0]), interpolation=interpolation)
    ratio_y, ratio_x = resized_hw[0] / labeled.size_hw[0], resized_hw[1] / labeled.size_hw[1]
    ratios = np.array([ratio_x, ratio_y, ratio_x, ratio_y], dtype=np.float32)
    return LabeledImage(
        image=np.asarray(image, dtype=np.uint8), boxes_xyxy=labeled.boxes_xyxy * ratios, class_ids=labeled.class_ids
    )


def _pad_color(preprocess: Preprocess) -> Color:
    """The padding in BGR."""
    first, second, third = preprocess.pad_value
    return (third, second, first) if preprocess.channel_order == "RGB" else (first, second, third)


@dataclass(frozen=True, kw_only=True)
class Collate:
    """Preprocesses a list of samples into a batch, with the very code that runs on the deployed box."""

    preprocess: Preprocess

    def __call__(self, samples: Sequence[TrainSample]) -> TrainBatch:
        batch = self.preprocess.apply_batch([sample.labeled.image for sample in samples])
        boxes = [
            torch.from_numpy(transform.to_network(sample.labeled.boxes_xyxy))
            for sample, transform in zip(samples, batch.transforms, strict=True)
        ]
        return TrainBatch(
            images=torch.from_numpy(batch.images),
            targets=Targets(
                boxes_xyxy=boxes,
                class_ids=[torch.from_numpy(sample.labeled.class_ids) for sample in samples],
                is_class_only=tuple(sample.is_class_only for sample in samples),
            ),
            pixel_mask=None if batch.pixel_mask is None else torch.from_numpy(batch.pixel_mask),
            unreadable=tuple(reason for sample in samples for reason in sample.unreadable),
        )


class EpochSampler(Sampler[list[SampleKey]]):
    """Batches of keys in an order that depends on seed and epoch alone, so that a resumed run sees the same images.

    Args:
        num_images: of the data set.
        batch: images a step; a last, smaller batch is left out unless it is the only one.
        seed: of the run.
        epoch: tells the epoch when an iteration begins.
        strong: tells likewise whether the strong augmentations are on.
    """

    def __init__(
        self, num_images: int, batch: int, seed: int, *, epoch: Callable[[], int], strong: Callable[[], bool]
    ) -> None:
        self.num_images = num_images
        self.batch = min(batch, num_images)
        self.seed = seed
        self._epoch, self._strong = epoch, strong

    def __len__(self) -> int:
        return self.num_images // self.batch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, strong = self._epoch(), self._strong()
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_images).tolist()
        for start in range(0, len(self) * self.batch, self.batch):
            yield [SampleKey(epoch, index, strong) for index in order[start : start + self.batch]]
