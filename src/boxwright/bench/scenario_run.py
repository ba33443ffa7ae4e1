"""MLPerf LoadGen on candidates: performance, then accuracy, each in a fresh process; LoadGen's logs are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from boxwright.bench.accuracy import (
    Predictions,
    UnreadableImage,
    check_usable,
    ignored_classes,
    match_classes,
    score,
    shown_path,
    to_dataset_classes,
)
from boxwright.bench.candidate import Candidate, check_exists, with_names
from boxwright.bench.candidate_process import CandidateError, CandidateProcess, TimeBudget
from boxwright.bench.observer import Observer
from boxwright.bench.results import Settings, Status
from boxwright.bench.run_state import fingerprint
from boxwright.bench.scenarios import ACCURACY_FILE, ScenarioSettings, metric_of, read_accuracy_log
from boxwright.core.errors import DatasetError
from boxwright.core.files import check_writable, write_text
from boxwright.data.dataset import Dataset
from boxwright.data.hashing import content_sha256 as data_sha256

SCHEMA_VERSION = 1
RESULTS_FILE = "scenarios.json"
_KEPT_NOTE = "the candidates that are measured are kept: the same command goes on with the next one"
_NOTHING_NOTE = "no candidate was measured yet"


@dataclass(frozen=True, kw_only=True)
class ScenarioResult:
    """What LoadGen says of a candidate.

    Attributes:
        name: of the candidate.
        model: path as it was given.
        backend: engine.
        device: that it ran on.
        precision: of the arithmetic.
        num_threads: of the CPU; 0 where it was left to the engine.
        scenario: LoadGen's.
        status: whether it was measured.
        reason: why not.
        is_valid: LoadGen's verdict on the performance run, VALID or INVALID.
        invalid_reason: in LoadGen's words.
        metric: the number that the scenario is judged by.
        unit: of the metric.
        details: all results in LoadGen's detail log, with the targets that it was given.
        streams: detectors that worked side by side.
        map: COCO AP of the accuracy run's answers; None where there was none.
        num_unreadable: images that could not be read; answered with nothing.
        log_dir: where LoadGen's logs are.
    """

    name: str
    model: str
    backend: str
    device: str
    precision: str
    num_threads: int
    scenario: str
    status: Status
    reason: str | None = None
    is_valid: bool | None = None
    invalid_reason: str | None = None
    metric: float | None = None
    unit: str | None = None
    details: dict[str, Any] | None = None
    streams: int = 1
    map: float | None = None
    num_unreadable: int = 0
    log_dir: str | None = None

    @property
    def verdict(self) -> str:
        """VALID or INVALID as LoadGen says, or why it says nothing."""
        if self.is_valid is None:
            return self.status
        return "VALID" if self.is_valid else "INVALID"


def run_scenarios(
    candidates: Sequence[Candidate],
    dataset: Dataset,
    out: Path,
    *,
    scenario: ScenarioSettings,
    settings: Settings | None = None,
    observer: Observer | None = None,
) -> list[ScenarioResult]:
    """Run a scenario of LoadGen on each candidate, one after another.

    Args:
        candidates: at least one.
        dataset: whose images are asked for.
        out: folder for LoadGen's logs and `scenarios.json`.
        scenario: how LoadGen asks.
        settings: thresholds, cores, time limit, and whether the accuracy mode is run too.
        observer: told of progress.

    Raises:
        InputError: where the data set is of no use, a path does not exist, or the folder cannot be written.
    """
    settings, observer = settings or Settings(), observer or Observer()
    check_usable(dataset)
    check_exists(candidates)
    check_writable(out / RESULTS_FILE)
    run_id = _run_id(candidates, dataset, scenario, settings)
    results = _results_of_interrupted(out / RESULTS_FILE, run_id)
    if results:
        observer.note(f"going on with an interrupted run: {len(results)} of {len(candidates)} candidates are measured")
    observer.begin("scenario", len(candidates))
    for index, candidate in enumerate(with_names(candidates)):
        if index < len(results):
            continue
        observer.progress("scenario", candidate.name, scenario.scenario, index)
        try:
            results.append(_run_candidate(candidate, dataset, out, scenario, settings))
        except DatasetError as error:  # names that do not fit end a run of one; of several, each that fits is measured
            if len(candidates) == 1:
                raise
            results.append(replace(_row_of(candidate, out, scenario), status="failed", reason=str(error)))
        except KeyboardInterrupt:
            observer.note(_KEPT_NOTE if results else _NOTHING_NOTE)
            raise
        observer.progress("scenario", candidate.name, "done", index + 1)
        document = {
            "schema_version": SCHEMA_VERSION,
            "run_id": run_id,
            "is_complete": len(results) == len(candidates),
            "scenarios": [asdict(row) for row in results],
        }
        write_text(out / RESULTS_FILE, json.dumps(document, indent=2) + "\n")
    return results


def _run_id(candidates: Sequence[Candidate], dataset: Dataset, scenario: ScenarioSettings, settings: Settings) -> str:
    """The same only where the same files are asked for the same images in the same way."""
    asked = json.dumps(asdict(scenario), sort_keys=True)
    content = f"{fingerprint(candidates, settings, data_sha256(dataset))} {asked}"
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _results_of_interrupted(path: Path, run_id: str) -> list[ScenarioResult]:
    """What an interrupted run has measured: whole candidates, in their order; nothing where it was another run."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["run_id"] != run_id or document["is_complete"]:
            return []
        return [ScenarioResult(**row) for row in document["scenarios"]]
    except (OSError, ValueError, KeyError, TypeError):  # none, or one of another version
        return []


def _run_candidate(
    candidate: Candidate, dataset: Dataset, out: Path, scenario: ScenarioSettings, settings: Settings
) -> ScenarioResult:
    base = _row_of(candidate, out, scenario)
    budget = TimeBudget(settings.time_limit_s)
    try:
        opened, details = _run_mode(candidate, dataset, out, scenario, settings, budget)
        metric, unit = metric_of(scenario.scenario, details)
        result = replace(
            base,
            backend=opened["backend"],
            device=opened["device"],
            precision=opened["precision"],
            is_valid=details.get("result_validity") == "VALID",
            invalid_reason=_invalid_reason(details),
            metric=metric,
            unit=unit,
            num_unreadable=len(details.pop("unreadable")),
            details=details,
        )
        if not settings.with_accuracy:
            return result
        in_accuracy_mode = replace(scenario, mode="accuracy")
        opened, answers = _run_mode(candidate, dataset, out, in_accuracy_mode, settings, budget)
        log = out / _folder_name(candidate.name) / "accuracy" / ACCURACY_FILE
        predictions = _predictions(log, opened, dataset, dict(answers["unreadable"]))
        return replace(result, map=score(predictions, dataset).map, num_unreadable=len(predictions.unreadable))
    except CandidateError as error:
        return replace(base, status=error.status, reason=error.reason)


def _row_of(candidate: Candidate, out: Path, scenario: ScenarioSettings) -> ScenarioResult:
    """What is known of a candidate before it is asked."""
    return ScenarioResult(
        name=candidate.name,
        model=candidate.model_shown,
        backend=candidate.backend or "auto",
        device=candidate.device,
        precision=candidate.precision,
        num_threads=candidate.num_threads,
        scenario=scenario.scenario,
        status="measured",
        streams=scenario.streams,
        log_dir=str(out / _folder_name(candidate.name)),
    )


def _run_mode(
    candidate: Candidate,
    dataset: Dataset,
    out: Path,
    scenario: ScenarioSettings,
    settings: Settings,
    budget: TimeBudget,
) -> tuple[dict[str, Any], dict[str, Any]]:
    log_dir = out / _folder_name(candidate.name) / scenario.mode
    log_dir.mkdir(parents=True, exist_ok=True)
    conf = settings.accuracy_conf if scenario.mode == "accuracy" else settings.latency_conf
    with CandidateProcess(candidate, budget=budget, cores=settings.cores) as process:
        opened = process.open(conf=conf, iou=settings.iou, image_paths=[])
        match_classes(tuple(opened["class_names"]), dataset)
        details = process.call(
            "run_scenario",
            image_paths=[str(sample.image_path) for sample in dataset.samples],
            log_dir=str(log_dir),
            settings=asdict(scenario),
        )
    return opened, details


def _predictions(log: Path, opened: dict[str, Any], dataset: Dataset, unreadable: dict[int, str]) -> Predictions:
    found = read_accuracy_log(log)
    class_names = tuple(opened["class_names"])
    class_map = match_classes(class_names, dataset)
    used = [index for index in range(len(dataset)) if index not in unreadable]
    return Predictions(
        samples=tuple(dataset.samples[index] for index in used),
        detections=tuple(to_dataset_classes(found[index], class_map) for index in used),
        unreadable=tuple(
            UnreadableImage(file=shown_path(dataset.samples[index], dataset), reason=reason)
            for index, reason in unreadable.items()
        ),
        ignored_classes=ignored_classes(class_names, dataset),
    )


def _invalid_reason(details: dict[str, Any]) -> str | None:
    """What LoadGen recommends where the run is not valid, in one line."""
    if details.get("result_validity") == "VALID":
        return None
    texts = [details.get("result_invalid_reason"), details.get("early_stopping_result")]
    return " ".join(" ".join(str(text).split()) for text in texts if text) or None


def _folder_name(name: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "._-" else "_" for sign in name)
