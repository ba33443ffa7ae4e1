"""What `boxwright bench` shows while it runs, and its table at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from boxwright.bench.observer import Observer
from boxwright.bench.report_markdown import number, part
from boxwright.bench.results import short_name
from boxwright.cli._output import stderr_console

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import TaskID
    from rich.table import Table

    from boxwright.bench.results import Result

_REDRAW_S = 0.5
_PHASES = {
    "accuracy": "mAP, images",
    "latency": "latency, rounds",
    "throughput": "throughput, candidates",
    "scenario": "LoadGen, candidates",
}


class BenchDisplay(Observer):
    """A table that fills, with progress and the time left, on stderr.

    It is drawn between the measurements alone: no thread of it runs while a candidate is timed.
    """

    def __init__(self) -> None:
        from rich.live import Live
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[activity]}"),
            auto_refresh=False,
        )
        self._tasks: dict[str, TaskID] = {}
        self._results: Sequence[Result] = ()
        self._drawn = 0.0
        self._console = stderr_console()
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )

    def __enter__(self) -> BenchDisplay:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Clear what is drawn; notes are still printed."""
        self._live.stop()

    def begin(self, phase: str, total: int) -> None:
        """Show another bar, or change what is to be done in one."""
        if phase in self._tasks:
            self._progress.update(self._tasks[phase], total=total)
        else:
            self._tasks[phase] = self._progress.add_task(_PHASES[phase], total=total, activity="")
        self._draw(force=True)

    def progress(self, phase: str, name: str, activity: str, done: int) -> None:
        """Move a bar."""
        self._progress.update(self._tasks[phase], completed=done, activity=f"{name}: {activity}")
        self._draw()

    def rows(self, results: Sequence[Result]) -> None:
        """Fill the table."""
        self._results = results
        self._draw(force=True)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _draw(self, *, force: bool = False) -> None:
        if force or time.monotonic() - self._drawn > _REDRAW_S:
            self._live.update(self._picture(), refresh=True)
            self._drawn = time.monotonic()

    def _picture(self) -> RenderableType:
        from rich.console import Group

        return Group(results_table(self._results), self._progress) if self._results else self._progress


def results_table(results: Sequence[Result]) -> Table:
    """The rows as a table that fits a terminal of 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("candidate", overflow="fold", min_width=12)
    for heading in ("AP", "FPS", "p50 ms", "p99 ms", "engine ms", "RSS MB", "MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in results:
        name = f"{escape(short_name(row))}\n[dim]{row.backend} {row.precision}[/dim]"
        if row.latency_ms is None and row.map is None and row.status != "measured":
            table.add_row(name, row.status)
            continue
        table.add_row(
            name,
            number(row.map, 4),
            number(row.fps, 1),
            _median_and_spread(row),
            part(row.latency_ms, "p99"),
            number(row.raw_engine_ms, 2),
            number(row.peak_rss_mb, 0),
            number(row.size_mb, 2),
        )
    return table


def _median_and_spread(row: Result) -> str:
    """The median, and half its 95 % interval in per cent."""
    latency = row.latency_ms
    if latency is None:
        return number(None, 2)
    spread = (latency.p50_high - latency.p50_low) / 2 / latency.p50
    return f"{latency.p50:.2f} " + (f"±{spread:.0%}" if spread < 1 else "±>99%")
