"""The accuracy of detectors without a network, each of which knows one class of a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from boxwright.bench.accuracy import predict_all, score
from boxwright.data import Dataset, list_splits, load_dataset
from boxwright.runtimes.detector import Detector
from boxwright.training.config import TrainConfig

VAL_SCORE_THRESHOLD = 0.001  # as `boxwright val` measures


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassMeasurement:
    """Of one class on the val split; other classes' images are there to be left alone.

    Attributes:
        map: COCO AP, 0 to 1.
        map50: at IoU 0.5.
        num_images: that could be read.
        num_boxes: of the class in those, crowds left out.
    """

    map: float
    map50: float
    num_images: int
    num_boxes: int


def load_val(config: TrainConfig, train: Dataset, tell: Callable[[str], None]) -> Dataset | None:
    """The val split with the classes of the train split; None, and a line about it, where the data has none."""
    if config.val_split not in list_splits(config.data):
        tell(f"{config.data} has no split {config.val_split!r}: nothing is measured")
        return None
    return load_dataset(config.data, config.val_split, class_names=train.class_names)


def measure_class(file: Path, val: Dataset, class_id: int, tell: Callable[[str], None]) -> ClassMeasurement | None:
    """How well a detector finds its class; None, and a line about it, where there is nothing to measure on.

    Args:
        file: of the detector.
        val: the whole split.
        class_id: of the class in it.
        tell: is told in a line what has been done.
    """
    name, split = val.class_names[class_id], val.split
    dataset = val.with_classes([class_id])
    if not any((~sample.is_crowd).any() for sample in dataset.samples):
        tell(f"{name}: no boxes in the split {split!r}, so nothing is measured")
        return None
    with Detector(file, conf=VAL_SCORE_THRESHOLD) as detector:
        # The file's name need not be the class's, so that ids are compared and not names.
        predictions = predict_all(lambda image: detector(image), dataset)
    if predictions.unreadable:
        tell(f"{len(predictions.unreadable)} images of the split {split!r} could not be read and were passed over")
    if not any((~sample.is_crowd).any() for sample in predictions.samples):
        tell(f"{name}: no boxes in those that could be read, so nothing is measured")
        return None
    result = score(predictions, dataset)
    assert result.map is not None and result.map50 is not None  # there are boxes
    found = ClassMeasurement(
        map=result.map, map50=result.map50, num_images=result.num_images, num_boxes=result.num_boxes
    )
    tell(f"{name}: AP50 {found.map50:.4f} on {split}, {found.num_images} images with {found.num_boxes} boxes")
    return found
