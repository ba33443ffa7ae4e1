"""`calibrate(model, data, out)`: from an exported float ONNX file to an INT8 one, and what that cost in mAP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import boxwright
from boxwright.calibration.float_model import load_float_model
from boxwright.calibration.held_back import Progress, divide_images, engine_to_measure, measure_on_held_back
from boxwright.calibration.images import CalibrationImages, choose_images, network_inputs, without_copies
from boxwright.calibration.methods import MethodInputs, run_tool
from boxwright.calibration.plain import quantize_plainly
from boxwright.calibration.ranges import RangeMethod
from boxwright.calibration.warning_words import float_model_warnings, image_warnings
from boxwright.calibration.writing import write_model
from boxwright.core.errors import InputError, MissingDependencyError
from boxwright.core.files import check_not_source, check_writable
from boxwright.core.manifest import CalibrationRecord, Manifest
from boxwright.data import load_dataset
from boxwright.data.hashing import content_sha256

DEFAULT_NUM_IMAGES = 128


@dataclass(frozen=True, kw_only=True)
class CalibrationResult:
    """What was written, and what it cost.

    Attributes:
        path: of the INT8 file.
        manifest: that is inside.
        num_layers: convolutions and matrix products before the raw heads.
        num_quantized: of these, in INT8 in the file; None where it holds no model and the engine will decide.
        warnings: what the user should know.
        unreadable: images that were passed over, each with the reason.
    """

    path: Path
    manifest: Manifest
    num_layers: int
    num_quantized: int | None
    warnings: tuple[str, ...]
    unreadable: tuple[str, ...]


def calibrate(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str = "train",
    num_images: int | None = DEFAULT_NUM_IMAGES,
    method: RangeMethod | None = None,
    engine: str = "openvino",
    tool: str | None = None,
    measure: bool = True,
    on_progress: Progress | None = None,
) -> CalibrationResult:
    """Quantize an exported model to INT8 with the ranges that images show.

    Decoding, NMS and the layers that predict stay in float.

    Args:
        model: float ONNX file with its manifest.
        data: data set in COCO, VOC or YOLO layout.
        out: ONNX file to write.
        split: of the data set.
        num_images: at most so many, taken evenly over the split; None takes all.
        method: of the activations' ranges; where None percentile 99.99 or entropy, whichever agrees better with the
            float model on some of the images, and on ONNX Runtime channels are equalised where that agrees better.
        engine: whose placement rules to follow; other engines read the file too.
        tool: another way to INT8 than our own ranges and placement: "nncf", or "trt-cache", which writes a cache for
            TensorRT's calibrator instead of a model, and measures an emulation.
        measure: hold a part of the images back, and measure mAP before and after on them.
        on_progress: called with a phase, the images done and their number.

    Returns:
        A `CalibrationResult`.

    Raises:
        InputError: where something given cannot be used; nothing is written.
        MissingDependencyError: where a package is not installed that will be needed.
    """
    target = Path(out)
    if target.suffix != ".onnx":
        raise InputError("--out", expected="a file name that ends in .onnx", got=target.name, fix="rename it")
    check_not_source(target, model)
    check_writable(target)
    report = on_progress or (lambda phase, done, total: None)
    if measure:
        _check_can_measure(tool, engine)
    float_model = load_float_model(model)
    chosen = choose_images(load_dataset(Path(data), split), num_images)
    calibration, held_back = divide_images(without_copies(chosen.dataset), measure)
    inputs = MethodInputs(
        model=float_model,
        batches=lambda: network_inputs(float_model.manifest, calibration.samples, float_model.proto),
        num_images=len(calibration.samples),
        engine=engine,
        on_progress=lambda done: report("calibrating", done, len(calibration.samples)),
    )
    made = quantize_plainly(inputs, calibration, method, report) if tool is None else run_tool(tool, inputs)
    record = CalibrationRecord(
        method=f"{made.description} for {engine}",
        data_sha256=content_sha256(calibration),
        num_images=len(calibration.samples),
        layers_in_float=made.layers_in_float,
    )
    manifest = replace(
        float_model.manifest,
        precision="int8",
        calibration=record,
        verification=None,
        boxwright_version=boxwright.__version__,
    )
    to_measure = made.emulation if made.proto is None else made.proto
    if held_back is not None and to_measure is not None:
        record = measure_on_held_back(
            model, to_measure, manifest, held_back, engine, report, is_emulation=made.proto is None
        )
        manifest = replace(manifest, calibration=record)
    path = target
    if made.proto is not None:
        write_model(made.proto, manifest, target)
    if made.write_extra is not None:
        path = made.write_extra(target)
    return CalibrationResult(
        path=path,
        manifest=manifest,
        num_layers=len(float_model.layers),
        num_quantized=None if made.proto is None else len(float_model.layers) - len(made.layers_in_float),
        warnings=tuple(_warnings(chosen, len(calibration.samples), record, measure=measure)),
        unreadable=tuple(f"{path}: {reason}" for path, reason in chosen.unreadable),
    )


def _check_can_measure(tool: str | None, engine: str) -> None:
    """Raise now what would be raised after minutes of work."""
    needed_for = "measuring what INT8 costs (--no-measure does without)"
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("faster-coco-eval", extra="int8", needed_for=needed_for) from error
    if tool == "nncf" and engine == "openvino" and engine_to_measure(engine) != engine:
        # Our own form for OpenVINO runs on ONNX Runtime too, but not NNCF's.
        raise MissingDependencyError("openvino", extra="openvino", needed_for=needed_for)


def _warnings(
    chosen: CalibrationImages, num_calibration: int, record: CalibrationRecord, *, measure: bool
) -> Iterator[str]:
    yield from image_warnings(chosen, num_calibration)
    if record.map_before is not None:
        yield from float_model_warnings(record.map_before)
    if measure and record.map_after is None:
        yield "mAP before and after was not measured: too few labelled images to hold some back"
