"""`calibrate_to_budget(model, data, out, max_drop=...)`: the fastest INT8 forms that lose no more mAP than that."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import boxwright
from boxwright.bench.accuracy import check_usable
from boxwright.bench.candidate import content_sha256 as model_sha256
from boxwright.calibration.budget import Budget
from boxwright.calibration.candidate import Quantizer, observed_tensors
from boxwright.calibration.choice import ChoiceSet, prepare_choice
from boxwright.calibration.engines import check_engines
from boxwright.calibration.evaluation import Evaluator
from boxwright.calibration.evaluation_store import EvaluationStore
from boxwright.calibration.executed import executed_layers
from boxwright.calibration.float_model import FloatModel, load_float_model
from boxwright.calibration.images import (
    CalibrationImages,
    assign_folds,
    check_disjoint,
    choose_images,
    network_inputs,
    without_copies,
)
from boxwright.calibration.placement import rules_for
from boxwright.calibration.search import Progress, Search, SearchResult, Trial
from boxwright.calibration.sessions import Tensors
from boxwright.calibration.statistics import Statistics, collect_statistics
from boxwright.calibration.variant import Variant
from boxwright.calibration.writing import write_model
from boxwright.core.errors import AnswerIsNoError, DatasetError, InputError
from boxwright.core.files import cache_dir, check_not_source, check_writable
from boxwright.core.machine import describe_machine
from boxwright.core.manifest import CalibrationRecord, Manifest
from boxwright.data import Dataset, load_dataset
from boxwright.data.hashing import content_sha256

DEFAULT_ENGINES = ("openvino",)
_NUM_FOLDS, _FEWEST_IMAGES_A_FOLD = 4, 4
_MOST_CHOICE_IMAGES = 200
_NUM_FINALISTS, _FINAL_ROUNDS = 3, 10
# A file for all engines may be slower than each engine's own by so much.
_AS_FAST = 1.03


@dataclass(frozen=True, kw_only=True)
class BudgetFile:
    """A file that was written.

    Attributes:
        path: of the file.
        engines: that it was chosen for.
        manifest: that is inside.
        trial: what was measured of it, on the first of these engines.
        int8_share: of the multiplications of all layers before the raw heads, executed in INT8, engine by engine.
    """

    path: Path
    engines: tuple[str, ...]
    manifest: Manifest
    trial: Trial
    int8_share: dict[str, float]


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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Images:
    """The images of a run.

    Attributes:
        chosen: for calibration.
        calibration: their data set.
        folds: of each of them.
        choice: to choose on.
        choice_folds: of each of those among the calibration images; None where they are others.
        described: the choice in words.
    """

    chosen: CalibrationImages
    calibration: Dataset
    folds: list[int]
    choice: Dataset
    choice_folds: list[int] | None
    described: str


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
    report = on_progress or (lambda phase, done, total: None)
    float_model = load_float_model(model)
    images = _read_images(data, split, val_data, val_split, num_images)
    deadline = started + 60 * time_limit_minutes if time_limit_minutes is not None else float("inf")
    statistics = collect_statistics(
        float_model,
        _batches(float_model, images),
        tensors=observed_tensors(float_model, fused=any(rules_for(engine).style == "fused" for engine in engines)),
        num_folds=max(images.folds) + 1,
        on_progress=lambda done: report("calibrating", done, len(images.folds)),
    )
    quantizer = Quantizer(float_model, statistics, lambda leave_out: _batches_without(float_model, images, leave_out))
    with tempfile.TemporaryDirectory() as folder:
        choice = prepare_choice(
            images.choice, images.choice_folds, float_model.manifest, float_model.proto, Path(folder)
        )
        evaluator = Evaluator(float_model, quantizer, num_threads=num_threads)
        searches = []
        for index, engine in enumerate(engines):
            # What an engine does not use of its part of the time is left to the next.
            now = time.monotonic()
            search = Search(
                engine,
                evaluator=evaluator,
                quantizer=quantizer,
                choice=choice,
                budget=budget,
                macs={layer.name: statistics.macs(layer) for layer in float_model.layers},
                store=_store(model, images, engine, num_threads, resume),
                deadline=now + max(0.0, deadline - now) / (len(engines) - index),
                on_progress=report,
            )
            searches.append(search.run())
            _time_finalists(searches[-1], evaluator, choice, report)
        plan = _plan(searches, budget)
    result = BudgetResult(
        files=(),
        max_drop=max_drop,
        holds=all(search.chosen() is not None for search in searches),
        searches=tuple(searches),
        advice=tuple(_advice(search, budget) for search in searches),
        warnings=(*_warnings(images, searches, budget),),
        unreadable=tuple(f"{path}: {reason}" for path, reason in images.chosen.unreadable),
        seconds=time.monotonic() - started,
    )
    if not result.holds and not allow_worse:
        raise BudgetError(_failure(result, budget), result)
    files = []
    for path, trial, served in _targets(target, plan):
        files.append(_finish(path, trial, served, float_model, quantizer, statistics, images, searches))
    result = replace(result, files=tuple(files), seconds=time.monotonic() - started)
    if not result.holds:
        raise BudgetError(_failure(result, budget), result)
    return result


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
    check_not_source(target, model)
    check_writable(target)


def _read_images(
    data: str | os.PathLike[str],
    split: str,
    val_data: str | os.PathLike[str] | None,
    val_split: str,
    num_images: int | None,
) -> _Images:
    loaded = load_dataset(Path(data), split)
    validation = None if val_data is None else load_dataset(Path(val_data), val_split)
    if validation is not None:
        check_disjoint(loaded, validation)  # all of both, not only the images that are taken
    chosen = choose_images(loaded, num_images)
    calibration = without_copies(chosen.dataset)
    num_calibration = len(calibration.samples)
    if validation is not None:
        choice = choose_images(validation, _MOST_CHOICE_IMAGES).dataset
        check_usable(choice)
        described = f"{len(choice.samples)} images of {choice.name} {choice.split}"
        return _Images(
            chosen=chosen,
            calibration=calibration,
            folds=[0] * num_calibration,
            choice=choice,
            choice_folds=None,
            described=described,
        )
    check_usable(calibration)
    num_folds = min(_NUM_FOLDS, num_calibration // _FEWEST_IMAGES_A_FOLD)
    if num_folds < 2:
        raise DatasetError(
            f"{calibration.root} (split {split})",
            expected=f"at least {2 * _FEWEST_IMAGES_A_FOLD} different images to hold some back and choose on",
            got=str(num_calibration),
            fix="pass more images, or --val-data with others to choose on",
        )
    folds = [int(fold) for fold in assign_folds(num_calibration, num_folds)]
    return _Images(
        chosen=chosen,
        calibration=calibration,
        folds=folds,
        choice=calibration,
        choice_folds=folds,
        described=f"{num_calibration} images of {calibration.name} {split}, held back in turn ({num_folds} folds)",
    )


def _batches(model: FloatModel, images: _Images) -> Iterator[tuple[Tensors, int, int]]:
    """The calibration images fold by fold, so that no batch holds images of two folds."""
    for fold in range(max(images.folds) + 1):
        samples = [sample for sample, own in zip(images.calibration.samples, images.folds, strict=True) if own == fold]
        for inputs, count in network_inputs(model.manifest, samples, model.proto):
            yield inputs, count, fold


def _batches_without(model: FloatModel, images: _Images, leave_out: int | None) -> Iterator[tuple[Tensors, int]]:
    pairs = zip(images.calibration.samples, images.folds, strict=True)
    return network_inputs(model.manifest, [sample for sample, own in pairs if own != leave_out], model.proto)


def _store(
    model: str | os.PathLike[str], images: _Images, engine: str, num_threads: int, resume: bool
) -> EvaluationStore:
    import importlib.metadata

    machine = describe_machine()
    subject = {
        "model": model_sha256(model),
        "calibration": content_sha256(images.calibration),
        "folds": images.folds,
        "choice": content_sha256(images.choice),
        "engine": f"{engine} {importlib.metadata.version(engine)}",
        "machine": f"{machine.cpu_name}, {machine.num_cores}",
        "num_threads": num_threads,
        "boxwright": boxwright.__version__,
    }
    store = EvaluationStore(cache_dir() / "calibration", subject)
    if not resume:
        store.forget()
    return store


def _time_finalists(search: SearchResult, evaluator: Evaluator, choice: ChoiceSet, report: Progress) -> None:
    """Measure what may be chosen again, all in turns: the search's own times lie minutes apart."""
    quantized = sorted((trial for trial in search.quantized if trial.holds), key=lambda trial: trial.latency_ms)
    finalists = [trial for trial in search.trials if trial.variant.recipe is None] + quantized[:_NUM_FINALISTS]
    if not quantized:
        return
    report(f"{search.engine}: timing in turns", 0, len(finalists))
    times = evaluator.time_in_turns([trial.variant for trial in finalists], choice, rounds=_FINAL_ROUNDS)
    for trial, latency_ms in zip(finalists, times, strict=True):
        updated = replace(trial, evaluation=replace(trial.evaluation, latency_ms=latency_ms))
        search.trials[search.trials.index(trial)] = updated
    # The others keep their ratio to the float model.
    scale = times[0] / finalists[0].latency_ms
    for index, trial in enumerate(search.trials):
        if all(trial.variant != finalist.variant for finalist in finalists):
            evaluation = replace(trial.evaluation, latency_ms=trial.latency_ms * scale)
            search.trials[index] = replace(trial, evaluation=evaluation)
    report(f"{search.engine}: timing in turns", len(finalists), len(finalists))


def _plan(searches: Sequence[SearchResult], budget: Budget) -> list[tuple[Trial, tuple[str, ...]]]:
    """What is to be written, and for which engines."""
    plan: list[tuple[Trial, tuple[str, ...]]] = []
    for search in searches:
        trial = search.chosen() or search.best(budget)
        if trial is not None:
            plan.append((trial, (search.engine,)))
    return plan


def _targets(target: Path, plan: Sequence[tuple[Trial, tuple[str, ...]]]) -> list[tuple[Path, Trial, tuple[str, ...]]]:
    if len(plan) == 1:
        return [(target, *plan[0])]
    return [(target.with_name(f"{target.stem}.{served[0]}.onnx"), trial, served) for trial, served in plan]


def _finish(
    path: Path,
    trial: Trial,
    served: tuple[str, ...],
    model: FloatModel,
    quantizer: Quantizer,
    statistics: Statistics,
    images: _Images,
    searches: Sequence[SearchResult],
) -> BudgetFile:
    """Build the file of a trial, from all calibration images, and write it."""
    recipe, difference = trial.variant.recipe, trial.evaluation.difference
    assert recipe is not None and difference is not None
    proto = quantizer.build(recipe)
    macs = {layer.name: statistics.macs(layer) for layer in model.layers}
    raw = quantizer.build(recipe, raw=True)
    executed = {engine: executed_layers(engine, raw, model, macs) for engine in served}
    quantized = {layer.name for layer in quantizer.quantized(recipe)}
    record = CalibrationRecord(
        method=f"{recipe.describe()} for {', '.join(served)}, searched",
        data_sha256=content_sha256(images.calibration),
        num_images=len(images.calibration.samples),
        layers_in_float=tuple(layer.name for layer in model.layers if layer.name not in quantized),
        map_before=difference.map_before,
        map_after=difference.map_after,
        map_images=f"{images.described}, on {trial.variant.engine}; 90 % of resampled drops lie between "
        f"{100 * difference.low:.2f} and {100 * difference.high:.2f} points",
        latency_ms=_latencies(searches),
    )
    manifest = replace(
        model.manifest,
        precision="int8",
        calibration=record,
        verification=None,
        boxwright_version=boxwright.__version__,
    )
    write_model(proto, manifest, path)
    shares = {engine: found.int8_share for engine, found in executed.items() if found is not None}
    return BudgetFile(path=path, engines=served, manifest=manifest, trial=trial, int8_share=shares)


def _latencies(searches: Sequence[SearchResult]) -> dict[str, float]:
    """Milliseconds of every candidate, by engine and name."""
    found: dict[str, float] = {}
    for search in searches:
        for trial in search.trials:
            name = f"{search.engine}: {trial.variant.name}"
            while name in found:
                name += "'"
            found[name] = round(trial.latency_ms, 4)
    return found


def _advice(search: SearchResult, budget: Budget) -> str:
    """What to run on an engine, in a line."""
    chosen, fastest = search.chosen(), search.recommended()
    floats = [trial for trial in search.trials if trial.variant.recipe is None]
    against = ", ".join(f"{_label(trial.variant)} {trial.latency_ms:.2f} ms" for trial in floats)
    if chosen is None:
        return f"{search.engine}: no INT8 form keeps within {budget.max_drop:g} points; run the float model ({against})"
    line = f"{search.engine}: INT8 takes {chosen.latency_ms:.2f} ms, against {against}"
    if fastest is None or fastest.variant == chosen.variant:
        options = "" if chosen.variant.precision == "fp32" else f" with --precision {chosen.variant.precision}"
        return f"{line}; run the INT8 file{options}"
    if fastest.variant.recipe is None:
        options = "" if fastest.variant.precision == "fp32" else f" with --precision {fastest.variant.precision}"
        return f"{line}; INT8 is not faster here: run the float model{options}"
    return line


def _label(variant: Variant) -> str:
    return variant.precision.upper() if variant.recipe is None else "INT8"


def _failure(result: BudgetResult, budget: Budget) -> str:
    parts = []
    for search in result.searches:
        if search.chosen() is not None:
            continue
        best = search.best(budget)
        if best is None or best.evaluation.difference is None:
            parts.append(
                f"{search.engine}: the time was up before any INT8 form was measured; pass a longer --time-limit"
            )
            continue
        lost = 100 * best.evaluation.difference.drop
        expected = budget.expected_drop(best.evaluation)
        parts.append(
            f"{search.engine}: the best is {best.variant.name!r}, which lost {lost:.2f} points "
            f"({expected:.2f} to be expected on other images) at {best.latency_ms:.2f} ms"
        )
    written = "written all the same" if result.files else "nothing written; pass --allow-worse to write it"
    return f"the budget of {budget.max_drop:g} points cannot be met: {'; '.join(parts)}; {written}"


def _warnings(images: _Images, searches: Sequence[SearchResult], budget: Budget) -> Iterator[str]:
    from boxwright.calibration.images import FEWEST_IMAGES

    count = len(images.calibration.samples)
    if count < FEWEST_IMAGES:
        yield (f"{count} images are few: ranges then hang on what these happen to show; give at least {FEWEST_IMAGES}")
    if images.chosen.blank:
        yield f"{len(images.chosen.blank)} images show one colour alone, for one {images.chosen.blank[0].name}"
    for search in searches:
        if search.time_is_up:
            yield f"{search.engine}: the time limit ended the search; run the same command again to go on"
        chosen = search.chosen()
        if chosen is not None and not budget.is_proven(chosen.evaluation):
            difference = chosen.evaluation.difference
            assert difference is not None
            yield (
                f"{search.engine}: {difference.num_images} images cannot prove the budget: the drop is "
                f"{100 * difference.drop:.2f} points, but up to {100 * difference.high:.2f} would not be odd"
            )
