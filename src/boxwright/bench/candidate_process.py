"""Driving a candidate's process: requests, replies, time limits, and what becomes of one that hangs or dies."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any

from boxwright.bench.candidate import Candidate
from boxwright.bench.results import Status

_MOST_STDERR_BYTES = 2000
_CLOSE_S = 5.0


class CandidateError(Exception):
    """A candidate cannot go on; says what its row will say."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.reason = reason


class TimeBudget:
    """The seconds that a candidate may still take."""

    def __init__(self, seconds: float) -> None:
        self.limit_s = seconds
        self.left_s = seconds

    def spend(self, seconds: float) -> None:
        """Take some away."""
        self.left_s -= seconds


class CandidateProcess:
    """A fresh process that holds one candidate; a context manager that leaves no process behind."""

    def __init__(self, candidate: Candidate, *, budget: TimeBudget, cores: tuple[int, ...] = ()) -> None:
        """Start the process; nothing is opened in it yet.

        Args:
            candidate: that it will hold.
            budget: what its requests are charged to.
            cores: that it is pinned to; empty for all.
        """
        self.candidate = candidate
        self._budget = budget
        self._cores = cores
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        # Made here, so that it goes even where the process is killed.
        self._work_dir = tempfile.TemporaryDirectory(prefix="boxwright-bench-")
        self._process = subprocess.Popen(
            [candidate.python or sys.executable, "-m", "boxwright.bench.worker", self._work_dir.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(candidate.num_threads),
            start_new_session=True,  # a Ctrl-C at the terminal reaches this process alone
        )
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._read_lines, daemon=True).start()

    def open(self, *, conf: float, iou: float, image_paths: list[str]) -> dict[str, Any]:
        """Open the model; see `Worker.open`."""
        candidate = self.candidate
        arguments = {
            "backend": candidate.backend,
            "device": candidate.device,
            "precision": candidate.precision,
            "conf": conf,
            "iou": iou,
            **candidate.opener_options,
        }
        return self.call(
            "open",
            model=candidate.model,
            opener=candidate.opener,
            arguments=arguments,
            cores=list(self._cores),
            num_threads=candidate.num_threads,
            image_paths=image_paths,
        )

    def call(self, do: str, *, on_progress: Callable[[int], None] | None = None, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for its reply.

        Args:
            do: name of the method of `Worker`.
            on_progress: called with the numbers that it reports on the way.
            arguments: of that method, of JSON's types.

        Raises:
            CandidateError: where it cannot be done, takes too long, or the process ends.
        """
        started = time.monotonic()
        try:
            self._send({"do": do, **arguments})
            while True:
                message = self._receive(self._budget.left_s - (time.monotonic() - started))
                if "progress" not in message:
                    break
                if on_progress is not None:
                    on_progress(message["progress"])
        finally:
            self._budget.spend(time.monotonic() - started)
        if "error" in message:
            # What was made on the way lies in the cache; the user knows the file that it was made of.
            reason = message["message"].replace(self.candidate.model, self.candidate.model_shown)
            raise CandidateError(message["error"], reason)
        reply: dict[str, Any] = message["reply"]
        return reply

    def close(self) -> None:
        """End the process, by force where it does not end by itself."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it may have ended already
            self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._stderr.close()
        self._work_dir.cleanup()

    def kill(self) -> None:
        """End the process now."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> CandidateProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        self.close()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._ended() from error

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=max(timeout_s, 0.0))
        except queue.Empty:
            self.kill()
            reason = f"stopped after its time limit of {self._budget.limit_s:g} s"
            raise CandidateError("timeout", reason) from None
        if line is None:
            raise self._ended()
        message: dict[str, Any] = json.loads(line)
        return message

    def _ended(self) -> CandidateError:
        status = self._process.wait()
        cause = f"signal {-status}" if status < 0 else f"exit status {status}"
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - _MOST_STDERR_BYTES))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return CandidateError("crashed", f"its process ended with {cause}" + (f": {lines[-1]}" if lines else ""))

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)


def _environment(num_threads: int) -> dict[str, str]:
    """This process's, with the package's own place and the number of threads for libraries that read it there."""
    import boxwright

    environment = dict(os.environ)
    package_root = os.path.dirname(os.path.dirname(os.path.abspath(boxwright.__file__)))
    paths = [package_root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    if num_threads > 0:
        environment["OMP_NUM_THREADS"] = str(num_threads)
    return environment
