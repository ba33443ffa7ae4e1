"""Fixtures that tests of all packages share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from boxwright.core.decode_nms_attributes import DecodeNmsAttributes


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


@pytest.fixture(scope="session")
def trained_heads(shared_dir: Path) -> tuple[dict[str, NDArray[np.float32]], DecodeNmsAttributes]:
    """YOLOX-nano's heads of all validation images of coco-tiny, with its priors, and its attributes."""
    torch = pytest.importorskip("torch")
    import numpy as np

    from boxwright.core.images import read_image
    from boxwright.models import load_model

    weights = shared_dir / "weights" / "yolox_nano_coco.pth"
    loaded = load_model(weights, model="yolox-nano", class_names="coco", preprocess="yolox-legacy")
    spec = loaded.module.decode_spec((416, 416))
    paths = sorted((shared_dir / "data" / "coco-tiny" / "val2017").glob("*.jpg"))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(paths), 8):
            images = np.stack([loaded.preprocess.apply(read_image(path))[0] for path in paths[start : start + 8]])
            parts.append({name: tensor.numpy() for name, tensor in loaded.module(torch.from_numpy(images)).items()})
    heads = {name: np.ascontiguousarray(np.concatenate([part[name] for part in parts])) for name in parts[0]}
    return {**heads, "priors": spec.priors()}, spec.attributes()
