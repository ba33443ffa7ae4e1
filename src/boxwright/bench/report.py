"""The folder that a benchmark writes: results.json, report.md, pareto.png and report.html."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from boxwright.bench.report_markdown import to_markdown
from boxwright.bench.results_file import save_report
from boxwright.core.files import check_writable, write_text

if TYPE_CHECKING:
    from boxwright.bench.run import BenchRun

RESULTS_FILE, MARKDOWN_FILE, PLOT_FILE, PAGE_FILE = "results.json", "report.md", "pareto.png", "report.html"


class ReportFiles(NamedTuple):
    """Where the parts of a report are."""

    results: Path
    markdown: Path
    plot: Path | None  # None where nothing was measured
    page: Path


def check_report_writable(directory: Path) -> None:
    """Raise `OutputError` now where a report could not be written to that folder later."""
    check_writable(directory / RESULTS_FILE)


def write_report(run: BenchRun, directory: Path) -> ReportFiles:
    """Write the report of a benchmark, each file whole or not at all, the results first.

    Args:
        run: the benchmark.
        directory: made where it is not there.

    Raises:
        OutputError: where a file cannot be written.
        MissingDependencyError: where the extra `bench` is not installed.
    """
    from boxwright.bench.report_html import to_html
    from boxwright.bench.report_plot import draw_pareto, is_drawable

    save_report(run.report, directory / RESULTS_FILE)
    plot = directory / PLOT_FILE if is_drawable(run.report) else None
    if plot is not None:
        draw_pareto(run.report, plot)
    write_text(directory / MARKDOWN_FILE, to_markdown(run.report, plot_file=None if plot is None else PLOT_FILE))
    write_text(directory / PAGE_FILE, to_html(run))
    return ReportFiles(directory / RESULTS_FILE, directory / MARKDOWN_FILE, plot, directory / PAGE_FILE)
