"""The data set that `val` and `bench` measure on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.cli._bench_parsing import parse_names

if TYPE_CHECKING:
    from boxwright.data import Dataset


def load_measured(data: Path, split: str, classes: str | None) -> Dataset:
    """Read a split; with `classes`, names with commas, the boxes of these alone.

    Raises:
        DatasetError: where it cannot be read, or has no such class.
    """
    from boxwright.data import load_dataset

    dataset = load_dataset(data, split)
    return dataset if classes is None else dataset.only_classes(parse_names(classes))
