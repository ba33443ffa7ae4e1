"""`export(..., format="tensorrt")` from file to file: compared, moved to its place, described, or not written at all.

A fake builds the engine; ONNX Runtime runs the graph that it was built from in the engine's place.
"""

from __future__ import annotations

import itertools
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from boxwright.cli.main import main
from boxwright.core.errors import InputError, MissingDependencyError, OutputError, UnsupportedError, VerificationError
from boxwright.export import ExportOptions, api, export
from boxwright.export.tensorrt_api import BuilderApi
from boxwright.export.tensorrt_options import EngineOptions
from boxwright.export.tensorrt_request import BuildMachine, open_build_machine
from boxwright.runtimes import tensorrt_library
from boxwright.runtimes.backend import open_backend
from boxwright.runtimes.cuda_runtime import CudaDevice
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.engine_sidecar import read_sidecar
from fake_tensorrt_builder import Record, fake_builder_module
from models_for_tests import save_colour_cells
from recorded_tensorrt import GENERATIONS

DEVICE = CudaDevice(index=0, name="NVIDIA Fake", compute_capability="9.0", is_integrated=False, memory_bytes=1 << 34)


def detector_of(path: Path, **options: Any) -> Detector:
    """What was built runs as the graph that it was built from."""
    if options.get("backend") != "tensorrt":
        return Detector(path, **options)
    sidecar = read_sidecar(path)
    backend: Any = open_backend(Path(path).with_name("for_tensorrt.onnx"), backend="onnxruntime")
    backend.fixed_thresholds = sidecar.fixed_thresholds
    return Detector.from_backend(backend, sidecar.manifest, conf=options.get("conf"), iou=options.get("iou"))


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Record:
    """A machine with a GPU, and TensorRT of a generation."""
    record = Record()
    module = fake_builder_module(getattr(request, "param", "10.3.0"), record)
    machine = BuildMachine(api=BuilderApi.of(module), cuda=None, device=DEVICE)  # type: ignore[arg-type]
    monkeypatch.setattr(tensorrt_library, "_loaded_plugins", set())
    monkeypatch.setattr(api, "open_build_machine", lambda options: machine)
    monkeypatch.setattr(api, "Detector", detector_of)
    return record


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_colour_cells(tmp_path / "cells.onnx", batch=None)


@pytest.mark.parametrize(
    ("record", "precision"),
    list(zip(GENERATIONS, itertools.cycle(["fp16", "fp32"]), strict=False)),
    indirect=["record"],
)
def test_an_engine_that_agrees_is_written(record: Record, precision: str, source: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "m.plan"
    result = export(
        source,
        out,
        options=ExportOptions(format="tensorrt", precision=precision, dynamic=True),
        on_progress=said.append,
    )
    assert result.path == out and out.read_bytes().startswith(b"ENGINE")
    sidecar = read_sidecar(out)
    assert sidecar.manifest == result.manifest
    assert sidecar.manifest.verification is not None and sidecar.manifest.verification.num_boxes > 0
    assert sidecar.manifest.stage == "detections" and sidecar.manifest.precision == precision
    words = shlex.split(sidecar.rebuild_command)
    assert words[:3] == ["boxwright", "export", str(source)] and words[-2:] == ["--out", str(out)]
    assert words[3:-2] == ["--format", "tensorrt", "--precision", precision, "--dynamic"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.onnx", "m.plan", "m.plan.manifest.json"]
    assert said.index("comparing detections with the source") > said.index("converting")


def test_an_engine_that_differs_is_not_written(
    record: Record, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(path: Path, **options: Any) -> Detector:
        return detector_of(path, **({**options, "conf": 1.0} if options.get("backend") == "tensorrt" else options))

    monkeypatch.setattr(api, "Detector", blind)
    with pytest.raises(VerificationError, match=r"tensorrt export of cells\.onnx does not detect"):
        export(source, tmp_path / "m.engine", options=ExportOptions(format="tensorrt"))
    assert [path.name for path in tmp_path.iterdir()] == ["cells.onnx"]


def test_a_failing_build_leaves_nothing(record: Record, source: Path, tmp_path: Path) -> None:
    record.build_errors = ["Error Code 2: OutOfMemory"]
    with pytest.raises(UnsupportedError, match="enough free memory"):
        export(source, options=ExportOptions(format="tensorrt"))
    assert [path.name for path in tmp_path.iterdir()] == ["cells.onnx"]


@pytest.mark.parametrize(
    ("options", "out", "message"),
    [
        ({"format": "tensorrt"}, "m.onnx", r"--out: expected a file name that ends in \.engine or \.plan"),
        ({"format": "tensorrt", "precision": "bf16"}, "m.engine", "--precision for tensorrt: expected fp32 or fp16 or"),
        ({"engine": EngineOptions(workspace_mb=3)}, "m.onnx", "--workspace 3: expected --format tensorrt"),
    ],
)
def test_options_that_do_not_fit(
    options: dict[str, Any], out: str, message: str, record: Record, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        export(source, tmp_path / out, options=ExportOptions(**options))


@pytest.mark.parametrize("option", ["timing_cache", "calibration_cache"])
def test_caches_that_could_not_be_written_are_refused_before_the_build(
    option: str, record: Record, source: Path, tmp_path: Path
) -> None:
    for place, message in ((tmp_path / "no" / "x.cache", "the folder .*/no"), (tmp_path, "a file, or none yet")):
        options = ExportOptions(format="tensorrt", engine=EngineOptions(**{option: place}))  # type: ignore[arg-type]
        with pytest.raises(OutputError, match=f"--{option.replace('_', '-')} .*: expected {message}"):
            export(source, tmp_path / "m.engine", options=options)
    assert record.model is None and [path.name for path in tmp_path.iterdir()] == ["cells.onnx"]


def test_the_command_line_hands_everything_over(
    record: Record, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(source), "--format", "tensorrt", "--precision", "fp16", "--dynamic", "--workspace", "64"]
    words += ["--profile", "1x3x48x64,2x3x48x64,3x3x48x64", "--profile", "8x3x48x64", "--float-layers", "none"]
    words += ["--timing-cache", str(tmp_path / "timing.cache"), "--out", str(tmp_path / "m.engine"), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "fp16"
    assert record.pools == {"WORKSPACE": 64 << 20}
    assert [profile["images"][2] for profile in record.profiles] == [(3, 3, 48, 64), (8, 3, 48, 64)]
    assert (tmp_path / "timing.cache").exists()
    command = read_sidecar(tmp_path / "m.engine").rebuild_command
    for argument in ("--workspace 64", "--float-layers none", "--profile 8x3x48x64,8x3x48x64,8x3x48x64", "--dynamic"):
        assert argument in command


@pytest.mark.parametrize("conf", [None, 0.3])
def test_an_engine_in_a_repository_of_triton(
    conf: float | None, record: Record, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one step from an ONNX file: the engine has the model's own IoU threshold, and is compared at its own score."""
    repository = tmp_path / "repository"
    words = ["export", str(source), "--format", "triton", "--triton-backend", "tensorrt", "--precision", "fp16"]
    words += ["--dynamic", "--out", str(repository), *([] if conf is None else ["--conf", str(conf)])]
    assert main([*words, "--json"]) == 0
    verification = json.loads(capsys.readouterr().out)["verification"]
    assert verification["matched_fraction"] == 1 and verification["num_boxes"] > 0
    sidecar = read_sidecar(repository / "cells" / "1" / "model.plan")
    assert sidecar.fixed_thresholds == pytest.approx({"score_threshold": conf or 0.001, "iou_threshold": 0.7})
    assert sidecar.manifest.verification is not None
    assert main([*shlex.split(sidecar.rebuild_command)[1:]]) == 0  # it is the command that was given
    assert sorted(path.name for path in (repository / "cells").iterdir()) == ["1", "2", "config.pbtxt"]
    config = (repository / "cells" / "config.pbtxt").read_text()
    assert 'backend: "tensorrt"' in config and "max_batch_size: 16" in config
    assert f"# Build it again with: {sidecar.rebuild_command}" in config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.onnx", "repository"]


def test_an_engine_with_fixed_thresholds_goes_into_triton(record: Record, source: Path, tmp_path: Path) -> None:
    """In two steps; an engine whose thresholds are inputs is refused with the way to build one."""
    for name, engine in (("open", EngineOptions()), ("fixed", EngineOptions(fixed_thresholds=True))):
        options = ExportOptions(format="tensorrt", engine=engine, iou=0.6)
        export(source, tmp_path / f"{name}.engine", options=options)
    with pytest.raises(UnsupportedError, match=r"--fixed-thresholds.*--triton-backend tensorrt"):
        export(tmp_path / "open.engine", options=ExportOptions(format="triton"))
    packed = (
        export(tmp_path / "fixed.engine", options=ExportOptions(format="triton")).path / "fixed" / "1" / "model.plan"
    )
    assert read_sidecar(packed).fixed_thresholds["iou_threshold"] == pytest.approx(0.6)
    assert "--fixed-thresholds" in read_sidecar(packed).rebuild_command


def test_more_candidates_than_tensorrt_sorts(
    record: Record, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit is chosen and said; asked for by hand, or with the plugin, nothing is."""
    machine = api.open_build_machine(EngineOptions())
    limits = replace(machine.api.limits, largest_k=40)
    few = replace(machine, api=replace(machine.api, limits=limits))
    monkeypatch.setattr(api, "open_build_machine", lambda options: few)
    words = ["export", str(source), "--format", "tensorrt", "--out", str(tmp_path / "m.engine")]
    assert main(words) == 0
    assert "note --max-candidates 40: of each image so many go to NMS" in " ".join(capsys.readouterr().out.split())
    sidecar = read_sidecar(tmp_path / "m.engine")
    assert sidecar.manifest.decode.nms is not None and sidecar.manifest.decode.nms.pre_nms_top_k == 40
    assert "--max-candidates 40" in sidecar.rebuild_command
    own = export(source, tmp_path / "n.engine", options=ExportOptions(format="tensorrt", max_candidates=7))
    assert own.notes == ()
    assert export(source, tmp_path / "r.engine", options=ExportOptions(format="tensorrt", nms="none")).notes == ()


def test_without_tensorrt_nothing_is_begun(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    monkeypatch.setattr(api, "open_source", lambda *_: pytest.fail("work before the check"))
    with pytest.raises((MissingDependencyError, UnsupportedError), match="--format tensorrt") as caught:
        export(source, tmp_path / "m.engine", options=ExportOptions(format="tensorrt"))
    assert "\n" not in str(caught.value)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from boxwright.export import tensorrt_request

    class OneGpu:
        def num_devices(self) -> int:
            return 1

    monkeypatch.setattr(tensorrt_request, "import_tensorrt", lambda needed_for: fake_builder_module("10.3.0", Record()))
    monkeypatch.setattr(tensorrt_request, "load_cuda", lambda needed_for: OneGpu())
    with pytest.raises(UnsupportedError, match="--gpu: expected a number below 1, got 3"):
        open_build_machine(EngineOptions(gpu=3))
