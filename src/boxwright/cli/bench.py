"""`boxwright bench`: speed and accuracy of model files on this machine, measured alike and side by side.

`boxwright bench compare OLD NEW` compares two results files, and `--scenario` lets MLPerf's LoadGen ask.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boxwright.cli._bench_compare import compare_results
from boxwright.cli._bench_parsing import parse_cores, parse_names, parse_points, parse_precisions, parse_share
from boxwright.cli._measured_data import load_measured
from boxwright.cli._options import (
    ClassesOption,
    DataIfAnyOption,
    DeviceOption,
    IouOption,
    JsonOption,
    LabelsOption,
    NumThreadsOption,
    PreprocessOption,
    SplitOption,
    VariantOption,
    parse_image_size,
)
from boxwright.cli._output import print_json, stderr_console, stdout_console
from boxwright.core.errors import AnswerIsNoError, InputError

if TYPE_CHECKING:
    from boxwright.bench.results import BenchReport, Settings
    from boxwright.bench.run import BenchRun
    from boxwright.cli._bench_artifacts import SourceOptions
    from boxwright.cli._bench_plan import Matrix
    from boxwright.data import Dataset

_COMPARE = "compare"
_MOST_NAMED_FILES = 5


def bench(
    models: Annotated[
        list[Path],
        typer.Argument(
            help="Exported models or checkpoints; or the word compare and two results files.", metavar="MODEL..."
        ),
    ],
    data: DataIfAnyOption = None,
    split: SplitOption = "val",
    classes: ClassesOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the report.")] = None,
    backends: Annotated[
        str | None, typer.Option("--backends", "--backend", help="Engines, with commas; by default the file decides.")
    ] = None,
    precisions: Annotated[
        str, typer.Option("--precisions", "--precision", help="fp32, bf16, fp16, int8, with commas.")
    ] = "fp32",
    imgsz: Annotated[str | None, typer.Option("--imgsz", help="Input sizes of checkpoints, with commas.")] = None,
    device: DeviceOption = None,
    conf: Annotated[
        float, typer.Option("--conf", min=0.0, max=1.0, help="Score threshold of the latency; mAP's is 0.001.")
    ] = 0.25,
    iou: IouOption = 0.7,
    num_threads: NumThreadsOption = None,
    cores: Annotated[str | None, typer.Option("--cores", help="Pin to these CPU cores, such as 0,1 or 0-3.")] = None,
    throughput: Annotated[
        bool, typer.Option("--throughput/--no-throughput", help="Search the best batch and number of streams.")
    ] = True,
    streams: Annotated[str | None, typer.Option("--streams", help="Numbers of streams to try, with commas.")] = None,
    launches: Annotated[int | None, typer.Option("--launches", min=1, help="Processes of each candidate.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds in a launch, at most.")] = 20,
    time_limit: Annotated[float, typer.Option("--time-limit", min=1.0, help="Seconds a candidate may take.")] = 900.0,
    accuracy: Annotated[bool, typer.Option("--accuracy/--no-accuracy", help="Measure mAP.")] = True,
    variant: VariantOption = None,
    head: Annotated[str | None, typer.Option("--head", help="Head of a foreign ONNX file: yolox, yolov8 ...")] = None,
    labels: LabelsOption = None,
    preprocess: PreprocessOption = None,
    calibration_split: Annotated[
        str, typer.Option("--calibration-split", help="Images for INT8 files that are made on the way.")
    ] = "train",
    scenario: Annotated[
        str | None, typer.Option("--scenario", help="LoadGen: single-stream, multi-stream, offline or server.")
    ] = None,
    duration: Annotated[float, typer.Option("--duration", min=0.1, help="Seconds of a LoadGen scenario.")] = 60.0,
    target_qps: Annotated[float | None, typer.Option("--target-qps", help="Images a second of server.")] = None,
    target_latency: Annotated[float | None, typer.Option("--target-latency", help="Milliseconds of server.")] = None,
    max_slowdown: Annotated[str, typer.Option("--max-slowdown", help="compare: allowed, such as 5%.")] = "5%",
    max_drop: Annotated[str, typer.Option("--max-drop", help="compare: allowed loss of AP, in points of 100.")] = "0.3",
    as_json: JsonOption = False,
) -> None:
    """Measure speed and mAP of model files side by side, and report which are worth a choice."""
    if str(models[0]) == _COMPARE:
        share, points = parse_share("--max-slowdown", max_slowdown), parse_points("--max-drop", max_drop)
        compare_results(models[1:], max_slowdown=share, max_drop_points=points, as_json=as_json)
        return
    from boxwright.bench.results import Settings
    from boxwright.cli._bench_artifacts import SourceOptions
    from boxwright.cli._bench_plan import Matrix
    from boxwright.cli._bench_scenario import run_scenario

    defaults, pinned = Settings(), parse_cores(cores)
    stream_counts = _parse_streams(streams)
    settings = Settings(
        latency_conf=conf,
        iou=iou,
        # Engines count the machine's cores, not those that they may use.
        num_threads=num_threads or len(pinned),
        cores=pinned,
        min_launches=launches or defaults.min_launches,
        max_launches=launches or defaults.max_launches,
        rounds=rounds,
        time_limit_s=time_limit,
        with_throughput=throughput,
        streams=stream_counts,
        with_accuracy=accuracy,
    )
    matrix = Matrix(
        backends=parse_names(backends),
        precisions=parse_precisions(precisions),
        sizes_hw=tuple(parse_image_size(size) for size in parse_names(imgsz)),
        device=device,
        num_threads=settings.num_threads,
        calibration_split=calibration_split,
    )
    options = SourceOptions(variant=variant, head=head, labels=labels, preprocess=preprocess)
    if data is None:
        raise InputError(
            "--data", expected="a data set to measure on", got="none", fix="pass a COCO, VOC or YOLO folder"
        )
    if scenario is None:
        _run(models, matrix, options, data, load_measured(data, split, classes), settings, out, as_json=as_json)
    else:
        run_scenario(
            scenario,
            models,
            matrix,
            options,
            data,
            load_measured(data, split, classes),
            settings,
            out,
            duration_s=duration,
            target_qps=target_qps,
            target_latency_ms=target_latency,
            as_json=as_json,
        )


def _run(
    models: list[Path],
    matrix: Matrix,
    options: SourceOptions,
    data: Path,
    dataset: Dataset,
    settings: Settings,
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    from boxwright.bench.report import check_report_writable, write_report
    from boxwright.bench.run import run_benchmark
    from boxwright.cli._bench_display import BenchDisplay
    from boxwright.cli._bench_plan import prepare_candidates
    from boxwright.core.codec import to_jsonable

    if out is not None:
        check_report_writable(out)

    def deliver(run: BenchRun) -> None:
        display.stop()
        if as_json:
            print_json(to_jsonable(run.report))
        elif any(row.latency_ms is not None or row.map is not None for row in run.report.results):
            _print_report(run.report)
        if out is not None:
            files = write_report(run, out)
            paths = ", ".join(str(path) for path in files if path)
            stderr_console().print(f"report: {paths}", highlight=False, soft_wrap=True)

    with BenchDisplay() as display:
        candidates = prepare_candidates(models, matrix, options, data, on_note=display.note)
        run = run_benchmark(candidates, dataset, settings=settings, observer=display, deliver=deliver)
    _give_answer(run)


def _parse_streams(text: str | None) -> tuple[int, ...]:
    names = parse_names(text)
    if not all(name.isdecimal() and int(name) > 0 for name in names):
        raise InputError("--streams", expected="numbers such as 1,2,4", got=repr(text), fix="pass such numbers")
    return tuple(int(name) for name in names)


def _print_report(report: BenchReport) -> None:
    from boxwright.bench.report_markdown import summary_sentence
    from boxwright.cli._bench_display import results_table

    console = stdout_console()
    console.print(results_table(report.results))
    for row in report.results:
        if row.status != "measured":
            console.print(f"{row.name}: {row.status}: {row.reason}", highlight=False, markup=False, soft_wrap=True)
    for pair in report.pairs:
        if pair.comparison.verdict == "equal":
            words = f"{pair.first} and {pair.second}: {pair.comparison.in_words()}"
            console.print(words, highlight=False, markup=False, soft_wrap=True)
    for note in report.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(summary_sentence(report).replace("**", ""), highlight=False, markup=False, soft_wrap=True)


def _give_answer(run: BenchRun) -> None:
    """Raise what the exit status should say."""
    report = run.report
    if run.interrupted:
        raise KeyboardInterrupt
    failed = [row for row in report.results if row.status in ("failed", "crashed", "timeout")]
    if not any(row.status == "measured" for row in report.results):
        # Each reason was printed when it was met.
        raise InputError(
            "candidates",
            expected="at least one that can be measured",
            got=f"none of {len(report.results)}",
            fix="mend or replace them, as the lines above say",
        )
    if failed:
        raise AnswerIsNoError("not all were measured: " + "; ".join(f"{row.name}: {row.reason}" for row in failed))
    for row in report.results:
        if row.accuracy is not None and row.accuracy.unreadable:
            unreadable = row.accuracy.unreadable
            files = ", ".join(f"{entry.file} ({entry.reason})" for entry in unreadable[:_MOST_NAMED_FILES])
            raise AnswerIsNoError(
                f"{len(unreadable)} of {report.data.num_images} images could not be read: {files}"
                + (" and others" if len(unreadable) > _MOST_NAMED_FILES else "")
            )
