"""`boxwright calibrate`: an exported float model in INT8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from boxwright.cli._options import DataOption, JsonOption
from boxwright.cli._output import print_json, progress_bar, stderr_console, stdout_console
from boxwright.core.errors import AnswerIsNoError, MissingDependencyError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from boxwright.calibration import CalibrationResult


def calibrate(
    model: Annotated[Path, typer.Argument(help="Exported float ONNX file.")],
    data: DataOption,
    out: Annotated[
        Path | None, typer.Option("--out", help="ONNX file to write; <model>_int8.onnx if not given.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Which part of the data set to calibrate on.")] = "train",
    num_images: Annotated[int, typer.Option("--num-images", min=1, help="At most so many images.")] = 128,
    method: Annotated[
        Literal["minmax", "percentile", "entropy", "mse"], typer.Option("--method", help="How ranges are chosen.")
    ] = "percentile",
    percentile: Annotated[float, typer.Option("--percentile", help="Of the magnitudes that stay inside.")] = 99.99,
    engine: Annotated[
        Literal["openvino", "onnxruntime", "tensorrt"],
        typer.Option("--engine", help="Whose placement rules to follow."),
    ] = "openvino",
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure mAP before and after on held-back images.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Quantize an exported model to INT8 and say what it cost."""
    try:
        from boxwright.calibration import calibrate as run_calibration
        from boxwright.calibration.ranges import RangeMethod
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "onnx", extra="int8", needed_for="boxwright calibrate") from error
    target = out or model.with_name(f"{model.stem}_int8.onnx")
    bar = progress_bar()
    tasks: dict[str, TaskID] = {}

    def show(phase: str, done: int, total: int) -> None:
        bar.start()  # only now, so that an error before the work is one line alone
        if phase not in tasks:
            tasks[phase] = bar.add_task(phase, total=total)
        bar.update(tasks[phase], completed=done)

    try:
        result = run_calibration(
            model,
            data,
            target,
            split=split,
            num_images=num_images,
            method=RangeMethod(kind=method, percentile=percentile),
            engine=engine,
            measure=measure,
            on_progress=show,
        )
    finally:
        if bar.live.is_started:
            bar.stop()
    for warning in result.warnings:
        stderr_console().print(f"warning: {warning}", highlight=False, markup=False)
    if as_json:
        print_json(_document(result))
    else:
        _print(result)
    if result.unreadable:
        raise AnswerIsNoError(f"{len(result.unreadable)} images could not be read: {result.unreadable[0]}")


def _document(result: CalibrationResult) -> dict[str, object]:
    record = result.manifest.calibration
    assert record is not None
    return {
        "path": result.path,
        "method": record.method,
        "num_images": record.num_images,
        "num_layers": result.num_layers,
        "num_quantized": result.num_quantized,
        "layers_in_float": record.layers_in_float,
        "map_before": record.map_before,
        "map_after": record.map_after,
        "map_images": record.map_images,
        "data_sha256": record.data_sha256,
        "warnings": result.warnings,
        "unreadable": result.unreadable,
    }


def _print(result: CalibrationResult) -> None:
    record = result.manifest.calibration
    assert record is not None
    console = stdout_console()
    lines = [
        f"{result.path}  {result.path.stat().st_size / 1e6:.1f} MB",
        f"{result.num_quantized} of {result.num_layers} layers in INT8: {record.method}",
    ]
    if record.map_before is not None and record.map_after is not None:
        drop = 100 * (record.map_before - record.map_after)
        lines.append(
            f"mAP {record.map_before:.4f} before, {record.map_after:.4f} after: {drop:+.1f} points lost "
            f"({record.map_images})"
        )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
