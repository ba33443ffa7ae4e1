"""`boxwright bench`: speed and accuracy of model files on this machine, measured alike and side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boxwright.cli._opening import is_checkpoint
from boxwright.cli._options import DataOption, DeviceOption, IouOption, JsonOption, NumThreadsOption, SplitOption
from boxwright.cli._output import print_json, stderr_console, stdout_console
from boxwright.core.errors import AnswerIsNoError, InputError

if TYPE_CHECKING:
    from boxwright.bench.candidate import Candidate
    from boxwright.bench.results import BenchReport
    from boxwright.bench.run import BenchRun

_PRECISIONS = ("fp32", "bf16", "fp16", "int8")
_CHECKPOINT_OPENER = "boxwright.cli._opening:open_candidate"


def bench(
    models: Annotated[list[Path], typer.Argument(help="Exported models, or training checkpoints to run on PyTorch.")],
    data: DataOption,
    split: SplitOption = "val",
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the report.")] = None,
    backends: Annotated[
        str | None, typer.Option("--backends", "--backend", help="Engines, with commas; by default the file decides.")
    ] = None,
    precisions: Annotated[
        str, typer.Option("--precisions", "--precision", help="fp32, bf16, fp16, int8, with commas.")
    ] = "fp32",
    device: DeviceOption = "cpu",
    iou: IouOption = 0.7,
    conf: Annotated[
        float, typer.Option("--conf", min=0.0, max=1.0, help="Score threshold of the latency; mAP's is 0.001.")
    ] = 0.25,
    num_threads: NumThreadsOption = None,
    cores: Annotated[str | None, typer.Option("--cores", help="Pin to these CPU cores, such as 0,1 or 0-3.")] = None,
    throughput: Annotated[bool, typer.Option("--throughput", help="Search the best batch and streams.")] = False,
    streams: Annotated[str | None, typer.Option("--streams", help="Numbers of streams to try, with commas.")] = None,
    launches: Annotated[int | None, typer.Option("--launches", min=1, help="Processes of each candidate.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds in a launch.")] = 8,
    time_limit: Annotated[float, typer.Option("--time-limit", min=1.0, help="Seconds a candidate may take.")] = 900.0,
    accuracy: Annotated[bool, typer.Option("--accuracy/--no-accuracy", help="Measure mAP.")] = True,
    variant: Annotated[str | None, typer.Option("--model", help="Variant of an author's checkpoint.")] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Its classes: coco, voc, a file, or a,b,c.")] = None,
    preprocess: Annotated[str | None, typer.Option("--preprocess", help="Its preprocessing, by name.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure speed and mAP of model files side by side, and report which are worth a choice."""
    from boxwright.bench.candidate import check_exists
    from boxwright.bench.report import check_report_writable, write_report
    from boxwright.bench.results import Settings
    from boxwright.bench.run import run_benchmark
    from boxwright.cli._bench_display import BenchDisplay
    from boxwright.core.codec import to_jsonable
    from boxwright.data import load_dataset

    defaults = Settings()
    settings = Settings(
        latency_conf=conf,
        iou=iou,
        num_threads=num_threads or 0,
        cores=parse_cores(cores),
        min_launches=launches or defaults.min_launches,
        max_launches=launches or defaults.max_launches,
        rounds=rounds,
        time_limit_s=time_limit,
        with_throughput=throughput or streams is not None,
        streams=_parse_streams(streams),
        with_accuracy=accuracy,
    )
    checkpoint_options = {"variant": variant, "labels": labels, "preprocess": preprocess}
    candidates = expand_candidates(
        models,
        backends=_parse_names(backends),
        precisions=_parse_precisions(precisions),
        device=device,
        num_threads=settings.num_threads,
        checkpoint_options=checkpoint_options,
    )
    check_exists(candidates)
    if out is not None:
        check_report_writable(out)
    dataset = load_dataset(data, split)
    with BenchDisplay() as display:
        run = run_benchmark(candidates, dataset, settings=settings, observer=display)
    if out is not None:
        files = write_report(run, out)
        stderr_console().print("report: " + ", ".join(str(path) for path in files if path), highlight=False)
    if as_json:
        print_json(to_jsonable(run.report))
    else:
        _print_report(run.report)
    _give_answer(run)


def expand_candidates(
    models: list[Path],
    *,
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    device: str,
    num_threads: int,
    checkpoint_options: dict[str, str | None],
) -> list[Candidate]:
    """Every model on every engine in every precision; an INT8 file in its own, a checkpoint on PyTorch alone.

    Args:
        models: paths as they were given.
        backends: engines; empty where each file decides.
        precisions: of files that are not quantized.
        device: to run on.
        num_threads: of the CPU; 0 leaves it to the engine.
        checkpoint_options: keywords of `open_candidate` for checkpoints.
    """
    from boxwright.bench.candidate import FILE_OPENER, Candidate, is_quantized

    candidates = []
    for model in models:
        checkpoint = is_checkpoint(model)
        wanted = ("int8",) if not checkpoint and is_quantized(model) else precisions
        for backend in backends or (None,):
            for precision in wanted:
                candidates.append(
                    Candidate(
                        model=str(model),
                        backend=backend,
                        precision=precision,
                        device=device,
                        num_threads=num_threads,
                        opener=_CHECKPOINT_OPENER if checkpoint else FILE_OPENER,
                        opener_options=dict(checkpoint_options) if checkpoint else {},
                    )
                )
    return candidates


def parse_cores(text: str | None) -> tuple[int, ...]:
    """The cores of `--cores`: numbers and ranges with commas; none for None.

    Raises:
        InputError: where it is not of that form, or this process may not use one of them.
    """
    import os

    if text is None:
        return ()
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    cores: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError("--cores", expected="numbers such as 0,1 or 0-3", got=repr(text), fix="pass such numbers")
        cores.update(range(int(first), int(last or first) + 1))
    if not cores or not cores <= usable:
        known = ", ".join(map(str, sorted(usable))) or "none: this system cannot pin"
        raise InputError("--cores", expected=f"some of {known}", got=repr(text), fix="pass cores that are there")
    return tuple(sorted(cores))


def _parse_names(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _parse_precisions(text: str) -> tuple[str, ...]:
    names = _parse_names(text)
    unknown = [name for name in names if name not in _PRECISIONS]
    if unknown or not names:
        got = ", ".join(map(repr, unknown)) or "none"
        raise InputError("--precisions", expected="some of " + ", ".join(_PRECISIONS), got=got, fix="pass these")
    return names


def _parse_streams(text: str | None) -> tuple[int, ...]:
    names = _parse_names(text)
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
            console.print(f"{row.name}: {row.status}: {row.reason}", highlight=False, markup=False)
    for pair in report.pairs:
        if pair.comparison.verdict == "equal":
            console.print(f"equally fast within the noise: {pair.first} and {pair.second}", highlight=False)
    for note in report.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    console.print(summary_sentence(report).replace("**", ""), highlight=False, markup=False)


def _give_answer(run: BenchRun) -> None:
    """Raise what the exit status should say."""
    report = run.report
    if run.interrupted:
        raise KeyboardInterrupt
    failed = [row for row in report.results if row.status in ("failed", "crashed", "timeout")]
    if not any(row.status == "measured" for row in report.results):
        first = report.results[0]
        raise InputError(
            "candidates", expected="at least one that can be measured", got=f"{first.reason}", fix="mend or replace it"
        )
    if failed:
        raise AnswerIsNoError("not all were measured: " + "; ".join(f"{row.name}: {row.reason}" for row in failed))
    for row in report.results:
        if row.accuracy is not None and row.accuracy.unreadable:
            files = ", ".join(f"{entry.file} ({entry.reason})" for entry in row.accuracy.unreadable[:5])
            raise AnswerIsNoError(
                f"{len(row.accuracy.unreadable)} of {report.data.num_images} images could not be read: {files}"
            )
