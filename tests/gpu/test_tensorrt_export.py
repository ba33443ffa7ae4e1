"""Engines that are really built: they detect what their source detects, on photographs, in every precision and form.

`pytest -m gpu -s tests/gpu/test_tensorrt_export.py` prints the accuracy and the time of each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxwright.core.errors import BoxwrightError, InputError, UnsupportedError
from boxwright.core.images import read_image
from boxwright.data import load_dataset
from boxwright.runtimes.backend import backend_module
from boxwright.runtimes.cuda_runtime import load_cuda
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.engine_sidecar import read_sidecar

pytestmark = pytest.mark.gpu
MODELS = {
    "yolox-nano": ("yolox_nano_coco.pth", {"model": "yolox-nano", "preprocess": "yolox-legacy"}),
    "yolo-fastest-xl": ("yolo-fastest-1.1-xl.weights", {}),
}
# mAP that a precision may cost, 0 to 1.
ALLOWED_DROP = {"fp32": 0.001, "fp16": 0.003, "int8": 0.005}
Onnx = Callable[[str, str], Path]


@pytest.fixture(scope="module", autouse=True)
def _tensorrt() -> None:
    reason = backend_module("tensorrt").available()
    if reason is not None:
        pytest.skip(reason)
    try:
        load_cuda("the tests")
    except BoxwrightError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def onnx_of(shared_dir: Path, folder: Path) -> Onnx:
    """Gives a model's ONNX file in a form of NMS."""
    from boxwright.export import ExportOptions, export

    def make(name: str, nms: str) -> Path:
        weights, description = MODELS[name]
        out = folder / f"{name}_{nms}.onnx"
        options = ExportOptions(nms=nms)  # type: ignore[arg-type]
        return export(shared_dir / "weights" / weights, out, labels="coco", options=options, **description).path

    return cache(make)


@pytest.fixture(scope="module")
def map_of(shared_dir: Path) -> Callable[[Detector], float]:
    """Gives the mAP of a detector on coco-tiny."""
    from boxwright.bench.accuracy import evaluate

    dataset = load_dataset(shared_dir / "data" / "coco-tiny", "val")

    def measure(detector: Detector) -> float:
        with detector:
            accuracy = evaluate(detector, dataset)
        assert accuracy.map is not None
        return accuracy.map

    return measure


def have_plugin() -> None:
    """Build the plugin, unless it was brought along; without a compiler the test skips."""
    from boxwright.runtimes.tensorrt_library import import_tensorrt
    from boxwright.runtimes.tensorrt_plugin import build_tensorrt_plugin, find_tensorrt_plugin

    try:
        if find_tensorrt_plugin(import_tensorrt("the tests").__version__) is None:
            build_tensorrt_plugin()
    except UnsupportedError as error:
        pytest.skip(str(error))


def build(source: Path, out: Path, data: Path | None = None, **changes: Any) -> Path:
    from boxwright.export import ExportOptions, export
    from boxwright.export.tensorrt_options import EngineOptions

    engine = EngineOptions(without_cudnn=True, **changes.pop("engine", {}))
    options = ExportOptions(format="tensorrt", engine=engine, **changes)
    return export(source, out, data=data, options=options).path


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("nms", ["graph", "plugin", "none"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_detects_what_its_source_detects(
    name: str, nms: str, precision: str, onnx_of: Onnx, folder: Path, map_of: Any, shared_dir: Path
) -> None:
    source = onnx_of(name, nms)
    data = shared_dir / "data" / "coco-tiny"
    if nms == "plugin":
        have_plugin()
    engine = build(source, folder / f"{name}_{nms}_{precision}.engine", data, nms=nms, precision=precision)
    sidecar = read_sidecar(engine)
    assert (sidecar.precision, sidecar.needs_plugin) == (precision, nms == "plugin")
    wanted = map_of(Detector(source, backend="onnxruntime", conf=0.001))
    got = map_of(Detector(engine, conf=0.001))
    print(f"{name} {nms} {precision}: mAP {got:.4f}, ONNX Runtime {wanted:.4f}, {sidecar.build_options}")
    assert abs(got - wanted) <= ALLOWED_DROP[precision]


@pytest.mark.parametrize("name", MODELS)
def test_a_calibrated_file_keeps_its_accuracy(
    name: str, onnx_of: Onnx, folder: Path, map_of: Any, shared_dir: Path
) -> None:
    from boxwright.calibration import calibrate

    source, data = onnx_of(name, "graph"), shared_dir / "data" / "coco-tiny"
    calibrated = folder / f"{name}_int8.onnx"
    calibrate(source, data, calibrated, engine="tensorrt", measure=False)
    engine = build(calibrated, folder / f"{name}_int8.engine", data)
    assert read_sidecar(engine).precision == "int8"
    wanted, got = map_of(Detector(source, backend="onnxruntime", conf=0.001)), map_of(Detector(engine, conf=0.001))
    print(f"{name} int8: mAP {got:.4f}, float32 in ONNX Runtime {wanted:.4f}")
    assert wanted - got <= ALLOWED_DROP["int8"]


def test_a_timing_cache_is_filled_and_used(onnx_of: Onnx, folder: Path) -> None:
    cache_file = folder / "timing.cache"
    source = onnx_of("yolox-nano", "graph")
    build(source, folder / "first.engine", engine={"timing_cache": cache_file, "workspace_mb": 512})
    assert cache_file.stat().st_size > 1000
    build(source, folder / "second.engine", engine={"timing_cache": cache_file, "workspace_mb": 512})


def test_profiles_bound_the_batch(shared_dir: Path, folder: Path) -> None:
    from boxwright.export import ExportOptions, export
    from boxwright.export.tensorrt_options import Profile

    weights, description = MODELS["yolox-nano"]
    source = folder / "open.onnx"
    export(shared_dir / "weights" / weights, source, labels="coco", options=ExportOptions(dynamic=True), **description)
    profile = Profile.parse("1x3x416x416,2x3x416x416,3x3x416x416")
    engine = build(source, folder / "open.engine", dynamic=True, engine={"profiles": (profile,)})
    paths = sorted((shared_dir / "data" / "coco-tiny" / "val2017").glob("*.jpg"))[:5]
    images = [read_image(path) for path in paths]
    with Detector(engine) as detector:
        together, alone = detector(images), [detector(image) for image in images]
        for one, other in zip(together, alone, strict=True):
            assert len(one) == len(other)
            np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1.0)
        with pytest.raises(InputError, match="inputs of"):
            detector.backend.run(
                {"images": np.zeros((4, 3, 416, 416), np.float32)}
                | {
                    name: np.full([1] * len(detector.backend.inputs[name].shape), 0.5, np.float32)
                    for name in detector.backend.inputs
                    if name != "images"
                }
            )


@pytest.mark.parametrize("nms", ["graph", "plugin"])
def test_thresholds_that_are_built_in(nms: str, onnx_of: Onnx, folder: Path, shared_dir: Path) -> None:
    """As Triton wants them: the engine takes images alone, and is compared with its source when it is built."""
    from boxwright.export import ExportOptions, export

    if nms == "plugin":
        have_plugin()
    data = shared_dir / "data" / "coco-tiny"
    out = folder / f"fixed_{nms}.engine"
    engine = build(onnx_of("yolox-nano", nms), out, data, nms=nms, conf=0.3, engine={"fixed_thresholds": True})
    assert read_sidecar(engine).manifest.verification.proven  # type: ignore[union-attr]
    with Detector(engine) as detector:
        assert set(detector.backend.inputs) == {"images"}
        with pytest.raises(UnsupportedError, match="built-in score_threshold"):
            Detector(engine, conf=0.2)
    repository = export(engine, folder / f"repository_{nms}", options=ExportOptions(format="triton")).path
    assert (repository / engine.stem / "1" / "model.plan").read_bytes() == engine.read_bytes()


def test_layers_asked_for_stay_in_float(onnx_of: Onnx, folder: Path) -> None:
    import onnx

    source = onnx_of("yolox-nano", "graph")
    first = next(node.name for node in onnx.load(source).graph.node if node.op_type == "Conv")
    engine = build(source, folder / "pinned.engine", precision="fp16", engine={"float_layers": (first,)})
    assert first in read_sidecar(engine).build_options["layers in float32"]
