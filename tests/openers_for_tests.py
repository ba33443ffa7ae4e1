"""Openers of candidates that go wrong, by name for a process of a benchmark."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def hang(path: str, **options: Any) -> None:
    """Never comes back."""
    print("hanging", flush=True)  # must not reach the protocol
    time.sleep(3600)


def crash(path: str, **options: Any) -> None:
    """Dies as an engine with a bug does."""
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(path: str, **options: Any) -> None:
    """Ends the process with a message."""
    os.write(2, b"first line\nout of spoons\n")
    os._exit(7)


def stumble(path: str, **options: Any) -> None:
    """Raises what no one foresaw."""
    raise RuntimeError("engine says no")


def open_with_other_classes(path: str, **options: Any) -> Any:
    """A detector that calls its classes by names that no data set has."""
    from boxwright.runtimes.detector import Detector

    class Renamed(Detector):
        class_names = ("cyan", "magenta", "yellow")

    return Renamed(path, **options)
