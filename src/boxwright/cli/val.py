"""`boxwright val`: the accuracy of a model file on a data set."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from boxwright.cli._measured_data import load_measured
from boxwright.cli._opening import CheckpointOptions, open_detector
from boxwright.cli._options import (
    BackendOption,
    ClassesOption,
    ConfOption,
    DataOption,
    DeviceOption,
    ImageSizeOption,
    IouOption,
    JsonOption,
    LabelsOption,
    NumThreadsOption,
    PreprocessOption,
    RunPrecisionOption,
    SplitOption,
    VariantOption,
    parse_image_size,
)
from boxwright.cli._output import print_json, progress_bar, stdout_console
from boxwright.core.errors import AnswerIsNoError

if TYPE_CHECKING:
    from boxwright.bench.accuracy import AccuracyResult
    from boxwright.data import Dataset
    from boxwright.runtimes.detector import Detector

_MOST_NAMED_FILES = 5


def val(
    model: Annotated[Path, typer.Argument(help="Exported model, or a training checkpoint to run on PyTorch.")],
    data: DataOption,
    split: SplitOption = "val",
    classes: ClassesOption = None,
    conf: ConfOption = 0.001,
    iou: IouOption = 0.7,
    backend: BackendOption = None,
    device: DeviceOption = None,
    precision: RunPrecisionOption = None,
    num_threads: NumThreadsOption = None,
    variant: VariantOption = None,
    labels: LabelsOption = None,
    preprocess: PreprocessOption = None,
    imgsz: ImageSizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the mAP of a model file on a data set."""
    from boxwright.bench.accuracy import evaluate

    checkpoint = CheckpointOptions(
        variant=variant,
        labels=labels,
        preprocess=preprocess,
        size_hw=None if imgsz is None else parse_image_size(imgsz),
    )
    dataset = load_measured(data, split, classes)
    with (
        open_detector(
            model,
            backend=backend,
            device=device,
            precision=precision,
            num_threads=num_threads or 0,
            conf=conf,
            iou=iou,
            checkpoint=checkpoint,
        ) as detector,
        progress_bar() as progress,
    ):
        task = progress.add_task("val", total=len(dataset))
        started = time.perf_counter()
        result = evaluate(detector, dataset, on_progress=lambda done, _: progress.update(task, completed=done))
        report = _describe(str(model), detector, dataset, result, seconds=time.perf_counter() - started)
    if as_json:
        print_json(report)
    else:
        _print_table(report, result)
    if result.unreadable:
        raise AnswerIsNoError(_name_unreadable(result, len(dataset)))


def _describe(
    model: str, detector: Detector, dataset: Dataset, result: AccuracyResult, *, seconds: float
) -> dict[str, Any]:
    """What `--json` prints: the settings, then the numbers of `AccuracyResult`."""
    import dataclasses

    return {
        "model": model,
        "backend": detector.backend.name,
        "device": detector.backend.device,
        "precision": detector.precision,
        "data": str(dataset.root),
        "split": dataset.split,
        "conf": detector.score_threshold,
        "iou": detector.iou_threshold,
        "max_det": detector.manifest.decode.max_detections,
        **dataclasses.asdict(result),
        "annotation_problems": len(dataset.problems),
        "seconds": round(seconds, 3),
    }


def _print_table(report: dict[str, Any], result: AccuracyResult) -> None:
    from rich.table import Table

    console = stdout_console()
    console.print(
        f"{report['model']} on {report['backend']} ({report['device']}, {report['precision']}), "
        f"{report['data']} {report['split']}: {result.num_images} images, {result.num_boxes} boxes, "
        f"{result.num_detections} detections at conf {report['conf']:g}, IoU {report['iou']:g}"
    )
    table = Table("COCO", "AP", "AP50", "AP75", "small", "medium", "large", "AR")
    numbers = "map map50 map75 map_small map_medium map_large ar".split()
    table.add_row("all", *(_shown(getattr(result, name)) for name in numbers))
    console.print(table)
    console.print(
        f"PASCAL VOC AP at IoU 0.5: {_shown(result.voc_ap50_area)} by area, "
        f"{_shown(result.voc_ap50_11point)} by eleven points"
    )
    classes = Table("class", "boxes", "AP", "AP50")
    for row in result.per_class:
        if row.num_boxes > 0:
            classes.add_row(row.name, str(row.num_boxes), _shown(row.map), _shown(row.map50))
    console.print(classes)
    if result.ignored_classes:
        console.print(f"not in the data set, and left out: {', '.join(result.ignored_classes)}")
    if report["annotation_problems"]:
        console.print(f"{report['annotation_problems']} problems in the annotations; see: boxwright doctor --data")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _name_unreadable(result: AccuracyResult, num_images: int) -> str:
    named = "; ".join(f"{entry.file} ({entry.reason})" for entry in result.unreadable[:_MOST_NAMED_FILES])
    more = len(result.unreadable) - _MOST_NAMED_FILES
    return f"{len(result.unreadable)} of {num_images} images could not be read and are left out: {named}" + (
        f" and {more} more" if more > 0 else ""
    )
