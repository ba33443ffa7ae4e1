"""Which training images a family gets that fits a part of itself at the end of a run, as R-CNN does its SVMs."""

from __future__ import annotations

import numpy as np

from boxwright.core.errors import InputError
from boxwright.data import Dataset


def fitting_indices(dataset: Dataset, count: int, seed: int) -> list[int]:
    """Images drawn at random, and one more for each class that is in none of them.

    Args:
        dataset: to draw from.
        count: at most so many, before the additions.
        seed: of the draw.

    Raises:
        InputError: where a class has no object in all of the data.
    """
    order: list[int] = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    chosen, rest = order[:count], order[count:]
    present = {class_id for index in chosen for class_id in _classes(dataset, index)}
    for class_id, name in enumerate(dataset.class_names):
        if class_id in present:
            continue
        found = next((index for index in rest if class_id in _classes(dataset, index)), None)
        if found is None:
            raise InputError(
                f"{dataset.root}, {dataset.split}",
                expected=f"objects of every class, since what is fitted for each needs them ({name!r})",
                got="none of that class",
                fix="add images of it, or leave the class out",
            )
        chosen.append(found)
        present.update(_classes(dataset, found))
    return chosen


def _classes(dataset: Dataset, index: int) -> list[int]:
    sample = dataset.samples[index]
    return [int(class_id) for class_id in sample.class_ids[~sample.is_crowd]]
