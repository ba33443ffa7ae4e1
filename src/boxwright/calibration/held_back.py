"""Images that are held back of a calibration, and what INT8 costs on them: mAP and time before and after."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx

from boxwright.bench.accuracy import evaluate
from boxwright.calibration.writing import write_model
from boxwright.core.manifest import CalibrationRecord, Manifest
from boxwright.data import Dataset
from boxwright.data.hashing import content_sha256
from boxwright.runtimes.detector import Detector

Progress = Callable[[str, int, int], None]
# Of the images, this part is held back to measure on, at most so many.
_HELD_BACK_PART, _MOST_HELD_BACK = 0.25, 64
_SCORE_THRESHOLD = 0.001


def divide_images(dataset: Dataset, measure: bool) -> tuple[Dataset, Dataset | None]:
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


def measure_on_held_back(
    model: str | os.PathLike[str],
    proto: onnx.ModelProto,
    manifest: Manifest,
    held_back: Dataset,
    engine: str,
    report: Progress,
    *,
    is_emulation: bool = False,
) -> CalibrationRecord:
    """The calibration record with the AP of the float and the INT8 model on the same images, on one engine.

    Args:
        model: the float model's file.
        proto: the INT8 model.
        manifest: of that, with its record.
        held_back: images to measure on.
        engine: to measure on where it is installed, else on ONNX Runtime.
        report: called with a phase, the images done and their number.
        is_emulation: whether `proto` stands for what another engine will make, so that ONNX Runtime runs it.
    """
    assert manifest.calibration is not None
    total = len(held_back.samples)
    name = "onnxruntime" if is_emulation else engine_to_measure(engine)
    where = f"emulated on {name} with every layer in INT8" if is_emulation else f"on {name}"
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "int8.onnx"
        write_model(proto, manifest, candidate)
        results = []
        for phase, path in (("measuring the float model", Path(model)), ("measuring INT8", candidate)):
            with Detector(path, backend=name, conf=_SCORE_THRESHOLD) as detector:
                report(phase, 0, total)
                results.append(evaluate(detector, held_back).map)
                report(phase, total, total)
    return replace(
        manifest.calibration,
        map_before=results[0],
        map_after=results[1],
        map_images=f"{total} held-back images of {held_back.name} {held_back.split}, {where}",
        map_images_sha256=content_sha256(held_back),
    )


def engine_to_measure(engine: str) -> str:
    """The engine itself where it is installed here, else ONNX Runtime."""
    from boxwright.runtimes.backend import backend_module, backend_names

    is_there = engine in backend_names() and backend_module(engine).available() is None
    return engine if is_there else "onnxruntime"
