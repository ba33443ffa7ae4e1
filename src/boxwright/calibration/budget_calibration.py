"""`calibrate_to_budget(model, data, out, max_drop=...)`: the fastest INT8 forms that lose no more mAP than that."""

from __future__ import annotations

import importlib
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import boxwright
from boxwright.bench.candidate import content_sha256 as model_sha256
from boxwright.calibration.budget import Budget
from boxwright.calibration.budget_files import BudgetFile, name_files, plan_files, possible_paths, write_files
from boxwright.calibration.budget_images import SearchImages, batches_without, fold_batches, read_images
from boxwright.calibration.budget_words import advice, failure, warnings_of
from boxwright.calibration.candidate import Quantizer, observed_tensors
from boxwright.calibration.choice import ChoiceSet, prepare_choice
from boxwright.calibration.engines import check_engines
from boxwright.calibration.equalized import equalized_quantizer
from boxwright.calibration.evaluation import Evaluator
from boxwright.calibration.evaluation_store import EvaluationStore
from boxwright.calibration.final_timing import time_finalists
from boxwright.calibration.float_model import FloatModel, load_float_model
from boxwright.calibration.forecast import WholeSearch
from boxwright.calibration.search import Progress, Search
from boxwright.calibration.search_result import SearchResult
from boxwright.calibration.statistics import Statistics, collect_statistics
from boxwright.calibration.writing import check_target
from boxwright.core.errors import AnswerIsNoError, InputError
from boxwright.core.files import cache_dir
from boxwright.core.machine import describe_machine
from boxwright.core.placement import rules_for
from boxwright.data.hashing import content_sha256

DEFAULT_ENGINES = ("openvino",)
# Of the time limit: that two passes over the calibration images may take.
_MOST_CALIBRATING = 0.5
# That the last timing of an engine's best forms takes, about.
_FINAL_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class BudgetResult:
    """What came of it.

    Attributes:
        files: that were written.
        max_drop: the budget, in points.
        holds: whether it holds on all engines.
        searches: what was tried, engine by engine.
        advice: one line an engine: what to run, by measurement.
        warnings: what the user should know.
        unreadable: images that were passed over, each with the reason.
        seconds: that it took.
    """

    files: tuple[BudgetFile, ...]
    max_drop: float
    holds: bool
    searches: tuple[SearchResult, ...]
    advice: tuple[str, ...]
    warnings: tuple[str, ...]
    unreadable: tuple[str, ...]
    seconds: float


class BudgetError(AnswerIsNoError):
    """The budget cannot be met; `result` tells what was tried."""

    def __init__(self, message: str, result: BudgetResult) -> None:
        super().__init__(message)
        self.result = result


def calibrate_to_budget(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    max_drop: float,
    split: str = "train",
    val_data: str | os.PathLike[str] | None = None,
    val_split: str = "val",
    num_images: int | None = 128,
    engines: Sequence[str] = DEFAULT_ENGINES,
    time_limit_minutes: float | None = None,
    resume: bool = True,
    allow_worse: bool = False,
    num_threads: int = 0,
    on_progress: Progress | None = None,
) -> BudgetResult:
    """Search the fastest INT8 form of a model that loses at most so much mAP, for each engine.

    Args:
        model: float ONNX file with its manifest.
        data: data set in COCO, VOC or YOLO layout, to calibrate on.
        out: ONNX file to write; with several engines `<stem>.<engine>.onnx` beside it where no one file serves all.
        max_drop: budget in points of mAP, e.g. 0.5.
        split: of the data set.
        val_data: data set to choose on; where None, and `val_split` lies in `data`, pass `data` itself. Without it
            the calibration images serve, each measured on by models that were calibrated without it.
        val_split: of that.
        num_images: to calibrate on, at most, taken evenly over the split; None takes all.
        engines: to make files for; they must be installed.
        time_limit_minutes: of the whole search, about.
        resume: whether measurements of an earlier run on the same model, images and machine are used.
        allow_worse: write the best form where none is within the budget.
        num_threads: of the CPU for the engines; 0 leaves it to them.
        on_progress: called with a phase, what is done of it and its size.

    Raises:
        InputError: where something given cannot be used; nothing is written.
        BudgetError: where the budget cannot be met; nothing is written unless `allow_worse`.
    """
    started = time.monotonic()
    budget = Budget(max_drop=max_drop)
    target = Path(out)
    _check_arguments(target, model, engines, time_limit_minutes)
    deadline = started + 60 * time_limit_minutes if time_limit_minutes is not None else float("inf")
    report = on_progress or (lambda phase, done, total: None)
    float_model = load_float_model(model)
    images = read_images(data, split, val_data, val_split, num_images)
    statistics = _collect(float_model, images, engines, report)
    # A second pass must leave most of the time to the search.
    has_time = 2 * (time.monotonic() - started) <= _MOST_CALIBRATING * (deadline - started)
    equalized = None
    if has_time:
        equalized = equalized_quantizer(
            float_model,
            [rules_for(engine) for engine in engines],
            lambda: batches_without(float_model, images, None),
            lambda model: _collect(model, images, engines, report, phase="calibrating, equalized"),
            lambda leave_out: batches_without(float_model, images, leave_out),
        )
    quantizer = Quantizer(
        float_model,
        statistics,
        lambda leave_out: batches_without(float_model, images, leave_out),
        equalized=equalized,
    )
    with tempfile.TemporaryDirectory() as folder:
        choice = prepare_choice(
            images.choice, images.choice_folds, float_model.manifest, float_model.proto, Path(folder)
        )
        macs = {layer.name: statistics.macs(layer) for layer in float_model.layers}
        stores = [_store(model, images, engine, num_threads, resume) for engine in engines]
        evaluator = Evaluator(float_model, quantizer, macs=macs, num_threads=num_threads)
        whole = WholeSearch(report, num_searches=len(engines), deadline=deadline)
        searches = [
            Search(
                engine,
                evaluator=evaluator,
                quantizer=quantizer,
                choice=choice,
                budget=budget,
                macs=macs,
                store=store,
                on_progress=whole,
            )
            for engine, store in zip(engines, stores, strict=True)
        ]
        found = _run_in_turn(searches, evaluator, choice, deadline, whole)
    result = BudgetResult(
        files=(),
        max_drop=max_drop,
        holds=all(search.chosen() is not None for search in found),
        searches=tuple(found),
        advice=tuple(advice(search, budget) for search in found),
        warnings=(*warnings_of(images, found, budget), *_warnings_of_cache(stores)),
        unreadable=tuple(f"{path}: {reason}" for path, reason in images.chosen.unreadable),
        seconds=time.monotonic() - started,
    )
    if not result.holds and not allow_worse:
        raise BudgetError(failure(found, budget, written=None), result)
    named = name_files(target, plan_files(found, budget))
    files = write_files(named, float_model, quantizer, statistics, images, found)
    result = replace(result, files=files, seconds=time.monotonic() - started)
    if not result.holds:
        raise BudgetError(failure(found, budget, written=[engine for file in files for engine in file.engines]), result)
    return result


def _collect(
    model: FloatModel, images: SearchImages, engines: Sequence[str], report: Progress, *, phase: str = "calibrating"
) -> Statistics:
    return collect_statistics(
        model,
        fold_batches(model, images),
        tensors=observed_tensors(
            model, fused=any(rules_for(engine).style == "fused" for engine in engines), predictions=True
        ),
        num_folds=max(images.folds) + 1,
        on_progress=lambda done: report(phase, done, len(images.folds)),
    )


def _run_in_turn(
    searches: Sequence[Search], evaluator: Evaluator, choice: ChoiceSet, deadline: float, whole: WholeSearch
) -> list[SearchResult]:
    """Search on each engine, then try what each chose on the others, then time the best of each."""
    for index, search in enumerate(searches):
        # What an engine does not use of its part of the time is left to the next.
        now = time.monotonic()
        whole.begin(search.seconds_left)
        search.run(deadline=now + max(0.0, deadline - now) / (len(searches) - index))
    chosen = [search.result.chosen() for search in searches]
    whole.begin_end(_FINAL_SECONDS * len(searches))
    for search in searches:
        for form in chosen:
            if form is not None:
                search.try_form_of_other(form.variant, deadline=deadline)
    recipes = [form.variant.recipe for form in chosen if form is not None and form.variant.recipe is not None]
    found = [search.result for search in searches]
    for result in found:
        time_finalists(result, evaluator, choice, recipes=recipes, on_progress=whole)
    whole.end()
    return found


def _check_arguments(
    target: Path, model: str | os.PathLike[str], engines: Sequence[str], time_limit_minutes: float | None
) -> None:
    if target.suffix != ".onnx":
        raise InputError("--out", expected="a file name that ends in .onnx", got=target.name, fix="rename it")
    if time_limit_minutes is not None and not time_limit_minutes > 0:
        raise InputError(
            "--time-limit", expected="minutes above 0", got=f"{time_limit_minutes:g}", fix="pass 15, for one"
        )
    check_engines(engines)
    for path in possible_paths(target, engines):
        check_target(path, model)


def _store(
    model: str | os.PathLike[str], images: SearchImages, engine: str, num_threads: int, resume: bool
) -> EvaluationStore:
    machine = describe_machine()
    subject = {
        "model": model_sha256(model),
        "calibration": content_sha256(images.calibration),
        "folds": images.folds,
        "choice": content_sha256(images.choice),
        "engine": f"{engine} {importlib.import_module(engine).__version__}",
        "machine": f"{machine.cpu_name}, {machine.num_cores}",
        "num_threads": num_threads,
        "boxwright": boxwright.__version__,
    }
    store = EvaluationStore(cache_dir() / "calibration", subject)
    if not resume:
        store.forget()
    return store


def _warnings_of_cache(stores: Sequence[EvaluationStore]) -> list[str]:
    """One line for all engines, whose files lie in one folder."""
    troubles = [store.trouble for store in stores if store.trouble is not None]
    return [f"measurements were not kept, so the search cannot be resumed: {trouble}" for trouble in troubles[:1]]
