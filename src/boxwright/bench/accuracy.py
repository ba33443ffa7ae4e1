"""How well a detector finds what a data set's annotations say is there; used by every verb that speaks of mAP."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boxwright.bench.coco_metrics import CocoMetrics, compute_coco_metrics
from boxwright.bench.voc_metrics import compute_voc_metrics
from boxwright.core.detections import Detections
from boxwright.core.errors import DatasetError, ImageError
from boxwright.core.images import Image, read_image
from boxwright.data.dataset import Dataset, Sample

Predict = Callable[[Image], Detections]
# Called with the images done and the images in all.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class UnreadableImage:
    """An image that could not be read or used, and why.

    Attributes:
        file: relative to the data set's folder where it lies there.
        reason: one line.
    """

    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """AP of one class, None where the data set has no box of it.

    Attributes:
        name: of the class.
        num_boxes: annotated, crowds left out.
        map: mean of AP at IoU 0.50 to 0.95.
        map50: at IoU 0.50.
    """

    name: str
    num_boxes: int
    map: float | None
    map50: float | None


@dataclass(frozen=True, kw_only=True)
class AccuracyResult:
    """Accuracy over a data set, every number 0 to 1 and None where there is nothing to measure it on.

    Attributes:
        map: COCO's AP, the mean over classes and IoU 0.50 to 0.95.
        map50: at IoU 0.50.
        map75: at IoU 0.75.
        map_small: of boxes below 32^2 square pixels of the image.
        map_medium: of boxes between.
        map_large: of boxes above 96^2 square pixels.
        ar: COCO's average recall, 100 detections a class and image.
        ar_1: with one detection.
        ar_10: with ten.
        ar_small: of small boxes, 100 detections.
        ar_medium: of medium boxes.
        ar_large: of large boxes.
        voc_ap50_area: PASCAL VOC's AP at IoU 0.5, by the area under the curve.
        voc_ap50_11point: likewise, by eleven points.
        per_class: AP of each class of the data set, in its order.
        num_images: that were measured on.
        num_boxes: annotated in those, crowds left out.
        num_detections: in those.
        unreadable: images left out of everything above.
        ignored_classes: that the detector knows and the data set does not; their detections count for nothing.
    """

    map: float | None
    map50: float | None
    map75: float | None
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    ar: float | None
    ar_1: float | None
    ar_10: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    voc_ap50_area: float | None
    voc_ap50_11point: float | None
    per_class: tuple[ClassAccuracy, ...]
    num_images: int
    num_boxes: int
    num_detections: int
    unreadable: tuple[UnreadableImage, ...] = ()
    ignored_classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What a detector found in the images of a data set, in the data set's own classes.

    Attributes:
        samples: the images that could be read.
        detections: of each of them; class ids are indices of the data set's class names.
        unreadable: the other images.
        ignored_classes: that the detector knows and the data set does not; their detections are left out.
    """

    samples: tuple[Sample, ...]
    detections: tuple[Detections, ...]
    unreadable: tuple[UnreadableImage, ...] = ()
    ignored_classes: tuple[str, ...] = ()


def evaluate(predict: Predict, dataset: Dataset, *, on_progress: OnProgress | None = None) -> AccuracyResult:
    """Measure the accuracy of a detector on a data set.

    Args:
        predict: gives the detections in an image (H, W, 3) uint8 BGR; a `Detector`, or anything that is called alike.
            Where it has `class_names`, these are matched to the data set's by name, else class ids are the data
            set's own. Its score threshold should be low (0.001), since what it leaves out lowers the recall.
        dataset: with at least one image and one box.
        on_progress: called after each image.

    Raises:
        DatasetError: where there is nothing to measure on, or class names do not fit.
        MissingDependencyError: where the extra `bench` is not installed.
    """
    return score(predict_all(predict, dataset, on_progress=on_progress), dataset)


def predict_all(predict: Predict, dataset: Dataset, *, on_progress: OnProgress | None = None) -> Predictions:
    """Run a detector over the images of a data set; see `evaluate`."""
    check_usable(dataset)
    class_names = getattr(predict, "class_names", None)
    class_map = match_classes(dataset.class_names if class_names is None else tuple(class_names), dataset)
    samples: list[Sample] = []
    detections: list[Detections] = []
    unreadable: list[UnreadableImage] = []
    for index, sample in enumerate(dataset.samples):
        try:
            found = predict(read_image(sample.image_path))
        except ImageError as error:
            unreadable.append(UnreadableImage(file=shown_path(sample, dataset), reason=error.got))
        else:
            samples.append(sample)
            detections.append(to_dataset_classes(found, class_map))
        if on_progress is not None:
            on_progress(index + 1, len(dataset))
    return Predictions(
        samples=tuple(samples),
        detections=tuple(detections),
        unreadable=tuple(unreadable),
        ignored_classes=ignored_classes(class_names, dataset),
    )


def score(predictions: Predictions, dataset: Dataset) -> AccuracyResult:
    """Measure the accuracy of what a detector has found.

    Raises:
        DatasetError: where no image could be read.
        MissingDependencyError: where the extra `bench` is not installed.
    """
    return score_with_curves(predictions, dataset)[0]


def score_with_curves(predictions: Predictions, dataset: Dataset) -> tuple[AccuracyResult, NDArray[np.float64]]:
    """As `score`, and beside it the precision of each class at IoU 0.5 at recall 0, 0.01 ... 1.

    Returns:
        The result, and (C, 101) precisions, NaN for classes without a box.
    """
    if not predictions.samples:
        first = predictions.unreadable[0] if predictions.unreadable else None
        raise DatasetError(
            f"{dataset.name} ({dataset.split})",
            expected="at least one image that can be read",
            got=f"none; {first.file}: {first.reason}" if first else "none",
            fix="mend the images; `boxwright doctor --data` lists them",
        )
    num_classes = len(dataset.class_names)
    coco = compute_coco_metrics(predictions.samples, predictions.detections, num_classes=num_classes)
    voc = compute_voc_metrics(predictions.samples, predictions.detections, num_classes=num_classes)
    boxes_per_class = _count_boxes(predictions.samples, num_classes)
    result = AccuracyResult(
        map=coco.map,
        map50=coco.map50,
        map75=coco.map75,
        map_small=coco.map_small,
        map_medium=coco.map_medium,
        map_large=coco.map_large,
        ar=coco.ar_100,
        ar_1=coco.ar_1,
        ar_10=coco.ar_10,
        ar_small=coco.ar_small,
        ar_medium=coco.ar_medium,
        ar_large=coco.ar_large,
        voc_ap50_area=_mean_or_none(voc.area),
        voc_ap50_11point=_mean_or_none(voc.eleven_point),
        per_class=_per_class(dataset.class_names, coco, boxes_per_class),
        num_images=len(predictions.samples),
        num_boxes=int(boxes_per_class.sum()),
        num_detections=sum(len(found) for found in predictions.detections),
        unreadable=predictions.unreadable,
        ignored_classes=predictions.ignored_classes,
    )
    return result, coco.class_precisions


def check_usable(dataset: Dataset) -> None:
    """Raise `DatasetError` where a data set has nothing to measure accuracy on."""
    where = f"{dataset.root} (split {dataset.split})"
    if len(dataset) == 0:
        raise DatasetError(
            where, expected="at least one image", got="none", fix="pass another --split or check the folder"
        )
    if not any((~sample.is_crowd).any() for sample in dataset.samples):
        raise DatasetError(
            where,
            expected="at least one annotated box",
            got=f"{len(dataset)} images without any",
            fix="pass a split that is annotated; `boxwright doctor --data` says what was found",
        )


def match_classes(class_names: Sequence[str], dataset: Dataset) -> NDArray[np.int64]:
    """The data set's class index of each class of a detector, -1 where the data set does not know it, (C,).

    Raises:
        DatasetError: where the data set has boxes of a class that the detector does not know.
    """
    if tuple(class_names) == dataset.class_names:  # also where a name is there twice
        return np.arange(len(class_names))
    annotated = [name for name, count in dataset.boxes_per_class().items() if count > 0]
    missing = [name for name in annotated if name not in class_names]
    if missing:
        other_name = "; where a file of OpenCV merely names its one class otherwise, say so with --labels NAME"
        raise DatasetError(
            f"{dataset.root} (split {dataset.split}): class names",
            expected="classes that the model knows: " + _shorten(class_names),
            got="boxes of other classes: " + _shorten(missing),
            fix="measure on the classes that it knows (--classes), on the data that it was trained for, or export it "
            "with the --labels that it was trained on" + (other_name if len(class_names) == 1 else ""),
        )
    index_of_name = {name: index for index, name in reversed(list(enumerate(dataset.class_names)))}
    return np.array([index_of_name.get(name, -1) for name in class_names], dtype=np.int64)


def to_dataset_classes(found: Detections, class_map: NDArray[np.int64]) -> Detections:
    """The detections in the data set's class indices, those of classes that it does not know left out."""
    mapped = class_map[found.class_ids]
    known = mapped >= 0
    return Detections(
        boxes_xyxy=found.boxes_xyxy[known], scores=found.scores[known], class_ids=mapped[known].astype(np.int32)
    )


def ignored_classes(class_names: Sequence[str] | None, dataset: Dataset) -> tuple[str, ...]:
    """Names that the detector knows and the data set does not."""
    return tuple(name for name in class_names or () if name not in dataset.class_names)


def shown_path(sample: Sample, dataset: Dataset) -> str:
    """The image's path, relative to the data set's folder where it lies there."""
    try:
        return os.fspath(sample.image_path.relative_to(dataset.root))
    except ValueError:
        return os.fspath(sample.image_path)


def _count_boxes(samples: Sequence[Sample], num_classes: int) -> NDArray[np.int64]:
    counts = np.zeros(num_classes, dtype=np.int64)
    for sample in samples:
        counts += np.bincount(sample.class_ids[~sample.is_crowd], minlength=num_classes)
    return counts


def _per_class(
    class_names: Sequence[str], coco: CocoMetrics, boxes_per_class: NDArray[np.int64]
) -> tuple[ClassAccuracy, ...]:
    columns = (class_names, boxes_per_class.tolist(), coco.class_map.tolist(), coco.class_map50.tolist())
    return tuple(
        ClassAccuracy(name=name, num_boxes=count, map=_number_or_none(map_), map50=_number_or_none(map50))
        for name, count, map_, map50 in zip(*columns, strict=True)
    )


def _mean_or_none(values: NDArray[np.float64]) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmean(values))


def _number_or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _shorten(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
