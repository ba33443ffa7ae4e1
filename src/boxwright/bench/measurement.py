"""What is measured of each candidate, phase by phase: mAP, interleaved launches, throughput."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwright.bench.accuracy import (
    AccuracyResult,
    Predictions,
    UnreadableImage,
    ignored_classes,
    match_classes,
    score_with_curves,
    shown_path,
    to_dataset_classes,
)
from boxwright.bench.candidate import Candidate, content_sha256, size_mb
from boxwright.bench.candidate_process import CandidateError, CandidateProcess, TimeBudget
from boxwright.bench.launch import Launch
from boxwright.bench.observer import Observer
from boxwright.bench.results import Result, Settings
from boxwright.bench.run_state import RunState
from boxwright.bench.summary import LaunchRounds, is_precise, latency_fields, rounds_by_launch, summarise
from boxwright.core.errors import DatasetError, OutputError
from boxwright.data.dataset import Dataset

Json = dict[str, Any]
# Processes that are alive at the same time; further candidates form groups that take turns launch by launch.
_MOST_ALIVE = 8


@dataclass
class Row:
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


class Measurement:
    """Takes candidates through the phases; what the state already holds is not measured again."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        dataset: Dataset,
        settings: Settings,
        observer: Observer,
        state: RunState,
    ) -> None:
        """Prepare; nothing is started.

        Args:
            candidates: with names that tell them apart.
            dataset: to measure on.
            settings: how to measure.
            observer: told of progress.
            state: what is measured already, to which is added.
        """
        self._dataset = dataset
        self._settings = settings
        self._observer = observer
        self._state = state
        self._can_keep = True
        self._rows = {
            entry.name: Row(entry, content_sha256(entry.model), size_mb(entry.model), TimeBudget(settings.time_limit_s))
            for entry in candidates
        }

    def go_through_phases(self) -> None:
        """Measure all that is missing."""
        if self._settings.with_accuracy:
            self._measure_accuracy()
        self._measure_latency()
        if self._settings.with_throughput:
            self._measure_throughput()

    def results(self, *, interrupted: bool) -> tuple[Result, ...]:
        """The row of each candidate, as far as it is known.

        Args:
            interrupted: whether the user ended the run.
        """
        return tuple(self._result(name, row, interrupted) for name, row in self._rows.items())

    @property
    def predictions(self) -> dict[str, Predictions]:
        """What each candidate detected, by its name."""
        return {name: row.predictions for name, row in self._rows.items() if row.predictions is not None}

    @property
    def class_precisions(self) -> dict[str, NDArray[np.float64]]:
        """(C, 101) precisions of each candidate, by its name."""
        return {name: row.class_precisions for name, row in self._rows.items() if row.class_precisions is not None}

    def rounds_of_candidates(self) -> Mapping[str, LaunchRounds]:
        """Block medians of each candidate, by its name."""
        return {name: rounds_by_launch(name, self._state.launches) for name in self._rows}

    def keep(self) -> None:
        """Save what is measured; without room for it the run goes on and says so once."""
        try:
            self._state.save()
        except OutputError as error:
            if self._can_keep:
                self._observer.note(f"what is measured cannot be kept for a run that would go on from it: {error}")
            self._can_keep = False

    def _alive(self) -> list[Row]:
        return [row for row in self._rows.values() if row.failure is None]

    def _fail(self, name: str, error: CandidateError) -> None:
        self._rows[name].failure = error
        self._observer.note(f"{name}: {error.status}: {error.reason}")
        self._show_rows()

    def _show_rows(self) -> None:
        self._observer.rows(self.results(interrupted=False))

    # Accuracy ---------------------------------------------------------------------------------------------------------

    def _measure_accuracy(self) -> None:
        num_images = len(self._dataset)
        self._observer.begin("accuracy", num_images * len(self._rows))
        for index, (name, row) in enumerate(self._rows.items()):
            done = index * num_images
            try:
                if name not in self._state.accuracy:
                    self._state.accuracy[name] = self._predict(row, done)
                    self.keep()
                row.predictions = self._read_predictions(name)
                row.accuracy, row.class_precisions = score_with_curves(row.predictions, self._dataset)
            except CandidateError as error:
                self._fail(name, error)
            self._observer.progress("accuracy", name, "measuring mAP", done + num_images)
            self._show_rows()

    def _predict(self, row: Row, done: int) -> Json:
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
            if launches >= settings.min_launches and self._is_precise():
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
                        self.keep()
            self._show_rows()

    @contextlib.contextmanager
    def _counting_rounds(self, done_before: int) -> Iterator[Callable[[str, str, int], None]]:
        """A callback that adds up the rounds of the candidates of a launch."""
        rounds: dict[str, int] = {}

        def on_round(name: str, activity: str, done: int) -> None:
            rounds[name] = done
            self._observer.progress("latency", name, activity, done_before + sum(rounds.values()))

        yield on_round

    def _is_precise(self) -> bool:
        """Whether the candidates that are still measured are known well enough."""
        names = [row.candidate.name for row in self._alive()]
        return is_precise([rounds_by_launch(name, self._state.launches) for name in names])

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
                self.keep()
                self._show_rows()

    # Summary ----------------------------------------------------------------------------------------------------------

    def _result(self, name: str, row: Row, interrupted: bool) -> Result:
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
