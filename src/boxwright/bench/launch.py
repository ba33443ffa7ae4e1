"""One launch: a fresh process of every candidate, warmed up, then rounds in which each runs a block in turn."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from boxwright.bench.candidate import Candidate
from boxwright.bench.candidate_process import CandidateError, CandidateProcess, TimeBudget
from boxwright.bench.results import Settings

Json = dict[str, Any]
# Called with the candidate's name, what is being done, and the rounds that are done.
OnRound = Callable[[str, str, int], None]
_NVIDIA_SMI_TIMEOUT_S = 20
_MIN_BLOCK_IMAGES = 2


class Launch:
    """Runs a launch of several candidates; a candidate that fails drops out and the others go on."""

    def __init__(
        self,
        settings: Settings,
        image_paths: list[str],
        budgets: dict[str, TimeBudget],
        *,
        on_round: OnRound,
        on_failure: Callable[[str, CandidateError], None],
    ) -> None:
        """Prepare; nothing is started.

        Args:
            settings: of the run.
            image_paths: of the images to be timed on.
            budgets: of the candidates, by name.
            on_round: told of progress.
            on_failure: told of candidates that drop out.
        """
        self._settings = settings
        self._image_paths = image_paths
        self._budgets = budgets
        self._on_round = on_round
        self._on_failure = on_failure

    def run(self, candidates: Sequence[Candidate], *, index: int) -> dict[str, Json]:
        """Measure; the record of each candidate that came through, by its name.

        Args:
            candidates: to be measured in turn.
            index: of the launch; turns the order of the candidates.
        """
        with contextlib.ExitStack() as stack:
            processes: dict[str, CandidateProcess] = {}
            records: dict[str, Json] = {}
            for candidate in candidates:
                name = candidate.name
                process = stack.enter_context(
                    CandidateProcess(candidate, budget=self._budgets[name], cores=self._settings.cores)
                )
                try:
                    records[name] = self._start(name, process)
                    processes[name] = process
                except CandidateError as error:
                    self._on_failure(name, error)
            for round_index in range(self._settings.rounds):
                self._run_round(processes, records, round_index, shift=index + round_index)
        return {name: records[name] for name in processes}

    def _start(self, name: str, process: CandidateProcess) -> Json:
        settings = self._settings
        self._on_round(name, "opening", 0)
        opened = process.open(conf=settings.latency_conf, iou=settings.iou, image_paths=self._image_paths)
        self._on_round(name, "warming up", 0)
        warm = process.call("warm_up", with_raw_engine=settings.with_raw_engine)
        images = int(settings.block_s * 1e3 / warm["image_ms"])
        return {
            **opened,
            "raw_engine_note": warm["raw_engine_note"],
            "images_per_round": max(_MIN_BLOCK_IMAGES, min(images, warm["num_images"])),
            "gpu_memory_mb": gpu_memory_mb(opened["pid"]),
            "blocks": [],
        }

    def _run_round(
        self, processes: dict[str, CandidateProcess], records: dict[str, Json], round_index: int, *, shift: int
    ) -> None:
        names = list(processes)
        for position in range(len(names)):
            name = names[(position + shift) % len(names)]
            count = records[name]["images_per_round"]
            try:
                block = processes[name].call("block", start=round_index * count, count=count)
            except CandidateError as error:
                del processes[name]
                self._on_failure(name, error)
            else:
                records[name]["blocks"].append(block)
                self._on_round(name, "timing", round_index + 1)


def gpu_memory_mb(pid: int) -> float | None:
    """GPU memory that a process holds, in 10^6 bytes; None where `nvidia-smi` is not there or does not name it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines()]
    mebibytes = [int(row[1]) for row in rows if len(row) == 2 and row[0] == str(pid) and row[1].isdigit()]
    return round(sum(mebibytes) * 2**20 / 1e6, 1) if mebibytes else None
