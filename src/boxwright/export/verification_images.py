"""The images that an export is compared with its source on."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import ImageError, InputError
from boxwright.core.images import read_image
from boxwright.core.manifest import Manifest
from boxwright.data import load_dataset
from boxwright.data.shapes import generate_shapes

NUM_IMAGES = 8
_GENERATED_SEED = 7
_GENERATED_SIZES_HW = ((240, 320), (333, 257))


def verification_images(
    data: str | Path | None, split: str, manifest: Manifest
) -> tuple[list[NDArray[np.uint8]], tuple[str, ...]]:
    """Up to eight images, spread over the data set or generated.

    Args:
        data: data set, or None.
        split: of the data set.
        manifest: whose preprocessing they must pass.

    Returns:
        uint8 BGR images, and what was wrong with those that were passed over.

    Raises:
        InputError: where none can be used.
    """
    if data is None:
        return _generated(), ()
    dataset = load_dataset(Path(data), split)
    images: list[NDArray[np.uint8]] = []
    problems: list[str] = []
    step = max(1, len(dataset.samples) // NUM_IMAGES)
    in_turn = [sample for start in range(step) for sample in dataset.samples[start::step]]
    for sample in in_turn:
        if len(images) == NUM_IMAGES:
            break
        try:
            image = read_image(sample.image_path)
            manifest.preprocess.plan((image.shape[0], image.shape[1]))
            images.append(image)
        except ImageError as error:
            problems.append(str(error))
    if not images:
        raise InputError(
            f"--data {data}",
            expected="an image to compare on",
            got=problems[0] if problems else "an empty split",
            fix="give another data set or split",
        )
    return images, tuple(problems)


def _generated() -> list[NDArray[np.uint8]]:
    images = []
    for size_hw in _GENERATED_SIZES_HW:
        with tempfile.TemporaryDirectory() as folder:
            count = NUM_IMAGES // len(_GENERATED_SIZES_HW)
            generate_shapes(folder, num_train=count, num_val=1, seed=_GENERATED_SEED, image_size_hw=size_hw)
            images += [read_image(sample.image_path) for sample in load_dataset(Path(folder), "train").samples]
    return images
