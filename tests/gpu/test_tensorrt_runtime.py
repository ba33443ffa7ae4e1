"""The TensorRT backend and ONNX Runtime's GPU providers on a real GPU; tests/runtimes plays the same without one."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from boxwright.core.errors import BoxwrightError, InputError, ModelFileError
from boxwright.runtimes.backend import backend_module, open_backend
from boxwright.runtimes.cuda_buffers import DeviceMemory, find_pinned, pinned_array
from boxwright.runtimes.cuda_runtime import Cuda, load_cuda
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.engine_sidecar import read_sidecar, sidecar_path, write_sidecar
from models_for_tests import HEIGHT, WIDTH, colour_image, save_colour_cells

pytestmark = pytest.mark.gpu
IMAGES = [colour_image((1, 2, "red"), (4, 5, "red"), (3, 0, "blue")), colour_image((0, 0, "green")), colour_image()]
PIXELS, SCORES = 0.5, 0.01  # of convolutions that may be rounded to TF32


@pytest.fixture(scope="module")
def cuda() -> Cuda:
    try:
        return load_cuda("the tests")
    except BoxwrightError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def engines(cuda: Cuda, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The ONNX file and engines of it for one image and for one to three."""
    reason = backend_module("tensorrt").available()
    if reason is not None:
        pytest.skip(reason)
    from boxwright.export.api import ExportOptions, export
    from boxwright.export.tensorrt_options import EngineOptions

    folder = tmp_path_factory.mktemp("engines")
    paths = {"onnx": save_colour_cells(folder / "m.onnx", batch=1), "open onnx": folder / "open.onnx"}
    save_colour_cells(paths["open onnx"], batch=None)
    # A machine for tests may have TensorRT 8 without the libraries of NVIDIA that it would take kernels from.
    options = ExportOptions(format="tensorrt", engine=EngineOptions(without_cudnn=True))
    paths["fixed"] = export(paths["onnx"], folder / "fixed.engine", options=options).path
    paths["open"] = export(paths["open onnx"], folder / "open.engine", options=options).path
    return paths


def _assert_alike(detector: Detector, reference: Detector) -> None:
    for image in IMAGES:
        found, expected = detector(image), reference(image)
        assert len(found) == len(expected)
        np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=PIXELS)
        np.testing.assert_allclose(found.scores, expected.scores, atol=SCORES)
        np.testing.assert_array_equal(found.class_ids, expected.class_ids)


def _images(seed: int, batch: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((batch, 3, HEIGHT, WIDTH), dtype=np.float32)


def _inputs(backend: Any, seed: int, batch: int = 1) -> dict[str, NDArray[Any]]:
    inputs: dict[str, NDArray[Any]] = {"images": _images(seed, batch)}
    for name, spec in backend.inputs.items():
        if name != "images":
            inputs[name] = np.full([1] * len(spec.shape), 0.3, dtype=spec.dtype)
    return inputs


def test_memory_goes_there_and_back(cuda: Cuda) -> None:
    source = pinned_array(cuda, (3, 5), np.dtype(np.float32), is_shared=False)
    target = pinned_array(cuda, (3, 5), np.dtype(np.float32), is_shared=False)
    source[...] = np.arange(15).reshape(3, 5)
    target[...] = -1
    memory, stream = DeviceMemory(cuda, source.nbytes), cuda.create_stream()
    cuda.copy_to_device(memory.address, source.ctypes.data, source.nbytes, stream)
    cuda.copy_to_host(target.ctypes.data, memory.address, source.nbytes, stream)
    cuda.synchronize(stream)
    cuda.destroy_stream(stream)
    np.testing.assert_array_equal(source, target)
    assert find_pinned(source[1:]) is not None


@pytest.mark.parametrize("name", ["fixed", "open"])
def test_detections_are_those_of_onnx_runtime(name: str, engines: dict[str, Path]) -> None:
    with Detector(engines[name]) as detector, Detector(engines["onnx"], backend="onnxruntime") as reference:
        _assert_alike(detector, reference)
        _assert_alike(detector, reference)  # by CUDA graphs
        (run,) = detector.backend._idle  # type: ignore[attr-defined]
        assert run.graph_problem is None or run._allocated


def test_every_run_gives_what_the_first_gave(engines: dict[str, Path]) -> None:
    with open_backend(engines["fixed"]) as backend:
        inputs = _inputs(backend, 1)
        first = backend.run(inputs)
        own = backend.allocate_input(inputs["images"].shape, np.dtype(np.float32))  # type: ignore[attr-defined]
        own[...] = inputs["images"]
        for number in range(20):
            again = backend.run({**inputs, "images": own} if number % 2 else inputs)
            for key in first:
                np.testing.assert_array_equal(again[key], first[key], err_msg=key)


def test_runs_overlap(engines: dict[str, Path]) -> None:
    with open_backend(engines["fixed"]) as backend:
        inputs = [_inputs(backend, seed) for seed in range(4)]
        expected = [backend.run(entry) for entry in inputs]
        tickets = [backend.submit(entry) for entry in inputs]
        for index in (3, 1, 0, 2):
            outputs = backend.wait(tickets[index])
            for key in outputs:
                np.testing.assert_array_equal(outputs[key], expected[index][key])


def test_threads(engines: dict[str, Path]) -> None:
    failures: list[BaseException] = []
    with open_backend(engines["open"]) as backend:
        cases = [(_inputs(backend, seed, 1 + seed % 3), seed) for seed in range(6)]
        expected = [backend.run(inputs) for inputs, _ in cases]

        def work() -> None:
            try:
                for inputs, seed in cases * 5:
                    outputs = backend.run(inputs)
                    for key in outputs:
                        np.testing.assert_allclose(outputs[key], expected[seed][key], atol=1e-3)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures, failures[0]


def test_sizes_outside_the_profile(engines: dict[str, Path]) -> None:
    with open_backend(engines["open"]) as backend:
        bounds = backend.inputs["images"].largest
        assert bounds is not None
        with pytest.raises(InputError, match="images 1x3x"):
            backend.run(_inputs(backend, 0, bounds[0] + 1))


def test_damaged_and_foreign_engines(engines: dict[str, Path], tmp_path: Path) -> None:
    content = engines["fixed"].read_bytes()
    damaged = tmp_path / "damaged.engine"
    damaged.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError, match="an engine that this TensorRT loads"):
        open_backend(damaged)
    foreign = tmp_path / "foreign.engine"
    foreign.write_bytes(content)
    write_sidecar(foreign, dataclasses.replace(read_sidecar(engines["fixed"]), compute_capability="1.0"))
    with pytest.raises(ModelFileError, match="run here: boxwright export"):
        open_backend(foreign)
    sidecar_path(foreign).unlink()
    save_colour_cells(foreign.with_suffix(".onnx"), stage="detections")
    with open_backend(foreign) as backend:
        assert backend.precision == "as built"


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_onnx_runtime_on_a_gpu(device: str, cuda: Cuda, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    provider = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}[device]
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f"onnxruntime without {provider}: pip install onnxruntime-gpu")
    path = save_colour_cells(tmp_path / "m.onnx", stage="detections", batch=None)
    with (
        Detector(path, backend="onnxruntime", device=device) as detector,
        Detector(path, backend="onnxruntime") as reference,
    ):
        assert detector.backend.device == f"{device}:0"
        _assert_alike(detector, reference)
        assert [len(found) for found in detector(IMAGES)] == [len(found) for found in reference(IMAGES)]
