"""What is left of candidates' processes where the benchmark ends them, or is itself ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from boxwright.bench.candidate import Candidate
from boxwright.bench.candidate_process import CandidateError, CandidateProcess, TimeBudget

TESTS = Path(__file__).resolve().parents[1]
HANGING = Candidate(model="m.onnx", num_threads=1, opener="openers_for_tests:hang")
# A benchmark that waits for a candidate that hangs.
BENCHMARK = """
from boxwright.bench.candidate import Candidate
from boxwright.bench.candidate_process import CandidateProcess, TimeBudget

candidate = Candidate(model="m.onnx", num_threads=1, opener="openers_for_tests:hang")
with CandidateProcess(candidate, budget=TimeBudget(600)) as process:
    print(process._process.pid, flush=True)
    process.open(conf=0.25, iou=0.7, image_paths=[])
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of this process and of those that it starts."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_one_that_is_killed_leaves_no_folder(temporary: Path) -> None:
    with (
        pytest.raises(CandidateError, match="time limit"),
        CandidateProcess(HANGING, budget=TimeBudget(0.5)) as process,
    ):
        assert list(temporary.glob("boxwright-bench-*"))
        process.open(conf=0.25, iou=0.7, image_paths=[])
    assert not list(temporary.glob("boxwright-bench-*"))


@pytest.mark.skipif(sys.platform == "win32", reason="processes are ended otherwise there")
def test_one_whose_benchmark_is_killed_ends_too(temporary: Path) -> None:
    benchmark = subprocess.Popen([sys.executable, "-c", BENCHMARK], stdout=subprocess.PIPE, text=True)
    assert benchmark.stdout is not None
    worker = int(benchmark.stdout.readline())
    time.sleep(2.0)  # it has to be in the middle of the request
    os.kill(worker, 0)
    benchmark.send_signal(signal.SIGKILL)
    benchmark.wait()
    until = time.monotonic() + 60
    while _is_alive(worker) and time.monotonic() < until:
        time.sleep(0.1)
    assert not _is_alive(worker)
    assert not list(temporary.glob("boxwright-bench-*"))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that has ended, but whose new parent has not looked after it yet, still has its number.
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
