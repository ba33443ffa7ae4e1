"""`boxwright bench compare OLD NEW`: what moved between two results files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.cli._output import print_json, stdout_console
from boxwright.core.errors import AnswerIsNoError, InputError

if TYPE_CHECKING:
    from rich.table import Table

    from boxwright.bench.compare import Movement, ReportComparison


def compare_results(paths: list[Path], *, max_slowdown: float, max_drop_points: float, as_json: bool) -> None:
    """Print what moved.

    Args:
        paths: the old and the new results file.
        max_slowdown: share of the old latency that is allowed.
        max_drop_points: AP that may be lost, in points of 100.
        as_json: whether to print JSON.

    Raises:
        AnswerIsNoError: where something became worse than is allowed, beyond the noise.
        InputError: where there are not two files that compare.
    """
    from boxwright.bench.compare import compare_reports
    from boxwright.bench.results_file import load_report
    from boxwright.core.codec import to_jsonable

    if len(paths) != 2:
        raise InputError(
            "bench compare", expected="two results files, the old and the new", got=str(len(paths)), fix="pass two"
        )
    comparison = compare_reports(
        load_report(paths[0]), load_report(paths[1]), max_slowdown=max_slowdown, max_drop_points=max_drop_points
    )
    if as_json:
        regressions = [movement.name for movement in comparison.regressions]
        print_json({**to_jsonable(comparison), "regressions": regressions})
    else:
        _print(comparison)
    if comparison.regressions:
        raise AnswerIsNoError("worse than allowed: " + "; ".join(map(_in_words, comparison.regressions)))


def _print(comparison: ReportComparison) -> None:
    console = stdout_console()
    console.print(_table(comparison))
    for movement in comparison.movements:
        if movement.reason:
            console.print(f"{movement.name}: {movement.reason}", highlight=False, markup=False, soft_wrap=True)
    for note in comparison.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    if not comparison.regressions:
        allowed = f"{comparison.max_slowdown:.0%} of time or {comparison.max_drop_points:g} points of AP"
        console.print(f"no regression beyond {allowed}", highlight=False)


def _table(comparison: ReportComparison) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("candidate", overflow="fold", min_width=15)  # all fits a terminal of 80 columns
    for heading in ("p50 ms", "change, 95 %", "AP, points"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", min_width=8)
    for row in comparison.movements:
        change = "-"
        if row.latency is not None:
            ratio, low, high = (f"{value - 1:+.1%}" for value in (row.latency.ratio, row.latency.low, row.latency.high))
            change = f"{ratio}\n{low} to {high}"
        table.add_row(
            escape(row.name),
            f"{_shown(row.old_p50_ms, 2)} > {_shown(row.new_p50_ms, 2)}",
            change,
            f"{_shown(row.old_map, 4)} > {_shown(row.new_map, 4)}"
            + ("" if row.map_change_points is None else f"\n{row.map_change_points:+.2f}"),
            "\n".join(row.changes).replace("_", " "),
            style="bold red" if row.is_regression else None,
        )
    return table


def _in_words(movement: Movement) -> str:
    parts = []
    if "slower" in movement.changes and movement.latency is not None:
        parts.append(f"{movement.latency.ratio - 1:.1%} slower")
    if "less_accurate" in movement.changes and movement.map_change_points is not None:
        parts.append(f"{-movement.map_change_points:.2f} points of AP less")
    if "lost" in movement.changes:
        parts.append(f"not measured any more ({movement.reason})")
    return f"{movement.name}: {', '.join(parts)}"


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
