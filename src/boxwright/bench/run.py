"""A benchmark from candidates to its report, kept on the way so that nothing measured is lost."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import boxwright
from boxwright.bench.accuracy import Predictions, check_usable
from boxwright.bench.candidate import Candidate, check_exists, with_names
from boxwright.bench.conditions import find_disturbances, read_conditions
from boxwright.bench.measurement import Measurement
from boxwright.bench.observer import Observer
from boxwright.bench.results import BenchReport, Conditions, DataSummary, Settings
from boxwright.bench.run_state import RunState, fingerprint
from boxwright.bench.summary import find_pairs, find_pareto
from boxwright.core.errors import InputError
from boxwright.core.files import cache_dir
from boxwright.core.machine import describe_machine
from boxwright.data.dataset import Dataset
from boxwright.data.hashing import content_sha256 as data_sha256
from boxwright.runtimes.backend import default_device_for
from boxwright.runtimes.engine_sidecar import built_precision

_SOFTWARE = (
    "boxwright numpy opencv-python-headless onnxruntime onnxruntime-gpu openvino tensorrt torch faster-coco-eval"
).split()  # fmt: skip
_NOTHING_NOTE = "nothing was measured yet; no report is written"
_UNFINISHED_NOTE = "the run was interrupted; the same command goes on where it stopped"
_KEPT_NOTE = "what is measured is kept: the same command goes on from it"


class BenchRun(NamedTuple):
    """A finished, or interrupted, benchmark.

    Attributes:
        report: its results.
        predictions: what each candidate detected, by its name, in the data set's classes.
        class_precisions: (C, 101) of each of those, at IoU 0.5 at recall 0, 0.01 ... 1; NaN for classes without a box.
        dataset: that was measured on.
        interrupted: whether the user ended it.
    """

    report: BenchReport
    predictions: dict[str, Predictions]
    class_precisions: dict[str, NDArray[np.float64]]
    dataset: Dataset
    interrupted: bool


def run_benchmark(
    candidates: Sequence[Candidate],
    dataset: Dataset,
    *,
    settings: Settings | None = None,
    observer: Observer | None = None,
    command: str | None = None,
    deliver: Callable[[BenchRun], None] | None = None,
) -> BenchRun:
    """Measure candidates on a data set, each in processes of its own.

    What is measured is kept under the user's cache until the run is complete and delivered: called again with the same
    files and settings, a run that was interrupted, or whose report could not be written, goes on.

    Args:
        candidates: at least one; those without a name get one.
        dataset: with at least one image and one box.
        settings: how to measure.
        observer: told of progress.
        command: that the user typed; this process's where None.
        deliver: called with the run, to write its report; what it raises is raised, and nothing measured is lost.

    Raises:
        InputError: where the data set is of no use, or a path does not exist.
        KeyboardInterrupt: where the user ended it before anything was measured; later it is a run that says so.
    """
    if not candidates:
        raise InputError("candidates", expected="at least one model", got="none", fix="pass a model file")
    check_usable(dataset)
    check_exists(candidates)
    return _Run(
        with_names(candidates),
        dataset,
        settings or Settings(),
        observer or Observer(),
        command or _command_line(),
        deliver or (lambda run: None),
    ).run_once()


class _Run:
    """The state of a benchmark while it runs."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        dataset: Dataset,
        settings: Settings,
        observer: Observer,
        command: str,
        deliver: Callable[[BenchRun], None],
    ) -> None:
        self._dataset = dataset
        self._data_sha256 = data_sha256(dataset)
        self._settings = settings
        self._observer = observer
        self._command = command
        self._deliver = deliver
        name = fingerprint(candidates, settings, self._data_sha256)
        self._state = RunState.resume_or_begin(cache_dir() / "bench" / name)
        self._measurement = Measurement(candidates, dataset, settings, observer, self._state)

    def run_once(self) -> BenchRun:
        """Measure and deliver, while no other process does the same."""
        try:
            return self._run()
        finally:
            self._state.release()

    def _run(self) -> BenchRun:
        """Go through the phases; a Ctrl-C ends them and leaves what is measured."""
        if not self._state.is_empty:
            self._observer.note(f"going on with an interrupted run: measured are {self._state.describe()}")
        before, started, size_before = read_conditions(), time.monotonic(), self._state.size
        interrupted = False
        try:
            self._measurement.go_through_phases()
        except KeyboardInterrupt:
            interrupted = True
        after, seconds = read_conditions(), max(time.monotonic() - started, 1e-3)
        if self._state.size > size_before or not size_before:  # else it is not what was measured that was disturbed
            found = find_disturbances(before, after, num_cores=describe_machine().num_cores, seconds=seconds)
            known = {text.partition(":")[0] for text in self._state.disturbances}  # numbers follow, and change
            self._state.disturbances += [text for text in found if text.partition(":")[0] not in known]
            self._measurement.keep()
        if interrupted and self._state.is_empty:
            self._observer.note(_NOTHING_NOTE)  # an earlier report is worth more than one of nothing
            raise KeyboardInterrupt
        run = BenchRun(
            report=self._report(before, after, interrupted=interrupted),
            predictions=self._measurement.predictions,
            class_precisions=self._measurement.class_precisions,
            dataset=self._dataset,
            interrupted=interrupted,
        )
        try:
            self._deliver(run)
        except BaseException:
            self._observer.note(_KEPT_NOTE)
            raise
        if interrupted:
            self._observer.note(_KEPT_NOTE)
        else:
            self._state.discard()
        return run

    def _report(self, before: Conditions, after: Conditions, *, interrupted: bool) -> BenchReport:
        results = self._measurement.results(interrupted=interrupted)
        disturbances = tuple(self._state.disturbances)
        return BenchReport(
            boxwright_version=boxwright.__version__,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=self._command,
            settings=self._settings,
            data=self._describe_data(),
            results=results,
            pareto=find_pareto(results),
            pairs=find_pairs(self._measurement.rounds_of_candidates()),
            machine=describe_machine(),
            software=_software_versions(),
            conditions_before=before,
            conditions_after=after,
            is_noisy=bool(disturbances) or any(result.is_noisy for result in results),
            notes=disturbances + ((_UNFINISHED_NOTE,) if interrupted else ()),
            is_complete=not interrupted,
        )

    def _describe_data(self) -> DataSummary:
        dataset = self._dataset
        return DataSummary(
            path=os.fspath(dataset.root),
            split=dataset.split,
            layout=dataset.layout,
            num_images=len(dataset),
            num_boxes=dataset.num_boxes,
            num_classes=len(dataset.class_names),
            sha256=self._data_sha256,
            chosen_classes=dataset.chosen_classes,
        )


def _command_line() -> str:
    """This process's, as it was typed."""
    program = Path(sys.argv[0])
    shown = "boxwright" if program.name in ("boxwright", "__main__.py") else str(program)
    return shlex.join([shown, *sys.argv[1:]])


def _software_versions() -> dict[str, str]:
    """Versions of the packages that take part, as far as they are installed."""
    versions = {"python": sys.version.split()[0]}
    for package in _SOFTWARE:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    versions.setdefault("boxwright", boxwright.__version__)
    return versions


def benchmark(
    models: Sequence[str | os.PathLike[str]],
    data: str | os.PathLike[str],
    *,
    split: str = "val",
    backends: Sequence[str] = (),
    precisions: Sequence[str] = ("fp32",),
    device: str | None = None,
    settings: Settings | None = None,
    out: str | os.PathLike[str] | None = None,
) -> BenchReport:
    """Measure speed and accuracy of model files, and write a report.

    Args:
        models: exported files.
        data: of a data set in COCO, VOC or YOLO layout.
        split: of the data set.
        backends: engines to run each file on; empty lets each file decide.
        precisions: of the arithmetic, for files that are not quantized; a TensorRT engine has one of its own.
        device: to run on; None for what each engine is for.
        settings: how to measure.
        out: folder for the report; None writes none.

    Raises:
        InputError: where nothing can be measured.
    """
    from boxwright.bench.report import write_report
    from boxwright.data import load_dataset

    settings = settings or Settings()
    candidates = [
        Candidate(
            model=os.fspath(model),
            backend=backend,
            precision=precision,
            device=device or default_device_for(model, backend),
            num_threads=settings.num_threads,
        )
        for model in models
        for backend in (backends or (None,))
        for precision in _precisions_of(model, precisions)
    ]

    def deliver(run: BenchRun) -> None:
        if out is not None:
            write_report(run, Path(out))

    run = run_benchmark(candidates, load_dataset(data, split), settings=settings, deliver=deliver)
    if run.interrupted:
        raise KeyboardInterrupt
    return run.report


def _precisions_of(model: str | os.PathLike[str], precisions: Sequence[str]) -> Sequence[str]:
    only = built_precision(model)
    return precisions if only is None else (only,)
