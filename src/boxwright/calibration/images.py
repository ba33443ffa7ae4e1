"""The images that a model is calibrated on: which ones, whether they will do, and as the network's input."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from boxwright.calibration.sessions import Tensors
from boxwright.core.errors import DatasetError, ImageError
from boxwright.core.images import read_image
from boxwright.core.manifest import Manifest
from boxwright.data import Dataset, Sample

# Below this many images the ranges hang on what these few happen to show.
FEWEST_IMAGES = 16
# An image whose brightest and darkest pixels differ by less shows nothing.
_LEAST_CONTRAST = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationImages:
    """The usable images of a data set, those that cannot be read named.

    Attributes:
        dataset: with the usable samples alone.
        unreadable: of each other image its path and why.
        blank: images of one colour, which are kept.
    """

    dataset: Dataset
    unreadable: tuple[tuple[Path, str], ...]
    blank: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.dataset.samples)


def choose_images(dataset: Dataset, num_images: int | None) -> CalibrationImages:
    """Take images evenly over a data set and check that they can be used.

    Args:
        dataset: to take from.
        num_images: at most so many; None takes all.

    Raises:
        DatasetError: where there is none that can be read, or all are blank.
    """
    samples = spread(dataset.samples, num_images)
    usable: list[Sample] = []
    unreadable: list[tuple[Path, str]] = []
    blank: list[Path] = []
    for sample in samples:
        try:
            image = read_image(sample.image_path)
        except ImageError as error:
            unreadable.append((sample.image_path, error.got))
            continue
        usable.append(sample)
        if int(image.max()) - int(image.min()) < _LEAST_CONTRAST:
            blank.append(sample.image_path)
    chosen = CalibrationImages(dataset=dataset.with_samples(usable), unreadable=tuple(unreadable), blank=tuple(blank))
    _check_usable(chosen)
    return chosen


def check_disjoint(calibration: Dataset, validation: Dataset) -> None:
    """Raise `DatasetError` where an image is in both, under whatever name."""
    digests = {_digest(sample.image_path): sample.image_path for sample in calibration.samples}
    for sample in validation.samples:
        twin = digests.get(_digest(sample.image_path))
        if twin is not None:
            raise DatasetError(
                "--val-data",
                expected="images that are not among those calibrated on",
                got=f"{sample.image_path.name}, which is also {twin}",
                fix="pass another split, or leave --val-data out to hold a part of the calibration images back",
            )


def without_copies(dataset: Dataset) -> Dataset:
    """The data set with one of each image file's content, so that no image is both calibrated on and measured on."""
    seen: set[bytes] = set()
    kept: list[Sample] = []
    for sample in dataset.samples:
        digest = _digest(sample.image_path)
        if digest not in seen:
            seen.add(digest)
            kept.append(sample)
    return dataset.with_samples(kept)


def assign_folds(num_images: int, num_folds: int) -> NDArray[np.int64]:
    """The fold of each image, (N,): neighbours, which may be alike (frames of a video), share one."""
    return np.arange(num_images, dtype=np.int64) * num_folds // max(num_images, 1)


def network_inputs(
    manifest: Manifest, samples: Sequence[Sample], proto: onnx.ModelProto
) -> Iterator[tuple[Tensors, int]]:
    """The network's inputs of these images, in the batches that the model takes, and how many images count in each.

    Args:
        manifest: of the model.
        samples: whose images are read one batch at a time.
        proto: the model, for its batch size; the last batch is filled up with copies.
    """
    batch = static_batch(proto)
    for start in range(0, len(samples), batch):
        part = [read_image(sample.image_path) for sample in samples[start : start + batch]]
        count = len(part)
        part += [part[-1]] * (batch - count)
        if manifest.input_kind == "pixels":
            yield {"images": np.ascontiguousarray(np.stack(part))}, count
            continue
        made = manifest.preprocess.apply_batch(part)
        inputs: Tensors = {"images": made.images}
        if made.pixel_mask is not None:
            inputs["pixel_mask"] = made.pixel_mask
        yield inputs, count


def static_batch(proto: onnx.ModelProto) -> int:
    """The batch size that a model is made for; 1 where it is open."""
    images = next(entry for entry in proto.graph.input if entry.name == "images")
    return max(1, int(images.type.tensor_type.shape.dim[0].dim_value))


def spread(samples: Sequence[Sample], num_images: int | None) -> list[Sample]:
    """At most so many samples, evenly from the first to the last; None takes all."""
    if num_images is None or num_images >= len(samples):
        return list(samples)
    positions = np.linspace(0, len(samples) - 1, num_images).round().astype(int)
    return [samples[index] for index in positions]


def _check_usable(chosen: CalibrationImages) -> None:
    where = f"{chosen.dataset.root} (split {chosen.dataset.split})"
    if len(chosen) == 0:
        first = f"; {chosen.unreadable[0][0].name}: {chosen.unreadable[0][1]}" if chosen.unreadable else ""
        raise DatasetError(
            where,
            expected=f"at least one image to calibrate on, better {FEWEST_IMAGES} or more",
            got="none that can be read" + first,
            fix="pass another --split or mend the images; `boxwright doctor --data` lists them",
        )
    if len(chosen.blank) == len(chosen):
        raise DatasetError(
            where,
            expected="images that show something",
            got=f"{len(chosen)} of one colour each, such as {chosen.blank[0].name}",
            fix="pass images like those that the detector will see: ranges of blank ones would cut off all else",
        )


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
