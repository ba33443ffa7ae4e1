"""The TensorRT backend on a machine that is played: order, memory, graphs and errors. tests/gpu has the real one."""

from __future__ import annotations

import contextlib
import gc
import json
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from boxwright.bench import run as bench_run
from boxwright.cli._bench_plan import Matrix, SourceOptions, prepare_candidates
from boxwright.cli._installation import find_engines
from boxwright.cli.main import main
from boxwright.core.decode_spec import NmsSpec
from boxwright.core.errors import BoxwrightError, InputError, ManifestError, UnsupportedError
from boxwright.export.onnx_files import read_onnx, set_manifest, write_onnx
from boxwright.runtimes import tensorrt_library
from boxwright.runtimes.backend import backend_module, open_backend
from boxwright.runtimes.buffers import BufferPool
from boxwright.runtimes.cuda_runtime import load_cuda
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.engine_sidecar import sidecar_path
from fake_cuda import ALIAS, FakeCuda
from fake_tensorrt import (
    SIZE_HW,
    above_threshold,
    bright_spots,
    engine_bytes,
    engine_description,
    make_manifest,
    make_tensorrt,
    write_engine,
)
from models_for_tests import save_colour_cells
from recorded_tensorrt import GENERATIONS

NEWEST = GENERATIONS[-1]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Gives a machine with a generation of TensorRT; afterwards nothing of its GPU may still be in use."""
    machines: list[FakeCuda] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where no plugin was built

    def start(version: str = NEWEST, *, is_integrated: bool = False) -> SimpleNamespace:
        cuda = FakeCuda(is_integrated=is_integrated)
        trt = make_tensorrt(version, cuda)
        machines.append(cuda)
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
        monkeypatch.setattr(tensorrt_library, "_loaded_plugins", set())
        return SimpleNamespace(cuda=cuda, trt=trt, version=version)

    yield start
    gc.collect()
    for cuda in machines:
        cuda.assert_all_given_back()


def _engine(machine: SimpleNamespace, folder: Path, *, batch: int | None = 1, **changes: Any) -> Path:
    description = engine_description(batch=batch, **changes)
    return write_engine(folder / "m.engine", description, tensorrt_version=machine.version)


def _inputs(seed: int, batch: int = 1, score_threshold: float = 0.0) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    return {
        "images": random.uniform(0, 255, (batch, 3, *SIZE_HW)).astype(np.float32),
        "score_threshold": np.array(score_threshold, dtype=np.float32),
        "iou_threshold": np.array([0.7], dtype=np.float32),
    }


def _assert_right(outputs: dict[str, NDArray[Any]], inputs: dict[str, NDArray[Any]]) -> None:
    expected = bright_spots(inputs)
    assert list(outputs) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(outputs[name], array, err_msg=name)


@pytest.mark.parametrize("version", GENERATIONS)
@pytest.mark.parametrize("is_integrated", [False, True])
def test_every_generation_runs(version: str, is_integrated: bool, play: Any, tmp_path: Path) -> None:
    machine = play(version, is_integrated=is_integrated)
    with open_backend(_engine(machine, tmp_path, batch=None)) as backend:
        assert (backend.name, backend.device, backend.precision) == ("tensorrt", "cuda:0", "fp16")
        assert backend.inputs["images"].shape == (None, 3, *SIZE_HW)
        assert backend.inputs["images"].largest == (3, 3, *SIZE_HW)
        assert backend.inputs["score_threshold"].shape == ()
        assert backend.outputs["class_ids"].dtype == np.int32
        assert backend.manifest_json == make_manifest().to_json()
        kept = []
        for seed, batch in enumerate((1, 2, 2, 2, 3, 1, 1, 1)):
            inputs = _inputs(seed, batch)
            kept.append((backend.run(inputs), inputs))
        for outputs, inputs in kept:  # later runs have not touched them
            _assert_right(outputs, inputs)


def test_the_third_run_of_a_kind_is_a_graph(play: Any, tmp_path: Path) -> None:
    machine = play()
    with open_backend(_engine(machine, tmp_path)) as backend:
        for seed in range(6):
            inputs = _inputs(seed)
            _assert_right(backend.run(inputs), inputs)
        assert machine.trt.executions == 2  # one plain, one while it was recorded
        assert machine.cuda.calls.count("cudaGraphLaunch") == 5


def test_an_engine_that_cannot_be_recorded_runs_call_by_call(play: Any, tmp_path: Path) -> None:
    machine = play()
    with open_backend(_engine(machine, tmp_path, can_be_recorded=False)) as backend:
        for seed in range(5):
            inputs = _inputs(seed)
            _assert_right(backend.run(inputs), inputs)
        assert "cudaGraphLaunch" not in machine.cuda.calls
        assert machine.trt.executions == 6  # tried once
        assert "capturing" in backend._idle[0].graph_problem


def test_runs_under_way_have_memory_of_their_own(play: Any, tmp_path: Path) -> None:
    machine = play()
    with open_backend(_engine(machine, tmp_path, batch=None)) as backend:
        inputs = [_inputs(seed, batch) for seed, batch in enumerate((1, 3, 2))]
        tickets = [backend.submit(entry) for entry in inputs]
        for index in (2, 0, 1):
            _assert_right(backend.wait(tickets[index]), inputs[index])
        again = backend.submit(inputs[1])
        _assert_right(backend.wait(again), inputs[1])
        assert len(machine.cuda.streams) == 3


def test_before_10_open_sizes_serve_one_run_at_a_time(play: Any, tmp_path: Path) -> None:
    machine = play("8.6.1")
    with open_backend(_engine(machine, tmp_path, batch=None)) as backend:
        inputs = _inputs(0)
        ticket = backend.submit(inputs)
        with pytest.raises(UnsupportedError, match="one run at a time"):
            backend.submit(_inputs(1))
        _assert_right(backend.wait(ticket), inputs)
        _assert_right(backend.run(inputs), inputs)


@pytest.mark.parametrize("version", ["8.5.3", NEWEST])
def test_threads(version: str, play: Any, tmp_path: Path) -> None:
    machine = play(version)
    failures: list[BaseException] = []
    with open_backend(_engine(machine, tmp_path, batch=None)) as backend:

        def work(number: int) -> None:
            try:
                for seed in range(10):
                    inputs = _inputs(100 * number + seed, 1 + seed % 3)
                    _assert_right(backend.run(inputs), inputs)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
            assert not thread.is_alive()
    assert not failures, failures[0]


def test_shared_memory_needs_no_copy(play: Any, tmp_path: Path) -> None:
    machine = play(is_integrated=True)
    with open_backend(_engine(machine, tmp_path)) as backend:
        inputs = _inputs(0)
        own = backend.allocate_input((1, 3, *SIZE_HW), np.dtype(np.float32))
        own[...] = inputs["images"]
        num_pieces = len(machine.cuda.live)
        _assert_right(backend.run({**inputs, "images": own}), inputs)
        assert "cudaMemcpyAsync" not in machine.cuda.calls
        assert backend._idle[0]._addresses["images"] == own.ctypes.data + ALIAS
        assert len(machine.cuda.live) == num_pieces + 6  # the other inputs, the outputs, and nothing for the images
        own[...] = 0
        _assert_right(backend.run({**inputs, "images": own}), {**inputs, "images": np.zeros_like(own)})


def test_pinned_input_is_copied_once(play: Any, tmp_path: Path) -> None:
    machine = play()
    with open_backend(_engine(machine, tmp_path, batch=None)) as backend:
        inputs = _inputs(0, 2)
        own = backend.allocate_input((3, 3, *SIZE_HW), np.dtype(np.float32))
        own[:2] = inputs["images"]
        _assert_right(backend.run({**inputs, "images": own[:2]}), inputs)
        assert backend._idle[0]._memories["images"]._host is None
        reverse = {**inputs, "images": own[1::-1]}  # not side by side
        _assert_right(backend.run(reverse), {**inputs, "images": inputs["images"][::-1]})


def test_a_view_of_a_pinned_buffer_counts_as_holding_it(play: Any, tmp_path: Path) -> None:
    with open_backend(_engine(play(), tmp_path)) as backend:
        pool = BufferPool(backend.allocate_input)
        first = pool.take((2, 3))
        address = first.ctypes.data
        view = first[1, 1:]
        del first
        assert pool.take((2, 3)).ctypes.data != address
        del view
        assert pool.take((2, 3)).ctypes.data == address


def test_sizes_that_the_run_decides(play: Any, tmp_path: Path) -> None:
    for version in ("8.5.3", NEWEST):
        machine = play(version)
        changes: dict[str, Any] = {"function": "above_threshold", "outputs": {"found": [[-1], "FLOAT"]}}
        with open_backend(_engine(machine, tmp_path, **changes)) as backend:
            assert backend.outputs["found"].shape == (None,)
            for threshold in (250.0, 10.0, 300.0, 254.0, 200.0):
                inputs = _inputs(3, score_threshold=threshold)
                expected = above_threshold(inputs)["found"]
                np.testing.assert_array_equal(backend.run(inputs)["found"], expected)
            machine.cuda.failing["cudaMalloc"] = 2
            with pytest.raises(UnsupportedError, match="GPU memory: expected room for"):
                backend.run(_inputs(3, score_threshold=-1.0))


def test_inputs_that_tensorrt_reads_on_the_cpu(play: Any, tmp_path: Path) -> None:
    machine = play()
    with open_backend(_engine(machine, tmp_path, host=["score_threshold"])) as backend:
        for seed, threshold in enumerate((0.2, 0.9, 0.2)):
            inputs = _inputs(seed, score_threshold=threshold)
            _assert_right(backend.run(inputs), inputs)


def test_closing(play: Any, tmp_path: Path) -> None:
    machine = play()
    backend = open_backend(_engine(machine, tmp_path))
    inputs = _inputs(0)
    array = backend.allocate_input((2, 2), np.dtype(np.float32))  # type: ignore[attr-defined]
    backend.run(inputs)
    ticket = backend.submit(inputs)
    backend.close()
    backend.close()
    _assert_right(backend.wait(ticket), inputs)
    assert not machine.cuda.streams
    with pytest.raises(InputError, match="closed"):
        backend.run(inputs)
    array[...] = 1  # still there, since it is still held
    assert len(machine.cuda.live) == 1


# What is wrong, and what is said of it.
FAULTS: list[tuple[str, dict[str, Any], str]] = [
    (
        "no driver",
        {"failing": {"cudaGetDeviceCount": 35}},
        "expected an NVIDIA driver .*driver version is insufficient",
    ),
    ("no GPU", {"failing": {"cudaGetDeviceCount": 100}}, "expected an NVIDIA GPU, got no CUDA-capable device"),
    ("no memory on the GPU", {"failing": {"cudaMalloc": 2}}, "GPU memory: .*out of memory; end other programs"),
    ("no pinned memory", {"failing": {"cudaHostAlloc": 2}}, "GPU memory: .*out of memory"),
    ("no memory for a context", {"trt_failing": "context"}, "enough GPU memory for the engine, got OutOfMemory"),
    ("no memory for the engine", {"trt_failing": "deserialize"}, "enough GPU memory for the engine"),
    ("a run that fails", {"trt_failing": "execute"}, "one that TensorRT runs.*illegal memory access"),
    ("a GPU that fails", {"failing": {"cudaStreamSynchronize": 700}}, "Synchronize.*illegal memory access"),
    (
        "another version",
        {"sidecar": {"tensorrt_version": "8.4.1"}},
        r"TensorRT 8\.4\.1; run here: boxwright export m\.",
    ),
    (
        "another GPU",
        {"sidecar": {"gpu_name": "Orin", "compute_capability": "8.7"}},
        r"one for Orin \(compute capability 8",
    ),
    ("no plugin", {"sidecar": {"needs_plugin": True}}, "plugin .*got none for version .*doctor --build-plugins"),
    ("no plugin, it turns out", {"engine": {"needs_plugin": True}}, "Could not find plugin: DecodeNMS.*build-plugins"),
    ("a device that is none", {"device": "cpu"}, "expected the device cuda.*got 'cpu'"),
    ("a GPU too many", {"device": "cuda:3"}, r"a GPU that is here \(cuda:0\), got cuda:3"),
    ("another precision", {"precision": "fp32"}, "expected the precision fp16.*--precision fp32"),
    ("a batch too large", {"batch": 9}, r"images 1x3x24x40 to 3x3x24x40.*, got images 9x3x24x40"),
    ("another layout", {"engine": {"formats": {"images": "CHW4"}}}, "images: expected a linear layout, got CHW4"),
    ("other bytes", {"content": b"x" * 100}, "its .manifest.json describes, got 100 bytes"),
    ("no bytes", {"content": b""}, "got an empty file"),
    ("other bytes, undescribed", {"content": b"x" * 100, "bare": True}, r"got Serialization \(Magic tag\); run: "),
    ("few bytes, undescribed", {"content": b"x", "bare": True}, "got a file of 1 bytes"),
]


@pytest.mark.parametrize(("fault", "words"), [pytest.param(*rest, id=name) for name, *rest in FAULTS])
@pytest.mark.parametrize("version", ["8.5.3", NEWEST])
def test_one_clear_line(fault: dict[str, Any], words: str, version: str, play: Any, tmp_path: Path) -> None:
    machine = play(version)
    description = engine_description(batch=None, **fault.get("engine", {}))
    sidecar = {"tensorrt_version": version, **fault.get("sidecar", {})}
    path = write_engine(tmp_path / "m.engine", description, **sidecar)
    if "content" in fault:
        path.write_bytes(fault["content"])
    if fault.get("bare"):
        sidecar_path(path).unlink()
    machine.cuda.failing.update(fault.get("failing", {}))
    machine.trt.failing = fault.get("trt_failing", "")
    wishes = {name: fault.get(name) for name in ("device", "precision")}
    with pytest.raises(InputError, match=words) as caught, open_backend(path, **wishes) as backend:
        backend.run(_inputs(0, fault.get("batch", 1)))
    assert "\n" not in str(caught.value)
    machine.cuda.failing.clear()


@pytest.mark.parametrize(("missing", "words"), [("tensorrt", "package tensorrt"), ("cuda", "package cuda-bindings")])
def test_absent_packages(missing: str, words: str, play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _engine(play(), tmp_path)
    names = ["tensorrt"] if missing == "tensorrt" else ["cuda.bindings.runtime", "cuda.cudart"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BoxwrightError, match=rf"{words}.*pip install 'boxwright\[tensorrt\]'"):
        open_backend(path)


def test_detector_on_an_engine(play: Any, tmp_path: Path) -> None:
    machine = play()
    path = _engine(machine, tmp_path, batch=None)
    bright, dark = np.full((48, 80, 3), 200, dtype=np.uint8), np.full((30, 50, 3), 20, dtype=np.uint8)
    with Detector(path) as detector:
        assert detector.batch_size == 3
        found = detector([bright, dark, bright, bright, dark])
        assert [len(detections) for detections in found] == [1, 0, 1, 1, 0]
        np.testing.assert_allclose(found[0].boxes_xyxy, [[0, 0, 40, 24]])
        np.testing.assert_allclose(found[0].scores, [200 / 255], rtol=1e-5)
        # Preprocessing writes where the copy to the GPU starts.
        assert detector.backend._idle[0]._memories["images"]._host is None  # type: ignore[attr-defined]
    with Detector(path, conf=0.05, precision="fp16", device="cuda:0") as detector:
        assert len(detector(dark)) == 1
        assert detector.precision == "fp16"


def test_an_engine_of_trtexec_has_the_manifest_of_its_onnx_file(play: Any, tmp_path: Path) -> None:
    play()
    path = tmp_path / "m.plan"
    images_alone = {"images": [[1, 3, *SIZE_HW], "FLOAT"]}
    path.write_bytes(engine_bytes(engine_description(inputs=images_alone, function="bright_spots_fixed")))
    with pytest.raises(ManifestError, match=re.escape("m.plan.manifest.json beside it")):
        Detector(path)
    with Detector(path, manifest=make_manifest()) as detector:
        assert detector.precision == "as built"
    with pytest.raises(UnsupportedError, match="built-in score_threshold"):
        Detector(path, manifest=make_manifest(), conf=0.3)
    model = read_onnx(save_colour_cells(tmp_path / "other.onnx", stage="detections"))
    manifest = make_manifest()
    set_manifest(model, replace(manifest, decode=replace(manifest.decode, nms=NmsSpec())))
    write_onnx(model, tmp_path / "m.onnx")
    with Detector(path) as detector:
        assert detector.class_names == ("dark", "bright")
        assert detector.iou_threshold == pytest.approx(0.7)
    # The file has 0.001 and 0.7 built in: of scores a higher threshold can be had, of overlaps no other.
    image = np.full((48, 80, 3), 100, dtype=np.uint8)
    for conf, count in ((0.001, 1), (0.3, 1), (0.4, 0)):
        with Detector(path, conf=conf, iou=0.7) as detector:
            assert len(detector(image)) == count
    with pytest.raises(UnsupportedError, match="built-in score_threshold"):
        Detector(path, conf=0.0005)
    with pytest.raises(UnsupportedError, match="built-in iou_threshold"):
        Detector(path, iou=0.6)


def test_an_engine_with_thresholds_of_its_own(play: Any, tmp_path: Path) -> None:
    """Built with --fixed-thresholds: its description says which they are."""
    machine = play()
    images_alone = {"images": [[1, 3, *SIZE_HW], "FLOAT"]}
    told = {"tensorrt_version": machine.version, "fixed_thresholds": {"score_threshold": 0.001, "iou_threshold": 0.45}}
    description = engine_description(inputs=images_alone, function="bright_spots_fixed")
    path = write_engine(tmp_path / "m.engine", description, **told)
    image = np.full((48, 80, 3), 100, dtype=np.uint8)
    for conf, count in ((None, 1), (0.001, 1), (0.4, 0)):
        with Detector(path, conf=conf) as detector:
            assert len(detector(image)) == count
            assert detector.iou_threshold == 0.45
    with pytest.raises(UnsupportedError, match="built-in score_threshold in tensorrt; leave conf out, or export"):
        Detector(path, conf=0.0001)


def test_predict_takes_engines_as_they_are(play: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = _engine(play(), tmp_path)
    cv2.imwrite(str(tmp_path / "bright.png"), np.full((48, 80, 3), 200, dtype=np.uint8))
    assert main(["predict", str(path), str(tmp_path / "bright.png"), "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["backend"], document["device"], document["precision"]) == ("tensorrt", "cuda:0", "fp16")
    assert document["images"][0]["detections"][0]["box_xyxy"] == [0, 0, 40, 24]
    assert main(["predict", str(path), str(tmp_path / "bright.png"), "--device", "cpu"]) == 2
    assert "for a TensorRT engine" in capfd.readouterr().err


def test_bench_measures_an_engine_as_it_was_built(play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _engine(play(), tmp_path)
    matrix = Matrix(
        backends=(), precisions=("fp32", "bf16"), sizes_hw=(), device=None, num_threads=0, calibration_split="train"
    )
    (candidate,) = prepare_candidates([path], matrix, SourceOptions(), tmp_path, on_note=lambda _: None)
    assert (candidate.precision, candidate.device) == ("fp16", "cuda")
    asked: list[Any] = []
    monkeypatch.setattr(bench_run, "run_benchmark", lambda candidates, *_, **__: asked.extend(candidates) or Mock())
    monkeypatch.setattr("boxwright.data.load_dataset", Mock())
    with contextlib.suppress(KeyboardInterrupt):  # the mock of a run was interrupted
        bench_run.benchmark([path, tmp_path / "m.onnx"], tmp_path, precisions=("fp32",))
    assert [(one.precision, one.device) for one in asked] == [("fp16", "cuda"), ("fp32", "cpu")]


def test_doctor_names_the_gpus_or_what_is_wrong(play: Any) -> None:
    machine = play()
    (engine,) = (engine for engine in find_engines() if engine.name == "tensorrt")
    assert (engine.status, engine.version, engine.devices) == ("ready", machine.version, ("cuda:0 NVIDIA L4",))
    machine.cuda.failing["cudaGetDeviceCount"] = 35
    (engine,) = (engine for engine in find_engines() if engine.name == "tensorrt")
    assert engine.status == "broken" and "expected an NVIDIA driver" in str(engine.problem)


def test_the_real_cuda_python_without_a_gpu() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    if shutil.which("nvidia-smi") is not None:
        pytest.skip("there may be a GPU here")
    with pytest.raises(UnsupportedError, match=r"expected an NVIDIA (driver|GPU).*nvidia-smi"):
        load_cuda("m.engine")


def test_available(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    play()
    module = backend_module("tensorrt")
    assert module.available() is None
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", None)
    assert module.available() == "the package cuda-bindings is not installed"
