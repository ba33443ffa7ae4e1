"""Fixtures that tests of all packages share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real data and weights; tests that need it skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared"
    directory = Path(os.environ.get("BOXWRIGHT_SHARED", default))
    if not (directory / "data").is_dir():
        pytest.skip(f"no real data: {directory} is absent; set BOXWRIGHT_SHARED to where it is")
    return directory


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated data set: 24 training, 16 validation and 4 test images of 96x128. Not to be changed."""
    from boxwright.data import generate_shapes

    directory = tmp_path_factory.mktemp("data") / "shapes"
    return generate_shapes(directory, num_train=24, num_val=16, num_test=4, seed=7, image_size_hw=(96, 128))
