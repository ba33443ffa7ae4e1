"""One launch: a fresh process of every candidate, warmed up, then rounds in which each runs a block in turn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from boxwright.bench.candidate import Candidate
from boxwright.bench.candidate_process import CandidateError, CandidateProcess, TimeBudget
from boxwright.bench.gpu_memory import GpuMemoryMeter
from boxwright.bench.latency import SETTLE_IMAGES
from boxwright.bench.results import Settings
from boxwright.core.timing import PAUSE_S

Json = dict[str, Any]
# Called with the candidate's name, what is being done, and the rounds that are done.
OnRound = Callable[[str, str, int], None]
_MIN_BLOCK_IMAGES = 2
_PASSES = 3  # end to end, by stage, and the bare engine
# A candidate's blocks of a launch should take no longer than this, as long as there are a few.
_BLOCKS_S = 15.0
_MIN_ROUNDS = 4


T = TypeVar("T")


def turns(entries: Sequence[T], index: int) -> list[T]:
    """The entries in the order of a turn: each is at every place, and ahead of every other, equally often.

    Who is started first, or runs after whom, is a percent faster or slower for it; that must not stick to a candidate.
    Turn by turn the order is rotated, and every second time reversed.
    """
    start = index // 2 % len(entries) if entries else 0
    rotated = [*entries[start:], *entries[:start]]
    return rotated[::-1] if index % 2 else rotated


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
        self.interrupted: dict[str, Json] = {}  # what a launch that a Ctrl-C ended had measured

    def run(self, candidates: Sequence[Candidate], *, index: int) -> dict[str, Json]:
        """Measure; the record of each candidate that came through, by its name.

        Args:
            candidates: to be measured in turn.
            index: of the launch; changes the order in which candidates are started and take turns.
        """
        with contextlib.ExitStack() as stack:
            processes: dict[str, CandidateProcess] = {}
            records: dict[str, Json] = {}
            for candidate in turns(candidates, index):
                name = candidate.name
                gpu_memory = GpuMemoryMeter()
                process = stack.enter_context(
                    CandidateProcess(candidate, budget=self._budgets[name], cores=self._settings.cores)
                )
                try:
                    records[name] = self._start(name, process, gpu_memory)
                    processes[name] = process
                except CandidateError as error:
                    self._on_failure(name, error)
            num_rounds = self._num_rounds(records.values())
            try:
                for round_index in range(num_rounds):
                    turn = index * self._settings.rounds + round_index
                    self._run_round(processes, records, round_index, turns(list(processes), turn))
                    self._tell_rounds(processes, (round_index + 1) / num_rounds)
            except KeyboardInterrupt:
                self.interrupted = _whole_rounds({name: records[name] for name in processes})
                raise
        return {name: records[name] for name in processes}

    def _tell_rounds(self, names: Iterable[str], share: float) -> None:
        for name in names:
            self._on_round(name, "timing", round(share * self._settings.rounds))

    def _num_rounds(self, records: Iterable[Json]) -> int:
        """Fewer than wanted where candidates are so slow that a launch would take too long."""
        most = min((int(_BLOCKS_S / record["block_s"]) for record in records), default=0)
        return min(self._settings.rounds, max(_MIN_ROUNDS, most))

    def _start(self, name: str, process: CandidateProcess, gpu_memory: GpuMemoryMeter) -> Json:
        settings = self._settings
        self._on_round(name, "opening", 0)
        opened = process.open(conf=settings.latency_conf, iou=settings.iou, image_paths=self._image_paths)
        self._on_round(name, "warming up", 0)
        warm = process.call("warm_up", with_raw_engine=settings.with_raw_engine)
        image_ms = warm["image_ms"]
        count = max(_MIN_BLOCK_IMAGES, min(int(settings.block_s * 1e3 / image_ms), warm["num_images"]))
        return {
            **opened,
            "raw_engine_note": warm["raw_engine_note"],
            "images_per_round": count,
            "block_s": _PASSES * (PAUSE_S + (count + SETTLE_IMAGES) * image_ms / 1e3),
            "gpu_memory_mb": gpu_memory.used_mb(opened["pid"]),
            "blocks": [],
        }

    def _run_round(
        self, processes: dict[str, CandidateProcess], records: dict[str, Json], round_index: int, names: Sequence[str]
    ) -> None:
        most = max((records[name]["images_per_round"] for name in names), default=0)
        for name in names:
            count = records[name]["images_per_round"]
            try:
                block = processes[name].call("block", start=round_index * most, count=count)  # all from the same image
            except CandidateError as error:
                del processes[name]
                self._on_failure(name, error)
            else:
                records[name]["blocks"].append(block)


def _whole_rounds(records: dict[str, Json]) -> dict[str, Json]:
    """The records of a launch that was cut short, as far as all candidates got; none where that is not far enough."""
    count = min((len(record["blocks"]) for record in records.values()), default=0)
    if count < _MIN_ROUNDS:
        return {}
    return {name: {**record, "blocks": record["blocks"][:count]} for name, record in records.items()}
