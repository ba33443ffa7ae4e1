"""What the verbs print: one JSON document on stdout, everything meant for people's eyes on stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import errno
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TextIO

from boxwright.core.errors import OutputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_json_stream: TextIO | None = None


def print_json(document: Any) -> None:
    """Print one JSON document to stdout.

    Args:
        document: dicts, lists, strings and numbers; numpy's scalars and arrays, paths, tuples and dataclasses are
            turned into those, and numbers that are not finite (JSON has none) into null.

    Raises:
        OutputError: where stdout is a file on a disk that is full.
    """
    stream = _json_stream or sys.stdout
    text = json.dumps(_to_plain(document), indent=2, ensure_ascii=False, allow_nan=False)
    try:
        print(text, file=stream, flush=True)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _forget_unwritten(stream)
        raise OutputError(
            "stdout", expected="room for the JSON document", got=error.strerror or "none", fix="free some space"
        ) from error


def _forget_unwritten(stream: TextIO) -> None:
    """Let what a stream could not write go nowhere, so that closing it does not fail once more."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor keeps nothing back
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def stderr_console() -> Console:
    """Return the rich console for messages and tables that must not mix with a result on stdout."""
    from rich.console import Console

    return Console(stderr=True)


def stdout_console() -> Console:
    """Return the rich console for results that people read (without `--json`)."""
    from rich.console import Console

    return Console()


def progress_bar() -> Progress:
    """Return a progress display on stderr with what is done, how fast, and the time left; use it in a `with`."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class TimeLeftColumn(TimeRemainingColumn):
        """Shows a task's own field `seconds_left` where it has one, for work of which no speed tells the rest."""

        def render(self, task: Task) -> Text:
            seconds = task.fields.get("seconds_left")
            if seconds is None:
                return super().render(task)
            return Text(str(dt.timedelta(seconds=seconds)), style="progress.remaining")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeLeftColumn(),
        console=stderr_console(),
    )


@contextlib.contextmanager
def json_alone_on_stdout() -> Iterator[None]:
    """Send to stderr whatever is written to stdout in the block, by libraries and child processes too.

    `print_json` alone still reaches stdout. The file descriptor itself is turned, since C++ libraries write to it.
    """
    global _json_stream
    python_stdout = sys.stdout
    python_stdout.flush()
    saved = os.dup(1)
    with os.fdopen(saved, "w", encoding="utf-8") as saved_stdout:
        _json_stream = saved_stdout if _is_descriptor_1(python_stdout) else python_stdout
        os.dup2(2, 1)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            python_stdout.flush()
            os.dup2(saved, 1)
            _json_stream = None


def _is_descriptor_1(stream: TextIO) -> bool:
    """Whether `stream` writes to the process's own stdout (a test may have put another in its place)."""
    try:
        return stream.fileno() == 1
    except (OSError, ValueError, AttributeError):
        return False


def _to_plain(value: Any) -> Any:
    """Turn `value` into what `json` can write."""
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        value = value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_to_plain(entry) for entry in value]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
