"""`boxwright calibrate`: an exported float model in INT8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from boxwright.cli._calibration_search import SearchWishes, run_search, shown_progress
from boxwright.cli._options import DataOption, JsonOption, NumThreadsOption
from boxwright.cli._output import print_json, stderr_console, stdout_console
from boxwright.core.errors import AnswerIsNoError, InputError, MissingDependencyError

if TYPE_CHECKING:
    from boxwright.calibration import CalibrationResult

Method = Literal["plain", "search", "nncf", "trt-cache"]
Ranges = Literal["minmax", "percentile", "entropy", "mse"]


def calibrate(
    model: Annotated[Path, typer.Argument(help="Exported float ONNX file.")],
    data: DataOption,
    out: Annotated[
        Path | None, typer.Option("--out", help="ONNX file to write; <model>_int8.onnx if not given.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Which part of the data set to calibrate on.")] = "train",
    num_images: Annotated[int, typer.Option("--num-images", min=1, help="At most so many images.")] = 128,
    method: Annotated[
        Method | None,
        typer.Option("--method", help="plain; search with --max-drop; or another tool's."),
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", help="Budget in points of mAP (0.5): search what keeps within it.")
    ] = None,
    engines: Annotated[
        str | None, typer.Option("--engines", help="openvino,onnxruntime,tensorrt: search for each of these.")
    ] = None,
    val_data: Annotated[
        Path | None, typer.Option("--val-data", help="Other images to choose on; else some are held back in turn.")
    ] = None,
    val_split: Annotated[
        str | None, typer.Option("--val-split", help="Which part of --val-data; val if not given.")
    ] = None,
    time_limit: Annotated[float | None, typer.Option("--time-limit", help="Minutes that the search may take.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Use what an earlier search on the same things measured.")
    ] = True,
    allow_worse: Annotated[
        bool, typer.Option("--allow-worse", help="Write the best form even where it is over the budget.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="Folder for the search's report; <out>_report if not given.")
    ] = None,
    ranges: Annotated[
        Ranges | None, typer.Option("--ranges", help="How ranges are chosen; by result if not given.")
    ] = None,
    percentile: Annotated[
        float | None, typer.Option("--percentile", help="Of the magnitudes that stay inside; 99.99 if not given.")
    ] = None,
    engine: Annotated[
        Literal["openvino", "onnxruntime", "tensorrt"] | None,
        typer.Option("--engine", help="Whose placement rules to follow; openvino if not given."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure mAP before and after on held-back images.")
    ] = True,
    num_threads: NumThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Quantize an exported model to INT8 and say what it cost."""
    target = out or model.with_name(f"{model.stem}_int8.onnx")
    _check_together(method, max_drop, measure, {"--ranges": ranges, "--percentile": percentile, "--engine": engine})
    _check_percentile(ranges, percentile)
    if max_drop is not None and method in (None, "search"):
        _check_val_split(val_data, val_split)
        run_search(
            SearchWishes(
                model=model,
                data=data,
                out=target,
                max_drop=max_drop,
                split=split,
                num_images=num_images,
                engines=tuple(name.strip() for name in ("openvino" if engines is None else engines).split(",")),
                val_data=val_data,
                val_split="val" if val_split is None else val_split,
                time_limit=time_limit,
                resume=resume,
                allow_worse=allow_worse,
                report=report or target.with_name(f"{target.stem}_report"),
                num_threads=num_threads or 0,
            ),
            as_json=as_json,
        )
        return
    _check_without_budget(
        {
            "--engines": engines,
            "--val-data": val_data,
            "--val-split": val_split,
            "--time-limit": time_limit,
            "--report": report,
            "--num-threads": num_threads,
            "--allow-worse": allow_worse or None,
            "--no-resume": None if resume else True,
        }
    )
    result = _calibrate(
        model,
        data,
        target,
        split=split,
        num_images=num_images,
        range_kind=ranges if percentile is None else "percentile",
        percentile=99.99 if percentile is None else percentile,
        engine=engine or ("tensorrt" if method == "trt-cache" else "openvino"),
        tool=method if method in ("nncf", "trt-cache") else None,
        measure=measure,
    )
    for warning in result.warnings:
        stderr_console().print(f"warning: {warning}", highlight=False, markup=False)
    if as_json:
        print_json(_document(result))
    else:
        _print(result)
    if result.unreadable:
        raise AnswerIsNoError(f"{len(result.unreadable)} images could not be read: {result.unreadable[0]}")


def _check_together(
    method: Method | None, max_drop: float | None, measure: bool, for_plain: dict[str, object | None]
) -> None:
    """Raise `InputError` for options that do not go together: what is given is used or refused, never ignored."""
    if method == "search" and max_drop is None:
        raise InputError("--method search", expected="a budget", got="none", fix="pass --max-drop 0.5, for one")
    given = [name for name, value in for_plain.items() if value is not None and name != "--engine"]
    if method in ("nncf", "trt-cache") and given:
        raise InputError(given[0], expected=f"no such wish beside --method {method}", got="one", fix="leave it out")
    if max_drop is None:
        return
    if method not in (None, "search"):
        raise InputError(
            "--max-drop", expected="the method search", got=f"--method {method}", fix="leave one of the two out"
        )
    given = [name for name, value in for_plain.items() if value is not None] + ([] if measure else ["--no-measure"])
    if given:
        fix = "pass --engines instead" if given[0] == "--engine" else "leave it out"
        raise InputError(
            given[0], expected="no such wish beside --max-drop, which searches by measuring", got="one", fix=fix
        )


def _check_percentile(ranges: Ranges | None, percentile: float | None) -> None:
    if percentile is not None and ranges not in (None, "percentile"):
        raise InputError("--percentile", expected="--ranges percentile", got=f"--ranges {ranges}", fix="leave it out")


def _check_val_split(val_data: Path | None, val_split: str | None) -> None:
    if val_split is not None and val_data is None:
        raise InputError(
            "--val-split",
            expected="--val-data beside it",
            got="none",
            fix="pass --val-data too, which may be the folder of --data",
        )


def _check_without_budget(for_search: dict[str, object | None]) -> None:
    given = [name for name, value in for_search.items() if value is not None]
    if given:
        raise InputError(given[0], expected="--max-drop beside it", got="none", fix="pass --max-drop 0.5, for one")


def _calibrate(
    model: Path,
    data: Path,
    target: Path,
    *,
    split: str,
    num_images: int,
    range_kind: Ranges | None,
    percentile: float,
    engine: str,
    tool: str | None,
    measure: bool,
) -> CalibrationResult:
    try:
        from boxwright.calibration import calibrate as run_calibration
        from boxwright.calibration.ranges import RangeMethod
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "onnx", extra="int8", needed_for="boxwright calibrate") from error
    with shown_progress() as show:
        return run_calibration(
            model,
            data,
            target,
            split=split,
            num_images=num_images,
            method=None if range_kind is None else RangeMethod(kind=range_kind, percentile=percentile),
            engine=engine,
            tool=tool,
            measure=measure,
            on_progress=show,
        )


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
        record.method
        if result.num_quantized is None
        else f"{result.num_quantized} of {result.num_layers} layers in INT8: {record.method}",
    ]
    if record.map_before is not None and record.map_after is not None:
        drop = 100 * (record.map_before - record.map_after)
        lines.append(
            f"mAP {record.map_before:.4f} before, {record.map_after:.4f} after: {drop:+.1f} points lost "
            f"({record.map_images})"
        )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
