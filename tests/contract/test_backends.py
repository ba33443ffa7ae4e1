"""What every backend must do, run over all that are found by their files and are installed here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from boxwright.core.errors import InputError, ModelFileError, UnsupportedError
from boxwright.core.manifest import Manifest
from boxwright.runtimes.backend import Backend, backend_module, backend_names, open_backend
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.pixel_detector import PixelDetectorBackend
from models_for_tests import (
    HEIGHT,
    LOGIT_SCALE,
    NUM_CELLS,
    WIDTH,
    colour_cells_manifest,
    colour_image,
    save_colour_cells,
)
from tolerances import ENGINE_TENSORS

# Detectors without a network move no tensors but pixels and detections; tests/runtimes/test_opencv.py is theirs.
# TensorRT's engines are built on the GPU that runs them, in tests/gpu.
TENSOR_BACKENDS = [
    name
    for name in backend_names()
    if name != "tensorrt" and not issubclass(backend_module(name).BACKEND, PixelDetectorBackend)
]
FILE_BACKENDS = [name for name in TENSOR_BACKENDS if ".pth" not in backend_module(name).SUFFIXES]


def _torch_backend() -> Backend:
    import torch

    from boxwright.runtimes.torch import TorchBackend

    class ColourCells(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            means = torch.nn.functional.avg_pool2d(images, 8)
            logits = ((means - 0.5) * LOGIT_SCALE).flatten(2).transpose(1, 2)  # (B, N, C)
            cell_box = torch.tensor([0.5, 0.5, np.log(2.0), np.log(2.0)], dtype=torch.float32)
            boxes = cell_box.expand(len(images), NUM_CELLS, 4)
            return {"box_regression": boxes, "class_logits": logits, "_private": logits}

    return TorchBackend.from_module(ColourCells(), colour_cells_manifest())


def _open(name: str, folder: Path, batch: int | None, **wishes: Any) -> Backend:
    module = backend_module(name)
    reason = module.available()
    if reason is not None:
        pytest.skip(reason)
    if name == "torch":
        return _torch_backend()
    folder.mkdir(exist_ok=True)
    path = save_colour_cells(folder / ("m.onnx" if module.SUFFIXES[0] == ".onnx" else "m"), batch=batch)
    return open_backend(path, backend=name, **wishes)


@pytest.fixture(params=TENSOR_BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    with _open(request.param, tmp_path, None) as opened:
        yield opened


def _images(seed: int, batch: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((batch, 3, HEIGHT, WIDTH), dtype=np.float32)


def _expected_logits(images: NDArray[np.float32]) -> NDArray[np.float32]:
    cells = images.reshape(len(images), 3, HEIGHT // 8, 8, WIDTH // 8, 8).mean(axis=(3, 5))
    logits: NDArray[np.float32] = ((cells - 0.5) * LOGIT_SCALE).reshape(len(images), 3, -1).transpose(0, 2, 1)
    return logits


def test_describes_its_model(backend: Backend) -> None:
    assert backend.name in backend_names()
    assert (backend.device, backend.precision) == ("cpu", "fp32")
    assert list(backend.inputs) == ["images"]
    assert backend.inputs["images"].shape == (None, 3, HEIGHT, WIDTH)
    assert backend.inputs["images"].dtype == np.float32
    assert list(backend.outputs) == ["box_regression", "class_logits"]
    assert backend.manifest_json is not None
    assert Manifest.from_json(backend.manifest_json) == colour_cells_manifest()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_run(backend: Backend, batch: int) -> None:
    images = _images(1, batch)
    outputs = backend.run({"images": images})
    assert set(outputs) == {"box_regression", "class_logits"}
    assert outputs["class_logits"].dtype == np.float32
    np.testing.assert_allclose(outputs["class_logits"], _expected_logits(images), atol=ENGINE_TENSORS)
    assert outputs["box_regression"].shape == (batch, NUM_CELLS, 4)


def test_results_and_inputs_stay_as_they_are(backend: Backend) -> None:
    first, second = _images(1), _images(2)
    kept = backend.run({"images": first})["class_logits"]
    before, input_before = kept.copy(), first.copy()
    backend.run({"images": second})
    assert (kept == before).all()
    assert (first == input_before).all()


def test_inputs_that_are_views(backend: Backend) -> None:
    images = _images(3, batch=2)[::-1, :, :, ::-1]
    outputs = backend.run({"images": images})
    np.testing.assert_allclose(outputs["class_logits"], _expected_logits(images), atol=ENGINE_TENSORS)


def test_submit_and_wait(backend: Backend) -> None:
    tickets = [backend.submit({"images": _images(seed)}) for seed in range(4)]  # the arrays are let go here
    for seed, ticket in reversed(list(enumerate(tickets))):
        outputs = backend.wait(ticket)
        np.testing.assert_allclose(outputs["class_logits"], _expected_logits(_images(seed)), atol=ENGINE_TENSORS)


def test_submit_reports_bad_inputs_at_the_latest_in_wait(backend: Backend) -> None:
    with pytest.raises(InputError):
        backend.wait(backend.submit({"picture": _images(0)}))


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"picture": _images(0)},
        {"images": _images(0), "surplus": _images(0)},
        {"images": _images(0).astype(np.float64)},
        {"images": _images(0)[:, :2]},
        {"images": _images(0)[0]},
    ],
    ids=["none", "wrong name", "surplus", "float64", "two channels", "three dimensions"],
)
def test_inputs_that_do_not_fit(backend: Backend, inputs: dict[str, NDArray[Any]]) -> None:
    with pytest.raises(InputError) as caught:
        backend.run(inputs)
    assert "\n" not in str(caught.value)
    good = _images(4)  # and the backend is none the worse for it
    np.testing.assert_allclose(
        backend.run({"images": good})["class_logits"], _expected_logits(good), atol=ENGINE_TENSORS
    )


def test_closing_twice(backend: Backend) -> None:
    backend.run({"images": _images(0)})
    backend.close()
    backend.close()
    with pytest.raises(InputError, match="closed"):
        backend.run({"images": _images(0)})


def test_detector_on_top(backend: Backend) -> None:
    detector = Detector.from_backend(backend, Manifest.from_json(backend.manifest_json or ""))
    detections = detector(colour_image((1, 2, "red")))
    assert [detector.class_names[class_id] for class_id in detections.class_ids] == ["red"]
    np.testing.assert_allclose(detections.boxes_xyxy, [[12, 4, 28, 20]], atol=1e-3)


@pytest.mark.parametrize("name", FILE_BACKENDS)
@pytest.mark.parametrize(
    "wish", [{"device": "quantum"}, {"precision": "fp12"}, {"precision": "int8"}], ids=lambda wish: next(iter(wish))
)
def test_wishes_that_no_engine_fulfils(tmp_path: Path, name: str, wish: dict[str, str]) -> None:
    with pytest.raises(UnsupportedError) as caught:
        _open(name, tmp_path, None, **wish)
    assert repr(next(iter(wish.values()))) in str(caught.value)


@pytest.mark.parametrize("name", FILE_BACKENDS)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_other_precisions_are_real_or_refused(tmp_path: Path, name: str, precision: str) -> None:
    try:
        used, refusal = _open(name, tmp_path, None, precision=precision).precision, ""
    except UnsupportedError as error:
        used, refusal = "", str(error)
    assert used == precision or repr(precision) in refusal


@pytest.mark.parametrize("name", FILE_BACKENDS)
def test_threads(tmp_path: Path, name: str) -> None:
    images = _images(5)
    for num_threads in (0, 1, 2):
        with _open(name, tmp_path / str(num_threads), 1, num_threads=num_threads) as opened:
            logits = opened.run({"images": images})["class_logits"]
            np.testing.assert_allclose(logits, _expected_logits(images), atol=ENGINE_TENSORS)


@pytest.mark.parametrize("name", FILE_BACKENDS)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    module = backend_module(name)
    if module.available() is not None:
        pytest.skip(str(module.available()))
    for suffix in module.SUFFIXES:
        path = tmp_path / f"m{suffix}"
        with pytest.raises(ModelFileError):
            open_backend(path, backend=name)
        path.write_bytes(b"<net?>\x00\x01\x02")
        path.with_suffix(".bin").touch()
        with pytest.raises(ModelFileError) as caught:
            open_backend(path, backend=name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cuda", "quantum"])
def test_torch_says_which_devices_it_lacks(device: str) -> None:
    torch = pytest.importorskip("torch")
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    from boxwright.runtimes.torch import TorchBackend

    with pytest.raises(UnsupportedError, match=repr(device)):
        TorchBackend.from_module(torch.nn.Conv2d(3, 3, 1), colour_cells_manifest(), device=device)
