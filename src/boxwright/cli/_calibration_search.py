"""`boxwright calibrate --max-drop`: the search, its progress, and what it found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.cli._output import print_json, progress_bar, stderr_console, stdout_console
from boxwright.core.errors import AnswerIsNoError, MissingDependencyError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from boxwright.calibration.budget_calibration import BudgetResult
    from boxwright.calibration.budget_files import BudgetFile


@dataclass(frozen=True, kw_only=True)
class SearchWishes:
    """What the command line asked for; see `boxwright.calibration.budget_calibration.calibrate_to_budget`."""

    model: Path
    data: Path
    out: Path
    max_drop: float
    split: str
    num_images: int
    engines: tuple[str, ...]
    val_data: Path | None
    val_split: str
    time_limit: float | None
    resume: bool
    allow_worse: bool
    report: Path
    num_threads: int


def run_search(wishes: SearchWishes, *, as_json: bool) -> None:
    """Search, write what holds the budget and the report of it, and say what came of it.

    Raises:
        AnswerIsNoError: where the budget cannot be met, or images could not be read.
    """
    try:
        from boxwright.calibration.budget_calibration import BudgetError, calibrate_to_budget
        from boxwright.calibration.budget_files import possible_paths
        from boxwright.calibration.report import check_report_writable, report_document, write_report
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "onnx", extra="int8", needed_for="boxwright calibrate") from error
    check_report_writable(wishes.report, possible_paths(wishes.out, wishes.engines))
    failure: BudgetError | None = None
    with shown_progress() as show:
        try:
            result = calibrate_to_budget(
                wishes.model,
                wishes.data,
                wishes.out,
                max_drop=wishes.max_drop,
                split=wishes.split,
                val_data=wishes.val_data,
                val_split=wishes.val_split,
                num_images=wishes.num_images,
                engines=wishes.engines,
                time_limit_minutes=wishes.time_limit,
                resume=wishes.resume,
                allow_worse=wishes.allow_worse,
                num_threads=wishes.num_threads,
                on_progress=show,
            )
        except BudgetError as error:
            failure, result = error, error.result
    if result.files:
        try:
            write_report(result, wishes.report)
        except MissingDependencyError as error:  # the picture alone is missing
            stderr_console().print(f"warning: {error}", highlight=False, markup=False, soft_wrap=True)
    for warning in result.warnings:
        stderr_console().print(f"warning: {warning}", highlight=False, markup=False, soft_wrap=True)
    if as_json:
        print_json(report_document(result))
    else:
        _print(result, wishes.report)
    if failure is not None:
        raise failure
    if result.unreadable:
        raise AnswerIsNoError(f"{len(result.unreadable)} images could not be read: {result.unreadable[0]}")


@contextlib.contextmanager
def shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what shows progress on stderr: a line a phase with what is done of it and the time left."""
    from boxwright.calibration.forecast import WholeSearch

    bar = progress_bar()
    tasks: dict[str, TaskID] = {}

    def show(phase: str, done: int, total: int) -> None:
        bar.start()  # only now, so that an error before the work is one line alone
        if phase not in tasks:
            tasks[phase] = bar.add_task(phase, total=total)
        # The whole search counts seconds, and what is left of them changes: no speed tells when it will end.
        seconds_left = total - done if phase == WholeSearch.PHASE else None
        bar.update(tasks[phase], completed=done, total=total, seconds_left=seconds_left)

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


def _print(result: BudgetResult, report: Path) -> None:
    console = stdout_console()
    lines = [line for file in result.files for line in _lines_of(file)]
    lines += result.advice
    if result.files:
        lines.append(f"report: {report}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _lines_of(file: BudgetFile) -> list[str]:
    record, difference = file.manifest.calibration, file.trial.evaluation.difference
    assert record is not None and difference is not None
    shares = ", ".join(f"{100 * share:.0f} % on {engine}" for engine, share in file.int8_share.items())
    return [
        f"{file.path}  {file.path.stat().st_size / 1e6:.1f} MB, for {', '.join(file.engines)}",
        f"  {file.trial.variant.name}; of the multiplications in INT8: {shares or 'unknown'}",
        f"  mAP {difference.map_before:.4f} before, {difference.map_after:.4f} after: "
        f"{100 * difference.drop:+.2f} points lost ({record.map_images})",
    ]
