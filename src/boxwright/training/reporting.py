"""What a run says: a progress bar with loss and time left on stderr, `metrics.csv` and TensorBoard files."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from torch.utils.tensorboard import SummaryWriter

from boxwright.core.files import atomic_file
from boxwright.training.state import EpochRecord

METRICS_FILE = "metrics.csv"
TENSORBOARD_FOLDER = "tensorboard"


def format_seconds(seconds: float | None) -> str:
    """Minutes and seconds, hours before them where there are any; "-:--" for None."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class TrainingDisplay:
    """Shows the run on stderr: a bar where that is a terminal, and a line an epoch anywhere.

    Args:
        epochs: of the run.
        is_shown: False for a silent run.
    """

    def __init__(self, epochs: int, *, is_shown: bool) -> None:
        self._epochs = epochs
        self._is_shown = is_shown
        self._console = Console(stderr=True, quiet=not is_shown)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            transient=True,
            disable=not (is_shown and sys.stderr.isatty()),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> TrainingDisplay:
        self._bar.start()
        self._task = self._bar.add_task("starting", total=1.0, status="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def step(self, epoch: int, progress: float, loss: float, remaining: float | None) -> None:
        """Move the bar; `epoch` counts from 1, `progress` is the part in [0, 1] of the run that is done."""
        if self._task is not None:
            status = f"loss {loss:.3f}  {progress:.0%}  {format_seconds(remaining)} left"
            self._bar.update(self._task, completed=progress, description=f"epoch {epoch}/{self._epochs}", status=status)

    def measuring(self, done: int, total: int) -> None:
        """Say how many images of the val split are measured; the bar stays where it is."""
        if self._task is not None:
            self._bar.update(self._task, status=f"measuring {done}/{total}")

    def epoch(self, record: EpochRecord, remaining: float | None) -> None:
        """Print the line of an epoch."""
        measured = "" if record.map is None else f"  mAP {record.map:.4f}  mAP50 {_or_dash(record.map50)}"
        self.note(
            f"epoch {record.epoch}/{self._epochs}  loss {record.losses['loss']:.3f}  lr {record.learning_rate:.2e}"
            f"{measured}  {format_seconds(record.seconds)} done, {format_seconds(remaining)} left"
        )


def _or_dash(number: float | None) -> str:
    return "-" if number is None else f"{number:.4f}"


class MetricsLog:
    """`metrics.csv`, a row an epoch, and TensorBoard event files.

    Args:
        out: folder of the run.
        history: of a resumed run, whose rows are kept; what was logged after them is dropped.
    """

    def __init__(self, out: Path, history: Sequence[EpochRecord]) -> None:
        self._path = out / METRICS_FILE
        self._records = list(history)
        last_step = history[-1].step if history else 0
        # After a kill the old event files may hold steps that will be done again.
        self._writer = SummaryWriter(
            log_dir=str(out / TENSORBOARD_FOLDER), purge_step=last_step + 1 if history else None
        )

    def add(self, record: EpochRecord) -> None:
        """Log an epoch."""
        self._records.append(record)
        with atomic_file(self._path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            rows = [_row(entry) for entry in self._records]
            # Parts of the loss may come in late in a run.
            columns = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        for name, value in _row(record).items():
            if name not in ("epoch", "step") and value is not None:
                self._writer.add_scalar(name, value, record.step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def _row(record: EpochRecord) -> dict[str, Any]:
    return {
        "epoch": record.epoch,
        "step": record.step,
        "seconds": round(record.seconds, 3),
        "learning_rate": record.learning_rate,
        "map": record.map,
        "map50": record.map50,
        **record.losses,
    }
