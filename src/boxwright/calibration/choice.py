"""The images that candidates are compared on, prepared once: the network's inputs, and what is annotated.

With images of its own (`--val-data`) there is one fold. Without, the calibration images are divided into folds, and
what is measured on a fold comes from a model whose ranges never saw it (cross-fitting), so that every image serves
both ends and none flatters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from boxwright.calibration.images import static_batch
from boxwright.calibration.sessions import Tensors
from boxwright.core.images import read_image
from boxwright.core.manifest import Manifest
from boxwright.core.preprocess import ImageTransform
from boxwright.data import Dataset, Sample


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedBatch:
    """A batch of images as the network's input.

    Attributes:
        files: of the input tensors by name.
        transforms: of the images that count; the tensors may hold copies beyond them.
        samples: the images with their annotations.
    """

    files: dict[str, Path]
    transforms: tuple[ImageTransform, ...]
    samples: tuple[Sample, ...]

    def inputs(self) -> Tensors:
        """The tensors; mapped from the disk, so that any number of images takes no memory."""
        return {name: np.load(file, mmap_mode="c") for name, file in self.files.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class ChoiceFold:
    """Images that are measured on with one form of a candidate.

    Attributes:
        leave_out: fold of the calibration images that its ranges must not come from; None for images that were never
            calibrated on.
        batches: of the images.
    """

    leave_out: int | None
    batches: tuple[PreparedBatch, ...]

    @property
    def samples(self) -> list[Sample]:
        """All images of the fold."""
        return [sample for batch in self.batches for sample in batch.samples]


@dataclass(frozen=True, kw_only=True, eq=False)
class ChoiceSet:
    """All images that candidates are compared on.

    Attributes:
        dataset: for its name and classes.
        folds: of the images.
    """

    dataset: Dataset
    folds: tuple[ChoiceFold, ...]

    @property
    def samples(self) -> list[Sample]:
        """All images, fold by fold."""
        return [sample for fold in self.folds for sample in fold.samples]

    def part(self, num_images: int) -> ChoiceSet:
        """The first fold alone, its first so many images: to rank candidates on."""
        fold = self.folds[0]
        batches: list[PreparedBatch] = []
        count = 0
        for batch in fold.batches:
            if count >= num_images:
                break
            batches.append(batch)
            count += len(batch.samples)
        return ChoiceSet(dataset=self.dataset, folds=(ChoiceFold(leave_out=fold.leave_out, batches=tuple(batches)),))


def prepare_choice(
    dataset: Dataset, folds: Sequence[int] | None, manifest: Manifest, proto: onnx.ModelProto, folder: Path
) -> ChoiceSet:
    """Read and preprocess all images.

    Args:
        dataset: the images with their annotations; all of them readable.
        folds: of each image among the calibration images; None for images that were never calibrated on.
        manifest: of the model.
        proto: the model, for its batch size.
        folder: for the tensors.
    """
    size = static_batch(proto)
    of_image = [None] * len(dataset.samples) if folds is None else list(folds)
    prepared: list[ChoiceFold] = []
    for fold in sorted(set(of_image), key=lambda entry: -1 if entry is None else entry):
        samples = [sample for sample, own in zip(dataset.samples, of_image, strict=True) if own == fold]
        batches = [
            _prepare(samples[start : start + size], size, manifest, folder / f"{fold}_{start}")
            for start in range(0, len(samples), size)
        ]
        prepared.append(ChoiceFold(leave_out=fold, batches=tuple(batches)))
    return ChoiceSet(dataset=dataset, folds=tuple(prepared))


def _prepare(samples: Sequence[Sample], size: int, manifest: Manifest, folder: Path) -> PreparedBatch:
    images = [read_image(sample.image_path) for sample in samples]
    images += [images[-1]] * (size - len(images))
    if manifest.input_kind == "pixels":
        tensors: Tensors = {"images": np.ascontiguousarray(np.stack(images))}
        transforms = tuple(manifest.preprocess.plan((image.shape[0], image.shape[1])) for image in images)
    else:
        made = manifest.preprocess.apply_batch(images)
        tensors = {"images": made.images}
        if made.pixel_mask is not None:
            tensors["pixel_mask"] = made.pixel_mask
        transforms = made.transforms
    folder.mkdir(parents=True)
    files = {name: folder / f"{name}.npy" for name in tensors}
    for name, file in files.items():
        np.save(file, tensors[name])
    return PreparedBatch(files=files, transforms=tuple(transforms[: len(samples)]), samples=tuple(samples))
