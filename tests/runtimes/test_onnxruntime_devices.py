"""ONNX Runtime's providers: what each device asks for, and what is said where the package or the GPU is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxwright.core.errors import OutputError, UnsupportedError
from boxwright.runtimes.backend import open_backend
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.onnxruntime_devices import BoundRuns, choose_provider, make_engine_cache
from models_for_tests import HEIGHT, WIDTH, save_colour_cells

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    ("device", "precision", "normal", "providers"),
    [
        ("cpu", None, "cpu", ["CPUExecutionProvider"]),
        ("cuda", "fp32", "cuda:0", ["CUDAExecutionProvider", "CPUExecutionProvider"]),
        ("cuda:2", None, "cuda:2", ["CUDAExecutionProvider", "CPUExecutionProvider"]),
        (
            "tensorrt:1",
            "fp16",
            "tensorrt:1",
            ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
        ),
    ],
)
def test_what_a_device_asks_for(device: str, precision: str | None, normal: str, providers: list[str]) -> None:
    choice = choose_provider("m.onnx", device, precision)
    assert choice.device == normal
    asked = choice.providers('{"precision": "int8"}')
    assert [name for name, _ in asked] == providers
    index = int(normal.partition(":")[2] or 0)
    assert all(options["device_id"] == index for name, options in asked if name != "CPUExecutionProvider")
    settings = dict(asked)
    if "CUDAExecutionProvider" in settings:
        assert settings["CUDAExecutionProvider"]["use_tf32"] == 0
    if "TensorrtExecutionProvider" in settings:
        assert settings["TensorrtExecutionProvider"]["trt_fp16_enable"] is True
        assert settings["TensorrtExecutionProvider"]["trt_int8_enable"] is True
        plain = dict(choose_provider("m.onnx", device, None).providers("{"))["TensorrtExecutionProvider"]
        assert (plain["trt_fp16_enable"], plain["trt_int8_enable"]) == (False, False)


@pytest.mark.parametrize(
    ("device", "precision", "words"),
    [
        ("gpu", None, "devices cpu, cuda and tensorrt.*got 'gpu'"),
        ("cpu:1", None, "got 'cpu:1'"),
        ("cuda:x", None, "got 'cuda:x'"),
        ("cuda", "fp16", "precision fp32 .*on the device cuda, got 'fp16'"),
        ("cpu", "bf16", "precision fp32 .*on the device cpu, got 'bf16'"),
        ("tensorrt", "bf16", "fp32 or fp16"),
    ],
)
def test_wishes_that_cannot_be_had(device: str, precision: str | None, words: str, tmp_path: Path) -> None:
    path = save_colour_cells(tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match=words):
        open_backend(path, backend="onnxruntime", device=device, precision=precision)


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_package_without_the_provider(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["AzureExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(UnsupportedError, match=r"with AzureE.*, CPUExecutionProvider alone; .*onnxruntime-gpu"):
        Detector(save_colour_cells(tmp_path / "m.onnx"), backend="onnxruntime", device=device)


def test_a_provider_that_does_not_start_is_no_reason_to_run_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    real = onnxruntime.InferenceSession
    asked: list[Any] = []

    def session(path: str, options: Any, providers: list[Any]) -> Any:
        asked.extend(providers)
        return real(path, options, providers=["CPUExecutionProvider"])  # as ONNX Runtime does without a driver

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    path = save_colour_cells(tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match=r"to start on GPU 1, got a session on CPUExec.*nvidia-smi"):
        open_backend(path, backend="onnxruntime", device="cuda:1")
    assert [name for name, _ in asked] == ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_the_folder_for_engines_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    choice = choose_provider("m.onnx", "tensorrt", None)
    make_engine_cache("m.onnx", choice)
    assert Path(dict(choice.providers(None))["TensorrtExecutionProvider"]["trt_engine_cache_path"]).is_dir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="set XDG_CACHE_HOME"):
        make_engine_cache("m.onnx", choice)
    make_engine_cache("m.onnx", choose_provider("m.onnx", "cuda", None))


def test_bound_runs_give_what_plain_runs_give(tmp_path: Path) -> None:
    """The CPU plays the device here: the calls are the real ones."""
    path = save_colour_cells(tmp_path / "m.onnx", stage="detections", batch=None)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    bound = BoundRuns(session, "cpu", 0, names)
    random = np.random.default_rng(0)
    kept = []
    for batch, threshold in ((1, None), (1, None), (3, 0.6), (3, 0.2), (2, None), (1, 0.9)):
        inputs = {"images": random.random((batch, 3, HEIGHT, WIDTH), dtype=np.float32)}
        if threshold is not None:
            inputs["score_threshold"] = np.array([threshold], dtype=np.float32)
        kept.append((bound.run(inputs), session.run(names, inputs)))
    for actual, expected in kept:
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(a, b)
