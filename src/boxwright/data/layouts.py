"""Opening a data set by the layout of its folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from boxwright.core.errors import DatasetError
from boxwright.data import coco, voc, yolo
from boxwright.data.dataset import Dataset

# In the order in which they are tried. Each has LAYOUT, LOOKED_FOR, recognises, list_splits and read.
READERS: tuple[ModuleType, ...] = (coco, voc, yolo)


def load_dataset(
    directory: str | os.PathLike[str],
    split: str,
    class_names: Sequence[str] | None = None,
    *,
    allow_empty: bool = False,
) -> Dataset:
    """Read the annotations of one split; images are read later, one by one.

    What is wrong with an image or a box is written into `Dataset.problems`, and the rest is used.

    Args:
        directory: the data set's folder, recognised by its layout: COCO, PASCAL VOC or YOLO, tried in this order; or
            a YOLO data set's YAML file.
        split: "train", "val", "test", or what else the data set has.
        class_names: the order of the classes, e.g. a model's; the data set's own where None. Boxes of other classes
            are left out, and counted as problems.
        allow_empty: return a data set of which no image can be used, instead of raising an error.

    Raises:
        DatasetError: where the folder has no known layout, does not have the split, cannot be read, or has no image
            that can be used.
    """
    root = Path(directory)
    reader = _find_reader(root)
    splits = reader.list_splits(root)
    if split not in splits:
        raise DatasetError(
            f"{root}: split {split!r}",
            expected="one of " + (", ".join(splits) or "none (there is no split at all)"),
            got=repr(split),
            fix="pass one of them, or add the split in the place where the layout has it: " + reader.LOOKED_FOR,
        )
    dataset: Dataset = reader.read(root, split, class_names)
    if not dataset.samples and not allow_empty:
        first = f", the first: {dataset.problems[0].file}: {dataset.problems[0].detail}" if dataset.problems else ""
        raise DatasetError(
            f"{root}: split {split!r}",
            expected="images that can be used",
            got=f"none, and {len(dataset.problems)} problems{first}",
            fix=f"run: boxwright doctor --data {root}",
        )
    return dataset


def list_splits(directory: str | os.PathLike[str]) -> tuple[str, ...]:
    """The splits that a data set has.

    Raises:
        DatasetError: where the folder has no known layout.
    """
    root = Path(directory)
    splits: tuple[str, ...] = _find_reader(root).list_splits(root)
    return splits


def _find_reader(root: Path) -> ModuleType:
    if os.path.exists(root):
        for reader in READERS:
            if reader.recognises(root):
                return reader
    looked_for = "; or ".join(f"{reader.LOOKED_FOR} ({reader.LAYOUT})" for reader in READERS)
    raise DatasetError(
        str(root),
        expected=f"a data set's folder with {looked_for}",
        got="a folder with none of these"
        if os.path.isdir(root)
        else "a file"
        if os.path.isfile(root)
        else "no such folder",
        fix="check the path, or convert the data set to one of these layouts",
    )
