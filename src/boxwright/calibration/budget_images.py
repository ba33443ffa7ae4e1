"""The images of a search: those that are calibrated on, and those that are chosen on, never the same for one form."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from boxwright.bench.accuracy import check_usable
from boxwright.calibration.float_model import FloatModel
from boxwright.calibration.images import (
    CalibrationImages,
    assign_folds,
    check_disjoint,
    choose_images,
    network_inputs,
    without_copies,
)
from boxwright.calibration.sessions import Tensors
from boxwright.core.errors import DatasetError
from boxwright.data import Dataset, load_dataset

_NUM_FOLDS, _FEWEST_IMAGES_A_FOLD = 4, 4
_MOST_CHOICE_IMAGES = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchImages:
    """The images of a run.

    Attributes:
        chosen: for calibration; those that cannot be read of both sets.
        calibration: their data set.
        folds: of each of them.
        choice: to choose on.
        choice_folds: of each of those among the calibration images; None where they are others.
        described: the choice in words.
    """

    chosen: CalibrationImages
    calibration: Dataset
    folds: list[int]
    choice: Dataset
    choice_folds: list[int] | None
    described: str


def read_images(
    data: str | os.PathLike[str],
    split: str,
    val_data: str | os.PathLike[str] | None,
    val_split: str,
    num_images: int | None,
) -> SearchImages:
    """Read both sets, or divide one into folds; see `calibrate_to_budget` for the arguments.

    Raises:
        DatasetError: where there are too few images, none with a box, or one of them in both sets.
    """
    loaded = load_dataset(Path(data), split)
    validation = None if val_data is None else load_dataset(Path(val_data), val_split)
    if validation is not None:
        check_disjoint(loaded, validation)  # all of both, not only the images that are taken
    chosen = choose_images(loaded, num_images)
    calibration = without_copies(chosen.dataset)
    num_calibration = len(calibration.samples)
    if validation is not None:
        others = choose_images(validation, _MOST_CHOICE_IMAGES)
        chosen = replace(chosen, unreadable=chosen.unreadable + others.unreadable)
        choice = others.dataset
        check_usable(choice)
        described = f"{len(choice.samples)} images of {choice.name} {choice.split}"
        return SearchImages(
            chosen=chosen,
            calibration=calibration,
            folds=[0] * num_calibration,
            choice=choice,
            choice_folds=None,
            described=described,
        )
    check_usable(calibration)
    num_folds = min(_NUM_FOLDS, num_calibration // _FEWEST_IMAGES_A_FOLD)
    if num_folds < 2:
        raise DatasetError(
            f"{calibration.root} (split {split})",
            expected=f"at least {2 * _FEWEST_IMAGES_A_FOLD} different images to hold some back and choose on",
            got=str(num_calibration),
            fix="pass more images, or --val-data with others to choose on",
        )
    folds = [int(fold) for fold in assign_folds(num_calibration, num_folds)]
    return SearchImages(
        chosen=chosen,
        calibration=calibration,
        folds=folds,
        choice=calibration,
        choice_folds=folds,
        described=f"{num_calibration} images of {calibration.name} {split}, held back in turn ({num_folds} folds)",
    )


def fold_batches(model: FloatModel, images: SearchImages) -> Iterator[tuple[Tensors, int, int]]:
    """The calibration images fold by fold, so that no batch holds images of two folds."""
    for fold in range(max(images.folds) + 1):
        samples = [sample for sample, own in zip(images.calibration.samples, images.folds, strict=True) if own == fold]
        for inputs, count in network_inputs(model.manifest, samples, model.proto):
            yield inputs, count, fold


def batches_without(model: FloatModel, images: SearchImages, leave_out: int | None) -> Iterator[tuple[Tensors, int]]:
    """The calibration images less those of a fold."""
    pairs = zip(images.calibration.samples, images.folds, strict=True)
    return network_inputs(model.manifest, [sample for sample, own in pairs if own != leave_out], model.proto)
