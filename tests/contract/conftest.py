"""Fixtures of the contract tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from boxwright.data import Dataset
    from family_models import TrainedFamily


@pytest.fixture(scope="session")
def eight_images_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images of 128x128."""
    from boxwright.data.shapes import generate_shapes

    folder = tmp_path_factory.mktemp("eight") / "shapes"
    return generate_shapes(folder, num_train=12, num_val=1, seed=5, image_size_hw=(128, 128))


@pytest.fixture(scope="session")
def eight_images(eight_images_dir: Path) -> Dataset:
    """The first eight of them that have objects."""
    from boxwright.data import load_dataset

    dataset = load_dataset(eight_images_dir, "train")
    return dataset.with_samples([sample for sample in dataset.samples if len(sample) > 0][:8])


@pytest.fixture(scope="session")
def openvino_extension() -> None:
    """OpenVINO knows DecodeNMS; skips where it cannot be taught."""
    from boxwright.runtimes.openvino_plugin import build_openvino_plugin

    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler, so OpenVINO's extension cannot be built here")
    build_openvino_plugin()


@pytest.fixture(scope="session")
def trained(eight_images: Dataset) -> Callable[[str], TrainedFamily]:
    """Gives a family's smallest variant, trained on the eight images; once for all tests of a process."""
    from family_models import train_on

    return cache(lambda family: train_on(family, eight_images))
