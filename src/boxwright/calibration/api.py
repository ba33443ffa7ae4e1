"""`calibrate(model, data, out)`: from an exported float ONNX file to an INT8 one, and what that cost in mAP."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

import boxwright
from boxwright.bench.accuracy import evaluate
from boxwright.calibration.candidate import Quantizer, observed_tensors
from boxwright.calibration.float_model import FloatModel, load_float_model
from boxwright.calibration.images import FEWEST_IMAGES, CalibrationImages, choose_images, network_inputs
from boxwright.calibration.placement import rules_for
from boxwright.calibration.ranges import RangeMethod
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.sessions import Tensors
from boxwright.calibration.statistics import collect_statistics
from boxwright.calibration.writing import write_model
from boxwright.core.errors import InputError
from boxwright.core.files import check_not_source, check_writable
from boxwright.core.manifest import CalibrationRecord, Manifest
from boxwright.data import Dataset, load_dataset
from boxwright.data.hashing import content_sha256
from boxwright.runtimes.detector import Detector

DEFAULT_NUM_IMAGES = 128
# Of the images, this part is held back to measure on, at most so many.
_HELD_BACK_PART, _MOST_HELD_BACK = 0.25, 64
_SCORE_THRESHOLD = 0.001
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class CalibrationResult:
    """What was written, and what it cost.

    Attributes:
        path: of the INT8 file.
        manifest: that is inside.
        num_layers: convolutions and matrix products before the raw heads.
        num_quantized: of these, executed in INT8.
        warnings: what the user should know.
        unreadable: images that were passed over, each with the reason.
    """

    path: Path
    manifest: Manifest
    num_layers: int
    num_quantized: int
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
        method: of the activations' ranges; percentile 99.99 where None.
        engine: whose placement rules to follow; other engines read the file too.
        measure: hold a part of the images back, and measure mAP before and after on them.
        on_progress: called with a phase, the images done and their number.

    Returns:
        A `CalibrationResult`.

    Raises:
        InputError: where something given cannot be used; nothing is written.
    """
    target = Path(out)
    if target.suffix != ".onnx":
        raise InputError("--out", expected="a file name that ends in .onnx", got=target.name, fix="rename it")
    check_not_source(target, model)
    check_writable(target)
    report = on_progress or (lambda phase, done, total: None)
    float_model = load_float_model(model)
    chosen = choose_images(load_dataset(Path(data), split), num_images)
    calibration, held_back = _divide(chosen.dataset, measure)
    recipe = Recipe(rules=rules_for(engine), method=method or RangeMethod())
    statistics = collect_statistics(
        float_model,
        _batches(float_model, calibration),
        tensors=observed_tensors(float_model, fused=recipe.rules.style == "fused"),
        on_progress=lambda done: report("calibrating", done, len(calibration.samples)),
    )
    quantizer = Quantizer(float_model, statistics)
    proto = quantizer.build(recipe)
    record = CalibrationRecord(
        method=f"{recipe.describe()} for {engine}",
        data_sha256=content_sha256(calibration),
        num_images=len(calibration.samples),
        layers_in_float=tuple(layer.name for layer in float_model.layers if layer not in quantizer.quantized(recipe)),
    )
    manifest = replace(
        float_model.manifest,
        precision="int8",
        calibration=record,
        verification=None,
        boxwright_version=boxwright.__version__,
    )
    if held_back is not None:
        record = _measure(model, proto, manifest, held_back, engine, report)
        manifest = replace(manifest, calibration=record)
    write_model(proto, manifest, target)
    return CalibrationResult(
        path=target,
        manifest=manifest,
        num_layers=len(float_model.layers),
        num_quantized=len(quantizer.quantized(recipe)),
        warnings=_warnings(chosen, len(calibration.samples), measure and held_back is None),
        unreadable=tuple(f"{path}: {reason}" for path, reason in chosen.unreadable),
    )


def _divide(dataset: Dataset, measure: bool) -> tuple[Dataset, Dataset | None]:
    """The images to calibrate on, and those held back: every few, so that both see the whole data set."""
    count = min(int(len(dataset.samples) * _HELD_BACK_PART), _MOST_HELD_BACK) if measure else 0
    if count < 2:
        return dataset, None
    step = len(dataset.samples) / count
    positions = {int(index * step + step / 2) for index in range(count)}
    held_back = [sample for index, sample in enumerate(dataset.samples) if index in positions]
    kept = [sample for index, sample in enumerate(dataset.samples) if index not in positions]
    if not any(len(sample) for sample in held_back):
        return dataset, None
    return dataset.with_samples(kept), dataset.with_samples(held_back)


def _batches(model: FloatModel, dataset: Dataset) -> Iterator[tuple[Tensors, int, int]]:
    for inputs, count in network_inputs(model.manifest, dataset.samples, model.proto):
        yield inputs, count, 0


def _measure(
    model: str | os.PathLike[str],
    proto: onnx.ModelProto,
    manifest: Manifest,
    held_back: Dataset,
    engine: str,
    report: Progress,
) -> CalibrationRecord:
    """The calibration record with the AP of the float and the INT8 model on the same images, on one engine."""
    assert manifest.calibration is not None
    total = len(held_back.samples)
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "int8.onnx"
        write_model(proto, manifest, candidate)
        results = []
        for phase, path in (("measuring the float model", Path(model)), ("measuring INT8", candidate)):
            with Detector(path, backend=_engine_to_measure(engine), conf=_SCORE_THRESHOLD) as detector:
                report(phase, 0, total)
                results.append(evaluate(detector, held_back).map)
                report(phase, total, total)
    return replace(
        manifest.calibration,
        map_before=results[0],
        map_after=results[1],
        map_images=f"{total} held-back images of {held_back.name} {held_back.split}, on {_engine_to_measure(engine)}",
    )


def _engine_to_measure(engine: str) -> str:
    """The engine itself where it is installed here, else ONNX Runtime."""
    from boxwright.runtimes.backend import backend_module, backend_names

    is_there = engine in backend_names() and backend_module(engine).available() is None
    return engine if is_there else "onnxruntime"


def _warnings(chosen: CalibrationImages, num_calibration: int, could_not_measure: bool) -> tuple[str, ...]:
    result = []
    if num_calibration < FEWEST_IMAGES:
        result.append(
            f"{num_calibration} images are few: ranges then hang on what these happen to show; "
            f"give at least {FEWEST_IMAGES}"
        )
    if chosen.blank:
        result.append(f"{len(chosen.blank)} images show one colour alone, for one {chosen.blank[0].name}")
    if could_not_measure:
        result.append("mAP before and after was not measured: too few labelled images to hold some back")
    return tuple(result)
