"""Training of cascades and of HOG with a linear SVM on an annotated data set: one detector, and one file, a class."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import FloatArray
from boxwright.core.errors import ImageError, InputError, OutputError
from boxwright.core.files import check_writable
from boxwright.data import Dataset, load_dataset
from boxwright.models.classical.backgrounds import largest_free_part
from boxwright.models.classical.cascade import write_cascade
from boxwright.models.classical.hog import CELL_PIXELS, HogSettings, train_hog, write_hog
from boxwright.models.classical.viola_jones import CascadeSettings, train_cascade
from boxwright.training.classical_accuracy import ClassMeasurement, load_val, measure_class
from boxwright.training.config import TrainConfig
from boxwright.training.image_parts import ImageParts
from boxwright.training.window_variations import Variations, cell_variations, scan_variations

Image = NDArray[np.uint8]
VIOLA_JONES, HOG = "viola-jones", "hog"
MODELS = (VIOLA_JONES, HOG)
# Sides of a square window of either; others have about as many pixels.
_USUAL_SIDE = {VIOLA_JONES: 24, HOG: 64}
# HOG finds no object that is smaller than its window, so the window shrinks with the smaller objects, down to this.
_SMALLEST_HOG_SIDE = 32


@dataclass(frozen=True, kw_only=True)
class ClassDetector:
    """The detector of one class.

    Attributes:
        class_name: of the data.
        file: as OpenCV and `boxwright predict` read it.
        window_hw: in pixels.
        num_positives: windows with the object that it learned from.
        num_backgrounds: images, or parts of them, without the object.
        stages: of a cascade, what each reached; empty for HOG.
        val: how well it finds its class on the val split; None where there is none, or no such box in it.
    """

    class_name: str
    file: Path
    window_hw: tuple[int, int]
    num_positives: int
    num_backgrounds: int
    stages: tuple[dict[str, Any], ...]
    val: ClassMeasurement | None


def train_classical(config: TrainConfig, *, tell: Callable[[str], None] = lambda line: None) -> list[ClassDetector]:
    """Train a cascade or a HOG detector for each class of a data set, and measure it on the val split.

    Objects are cut out and stretched to the window, also from a little beside them, since no window lies just on an
    object (see `window_variations`). The background of a class is the largest part of each image that none of its
    objects touches.

    Args:
        config: `model` is "viola-jones" or "hog"; used are `data`, `train_split`, `val_split`, `out`, `size_hw` (of
            the window; by the objects' usual shape where None) and `seed`.
        tell: is told in a line what has been done.

    Raises:
        InputError: where a class has too little to learn from.
        OutputError: where a detector of that name is there already.
    """
    dataset = load_dataset(config.data, config.train_split)
    val = load_val(config, dataset, tell)
    plans = _plans(config, dataset)
    results = []
    for class_id, (file, window_hw) in enumerate(plans):
        name = dataset.class_names[class_id]
        is_grey = config.model == VIOLA_JONES
        num_boxes = sum(len(_boxes_of(dataset, index, class_id)) for index in range(len(dataset)))
        vary = (scan_variations if is_grey else cell_variations)(num_boxes, config.seed)
        positives, backgrounds, unreadable = _windows(dataset, class_id, window_hw, vary, is_grey=is_grey)
        if unreadable:
            tell(f"{name}: {unreadable} training images could not be read and were passed over")
        if len(positives) == 0 or len(backgrounds) == 0:
            raise InputError(
                f"class {name!r} of {dataset.root}, {dataset.split}",
                expected=f"objects, and parts of images without them of at least {window_hw[1]}x{window_hw[0]} pixels",
                got=f"{len(positives)} and {len(backgrounds)}",
                fix="add images without the object, or pass a smaller --imgsz",
            )
        shape = f"{window_hw[1]}x{window_hw[0]}"
        tell(f"{name}: {len(positives)} windows of {shape} with it, {len(backgrounds)} images without")
        stages = _train_one(config, np.stack(positives), backgrounds, file, tell)
        results.append(
            ClassDetector(
                class_name=name,
                file=file,
                window_hw=window_hw,
                num_positives=len(positives),
                num_backgrounds=len(backgrounds),
                stages=stages,
                val=None if val is None else measure_class(file, val, class_id, tell),
            )
        )
    return results


def _plans(config: TrainConfig, dataset: Dataset) -> list[tuple[Path, tuple[int, int]]]:
    """Where the detector of each class is written, and its window; whatever can be refused is refused here."""
    for name, count in dataset.boxes_per_class().items():
        if count == 0:
            raise InputError(
                f"class {name!r} of {dataset.root}, {dataset.split}",
                expected="objects of every class",
                got="none",
                fix="add images of it, or take it out of the data's classes",
            )
    plans = [_plan(config, dataset, class_id) for class_id in range(len(dataset.class_names))]
    files = [file for file, _ in plans]
    twice = next((file for file in files if files.count(file) > 1), None)
    if twice is not None:
        raise InputError(
            f"classes of {dataset.root}",
            expected="names of which each makes a file of its own",
            got=f"two that make {twice.name}",
            fix="rename one of them",
        )
    return plans


def _plan(config: TrainConfig, dataset: Dataset, class_id: int) -> tuple[Path, tuple[int, int]]:
    """Where a class's detector is written, and its window."""
    stem = re.sub(r"[/\\\0]", "_", dataset.class_names[class_id])
    file = config.out / (f"haarcascade_{stem}.xml" if config.model == VIOLA_JONES else f"{stem}.xml")
    if file.exists():
        raise OutputError(str(file), expected="no detector of that name", got="one", fix="pass another --out")
    check_writable(file)
    window_hw = config.size_hw or _usual_window(config.model, dataset, class_id)
    if config.model == HOG and any(side % CELL_PIXELS or side < 2 * CELL_PIXELS for side in window_hw):
        raise InputError(
            "--imgsz",
            expected=f"sides of a HOG window that are multiples of {CELL_PIXELS}, {2 * CELL_PIXELS} at least",
            got=f"{window_hw[0]}x{window_hw[1]}",
            fix="pass such, as 128x64",
        )
    return file, window_hw


def _usual_window(model: str, dataset: Dataset, class_id: int) -> tuple[int, int]:
    """A window of the objects' median shape; HOG's in whole cells, and no larger than three quarters of the objects."""
    boxes = np.concatenate([_boxes_of(dataset, index, class_id) for index in range(len(dataset))])
    sides = boxes[:, 2:] - boxes[:, :2]
    if len(sides) == 0:
        return _USUAL_SIDE[model], _USUAL_SIDE[model]
    stretch = float(np.sqrt(np.median(sides[:, 1] / sides[:, 0])))  # height over width
    side, unit, least = float(_USUAL_SIDE[model]), 1, 12
    if model == HOG:
        small = float(np.percentile(np.sqrt(sides.prod(axis=1)), 25))
        side, unit, least = min(max(small, _SMALLEST_HOG_SIDE), side), CELL_PIXELS, 2
    height, width = (unit * max(least, round(side * factor / unit)) for factor in (stretch, 1 / stretch))
    return height, width


def _boxes_of(dataset: Dataset, index: int, class_id: int, *, with_crowds: bool = False) -> FloatArray:
    sample = dataset.samples[index]
    boxes: FloatArray = sample.boxes_xyxy[(sample.class_ids == class_id) & (with_crowds | ~sample.is_crowd)]
    return boxes


def _windows(
    dataset: Dataset, class_id: int, window_hw: tuple[int, int], vary: Variations, *, is_grey: bool
) -> tuple[list[Image], ImageParts, int]:
    """The objects as windows, the backgrounds, and how many images do not decode and are passed over."""
    positives: list[Image] = []
    backgrounds = ImageParts(is_grey=is_grey)
    unreadable = 0
    for index, sample in enumerate(dataset.samples):
        try:
            image = backgrounds.read(sample.image_path)
        except ImageError:
            unreadable += 1
            continue
        boxes = _boxes_of(dataset, index, class_id)
        for part in vary(boxes, window_hw):
            left, top, right, bottom = np.round(part).astype(int).clip(min=0).tolist()
            cut = image[top : max(bottom, top + 1), left : max(right, left + 1)]
            if cut.size:
                window = cv2.resize(cut, window_hw[::-1], interpolation=cv2.INTER_AREA)
                positives.append(np.asarray(window, dtype=np.uint8))
        taken = _boxes_of(dataset, index, class_id, with_crowds=True)
        left, top, right, bottom = largest_free_part((image.shape[0], image.shape[1]), taken)
        if bottom - top >= window_hw[0] and right - left >= window_hw[1]:
            backgrounds.append(sample.image_path, (left, top, right, bottom), image)
    return positives, backgrounds, unreadable


def _train_one(
    config: TrainConfig, positives: Image, backgrounds: Sequence[Image], file: Path, tell: Callable[[str], None]
) -> tuple[dict[str, Any], ...]:
    if config.model == HOG:
        write_hog(train_hog(positives, backgrounds, HogSettings(seed=config.seed)), file)
        return ()
    reports: list[dict[str, Any]] = []

    def on_stage(report: Any) -> None:
        reports.append(dataclasses.asdict(report))
        tell(
            f"  stage {len(reports)}: {report.num_stumps} stumps, keeps {report.true_positive_rate:.3f} of the objects "
            f"and {report.false_positive_rate:.3f} of the background"
        )

    cascade = train_cascade(positives, backgrounds, CascadeSettings(seed=config.seed), on_stage=on_stage)
    write_cascade(cascade, file)
    return tuple(reports)
