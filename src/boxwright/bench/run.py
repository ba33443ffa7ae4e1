"""A benchmark from candidates to its report: accuracy, then interleaved launches, then throughput."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import boxwright
from boxwright.bench.accuracy import (
    AccuracyResult,
    Predictions,
    UnreadableImage,
    check_usable,
    ignored_classes,
    match_classes,
    score_with_curves,
    shown_path,
    to_dataset_classes,
)
from boxwright.bench.candidate import Candidate, check_exists, content_sha256, size_mb, with_names
from boxwright.bench.candidate_process import CandidateError, CandidateProcess, TimeBudget
from boxwright.bench.conditions import find_disturbances, read_conditions
from boxwright.bench.launch import Launch
from boxwright.bench.results import BenchReport, DataSummary, Result, Settings
from boxwright.bench.run_state import RunState, fingerprint
from boxwright.bench.summary import (
    LaunchRounds,
    find_pairs,
    find_pareto,
    is_precise,
    latency_fields,
    rounds_by_launch,
    summarise,
)
from boxwright.core.errors import DatasetError, InputError, OutputError
from boxwright.core.files import cache_dir
from boxwright.core.machine import describe_machine
from boxwright.data.dataset import Dataset
from boxwright.data.hashing import content_sha256 as data_sha256
from boxwright.runtimes.backend import default_device_for
from boxwright.runtimes.engine_sidecar import built_precision

Json = dict[str, Any]
# Processes that are alive at the same time; further candidates form groups that take turns launch by launch.
_MOST_ALIVE = 8
_SOFTWARE = (
    "boxwright numpy opencv-python-headless onnxruntime onnxruntime-gpu openvino tensorrt torch faster-coco-eval"
).split()  # fmt: skip
_UNFINISHED_NOTE = "the run was interrupted; the same command goes on where it stopped"
_KEPT_NOTE = "what is measured is kept: the same command goes on from it"


class Observer:
    """Told what a run does; this one does not listen."""

    def begin(self, phase: str, total: int) -> None:
        """A phase begins: "accuracy", counted in images, "latency", in rounds, or "throughput", in candidates."""

    def progress(self, phase: str, name: str, activity: str, done: int) -> None:
        """So many units of the phase are done; the candidate is doing that."""

    def rows(self, results: Sequence[Result]) -> None:
        """What is known of all candidates so far."""

    def note(self, text: str) -> None:
        """Something that the user should know at once."""


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


@dataclass
class _Row:
    """What is known of a candidate."""

    candidate: Candidate
    sha256: str
    size_mb: float
    budget: TimeBudget
    predictions: Predictions | None = None
    accuracy: AccuracyResult | None = None
    class_precisions: NDArray[np.float64] | None = None
    failure: CandidateError | None = None
    latency: Json = field(default_factory=dict)  # of so many launches
    num_launches: int = 0


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
        self._can_keep = True
        self._rows = {
            entry.name: _Row(
                entry, content_sha256(entry.model), size_mb(entry.model), TimeBudget(settings.time_limit_s)
            )
            for entry in candidates
        }
        name = fingerprint(candidates, settings, self._data_sha256)
        self._state = RunState.resume_or_begin(cache_dir() / "bench" / name)

    def run_once(self) -> BenchRun:
        """Measure and deliver, while no other process does the same."""
        try:
            return self.run()
        finally:
            self._state.release()

    def run(self) -> BenchRun:
        """Go through the phases; a Ctrl-C ends them and leaves what is measured."""
        if not self._state.is_empty:
            self._observer.note(f"going on with an interrupted run: {len(self._state.launches)} launches are measured")
        before, started = read_conditions(), time.monotonic()
        interrupted = False
        try:
            if self._settings.with_accuracy:
                self._measure_accuracy()
            self._measure_latency()
            if self._settings.with_throughput:
                self._measure_throughput()
        except KeyboardInterrupt:
            interrupted = True
        after = read_conditions()
        machine = describe_machine()
        notes = find_disturbances(
            before, after, num_cores=machine.num_cores, seconds=max(time.monotonic() - started, 1e-3)
        )
        results = self._results(interrupted)
        report = BenchReport(
            boxwright_version=boxwright.__version__,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=self._command,
            settings=self._settings,
            data=self._describe_data(),
            results=results,
            pareto=find_pareto(results),
            pairs=find_pairs({name: rounds_by_launch(name, self._state.launches) for name in self._rows}),
            machine=machine,
            software=_software_versions(),
            conditions_before=before,
            conditions_after=after,
            is_noisy=bool(notes) or any(result.is_noisy for result in results),
            notes=notes + ((_UNFINISHED_NOTE,) if interrupted else ()),
            is_complete=not interrupted,
        )
        rows = self._rows.items()
        run = BenchRun(
            report=report,
            predictions={name: row.predictions for name, row in rows if row.predictions is not None},
            class_precisions={name: row.class_precisions for name, row in rows if row.class_precisions is not None},
            dataset=self._dataset,
            interrupted=interrupted,
        )
        try:
            self._deliver(run)
        except BaseException:
            self._observer.note(_KEPT_NOTE)
            raise
        if not interrupted:
            self._state.discard()
        return run

    def _keep(self) -> None:
        """Save what is measured; without room for it the run goes on and says so once."""
        try:
            self._state.save()
        except OutputError as error:
            if self._can_keep:
                self._observer.note(f"what is measured cannot be kept for a run that would go on from it: {error}")
            self._can_keep = False

    def _alive(self) -> list[_Row]:
        return [row for row in self._rows.values() if row.failure is None]

    def _fail(self, name: str, error: CandidateError) -> None:
        self._rows[name].failure = error
        self._observer.note(f"{name}: {error.status}: {error.reason}")
        self._show_rows()

    def _show_rows(self) -> None:
        self._observer.rows(self._results(interrupted=False))

    # Accuracy ---------------------------------------------------------------------------------------------------------

    def _measure_accuracy(self) -> None:
        num_images = len(self._dataset)
        self._observer.begin("accuracy", num_images * len(self._rows))
        for index, (name, row) in enumerate(self._rows.items()):
            done = index * num_images
            try:
                if name not in self._state.accuracy:
                    self._state.accuracy[name] = self._predict(row, done)
                    self._keep()
                row.predictions = self._read_predictions(name)
                row.accuracy, row.class_precisions = score_with_curves(row.predictions, self._dataset)
            except CandidateError as error:
                self._fail(name, error)
            self._observer.progress("accuracy", name, "measuring mAP", done + num_images)
            self._show_rows()

    def _predict(self, row: _Row, done: int) -> Json:
        name, settings = row.candidate.name, self._settings
        self._observer.progress("accuracy", name, "opening", done)
        with CandidateProcess(row.candidate, budget=row.budget, cores=settings.cores) as process:
            opened = process.open(conf=settings.accuracy_conf, iou=settings.iou, image_paths=[])
            self._check_classes(tuple(opened["class_names"]))  # before an hour is spent on it
            reply = process.call(
                "predict",
                image_paths=[str(sample.image_path) for sample in self._dataset.samples],
                target=str(self._state.detections_path(name)),
                on_progress=lambda count: self._observer.progress("accuracy", name, "measuring mAP", done + count),
            )
        return {**opened, **reply}

    def _check_classes(self, class_names: tuple[str, ...]) -> None:
        """Names that do not fit end a run of one candidate; of several, each that fits is measured."""
        try:
            match_classes(class_names, self._dataset)
        except DatasetError as error:
            if len(self._rows) == 1:
                raise
            raise CandidateError("failed", str(error)) from error

    def _read_predictions(self, name: str) -> Predictions:
        found = self._state.read_detections(name)
        class_names = tuple(self._state.accuracy[name]["class_names"])
        class_map = match_classes(class_names, self._dataset)
        samples = self._dataset.samples
        used = [index for index in range(len(samples)) if index not in found.unreadable]
        return Predictions(
            samples=tuple(samples[index] for index in used),
            detections=tuple(to_dataset_classes(found.detections[index], class_map) for index in used),
            unreadable=tuple(
                UnreadableImage(file=shown_path(samples[index], self._dataset), reason=reason)
                for index, reason in found.unreadable.items()
            ),
            ignored_classes=ignored_classes(class_names, self._dataset),
        )

    # Latency ----------------------------------------------------------------------------------------------------------

    def _measure_latency(self) -> None:
        settings = self._settings
        while len(self._state.launches) < settings.max_launches and self._alive():
            launches = len(self._state.launches)
            if launches >= settings.min_launches and is_precise(list(self._rounds_of_candidates().values())):
                break
            rounds_per_launch = settings.rounds * len(self._alive())
            total = max(settings.min_launches, launches + 1) * rounds_per_launch
            self._observer.begin("latency", total)
            records: dict[str, Json] = {}
            with self._counting_rounds(launches * rounds_per_launch) as on_round:
                launch = Launch(
                    settings,
                    self._latency_image_paths(),
                    {name: row.budget for name, row in self._rows.items()},
                    on_round=on_round,
                    on_failure=self._fail,
                )
                candidates = [row.candidate for row in self._alive()]
                try:
                    for start in range(0, len(candidates), _MOST_ALIVE):
                        records |= launch.run(candidates[start : start + _MOST_ALIVE], index=launches)
                finally:
                    records |= launch.interrupted
                    if records:
                        self._state.launches.append(records)
                        self._keep()
            self._show_rows()

    @contextlib.contextmanager
    def _counting_rounds(self, done_before: int) -> Iterator[Callable[[str, str, int], None]]:
        """A callback that adds up the rounds of the candidates of a launch."""
        rounds: dict[str, int] = {}

        def on_round(name: str, activity: str, done: int) -> None:
            rounds[name] = done
            self._observer.progress("latency", name, activity, done_before + sum(rounds.values()))

        yield on_round

    def _rounds_of_candidates(self) -> dict[str, LaunchRounds]:
        """Block medians of the candidates that are still measured."""
        return {row.candidate.name: rounds_by_launch(row.candidate.name, self._state.launches) for row in self._alive()}

    def _records(self, name: str) -> list[Json]:
        return [launch[name] for launch in self._state.launches if name in launch]

    def _latency_image_paths(self) -> list[str]:
        """Images spread evenly over the data set, the same for all candidates."""
        samples = self._dataset.samples
        count = min(self._settings.num_latency_images, len(samples))
        return [str(samples[index * len(samples) // count].image_path) for index in range(count)]

    # Throughput -------------------------------------------------------------------------------------------------------

    def _measure_throughput(self) -> None:
        settings = self._settings
        self._observer.begin("throughput", len(self._rows))
        for index, (name, row) in enumerate(self._rows.items()):
            self._observer.progress("throughput", name, "searching batch and streams", index)
            if row.failure is not None or name in self._state.throughput:
                continue
            try:
                with CandidateProcess(row.candidate, budget=row.budget, cores=settings.cores) as process:
                    process.open(conf=settings.latency_conf, iou=settings.iou, image_paths=self._latency_image_paths())
                    reply = process.call("search_throughput", streams=list(settings.streams), trial_s=settings.trial_s)
            except CandidateError as error:
                self._fail(name, error)
            else:
                self._state.throughput[name] = reply
                self._keep()
                self._show_rows()

    # Summary ----------------------------------------------------------------------------------------------------------

    def _results(self, interrupted: bool) -> tuple[Result, ...]:
        return tuple(self._result(name, row, interrupted) for name, row in self._rows.items())

    def _result(self, name: str, row: _Row, interrupted: bool) -> Result:
        records = self._records(name)
        if len(records) != row.num_launches:
            row.latency, row.num_launches = latency_fields(records), len(records)
        result = summarise(
            row.candidate,
            model_sha256=row.sha256,
            size_mb=row.size_mb,
            accuracy=row.accuracy,
            opened=self._state.accuracy.get(name),
            launches=records,
            latency=row.latency,
            throughput=self._state.throughput.get(name),
            failure=row.failure,
        )
        if interrupted and row.failure is None:
            return replace(result, status="interrupted", reason="the run was ended before it was complete")
        return result

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
