"""The files of a search: which forms are written, for which engines, and what their manifests say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import boxwright
from boxwright.calibration.budget import Budget
from boxwright.calibration.budget_images import SearchImages
from boxwright.calibration.candidate import Quantizer
from boxwright.calibration.executed import executed_layers
from boxwright.calibration.float_model import FloatModel
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.search_result import SearchResult, Trial
from boxwright.calibration.statistics import Statistics
from boxwright.calibration.writing import write_models
from boxwright.core.manifest import CalibrationRecord, Manifest
from boxwright.data.hashing import content_sha256

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


def plan_files(searches: Sequence[SearchResult], budget: Budget) -> list[tuple[Trial, tuple[str, ...]]]:
    """What is to be written, and for which engines: one form for all where it is as fast on each as that engine's own.

    Args:
        searches: of each engine; those of others' forms are among their trials.
        budget: of the search.
    """
    engines = tuple(search.engine for search in searches)
    chosen = [search.chosen() for search in searches]
    for own in chosen:
        if own is not None and len(searches) > 1 and all(_serves(own, search) for search in searches):
            return [(own, engines)]
    best = [trial or search.best(budget) for trial, search in zip(chosen, searches, strict=True)]
    return [(trial, (engine,)) for trial, engine in zip(best, engines, strict=True) if trial is not None]


def _serves(trial: Trial, search: SearchResult) -> bool:
    """Whether a form holds an engine's budget, nearly as fast as what it chose and with no less on integers."""
    own = search.chosen()
    if own is None:
        return False
    least_share = search.wanted_share if own.int8_share >= search.wanted_share else 0.0
    return any(
        other.holds and other.int8_share >= least_share and other.latency_ms <= _AS_FAST * own.latency_ms
        for other in search.quantized
        if other.variant.recipe == trial.variant.recipe
    )


def name_files(
    target: Path, plan: Sequence[tuple[Trial, tuple[str, ...]]]
) -> list[tuple[Path, Trial, tuple[str, ...]]]:
    """The path of each form: the one asked for where there is one form, else `<stem>.<engine>.onnx` beside it."""
    if len(plan) == 1:
        return [(target, *plan[0])]
    return [(_path_for(target, served[0]), trial, served) for trial, served in plan]


def possible_paths(target: Path, engines: Sequence[str]) -> list[Path]:
    """All paths that `name_files` may give: the one asked for, and with several engines one for each."""
    return [target, *(_path_for(target, engine) for engine in engines if len(engines) > 1)]


def _path_for(target: Path, engine: str) -> Path:
    return target.with_name(f"{target.stem}.{engine}.onnx")


def write_files(
    named: Sequence[tuple[Path, Trial, tuple[str, ...]]],
    model: FloatModel,
    quantizer: Quantizer,
    statistics: Statistics,
    images: SearchImages,
    searches: Sequence[SearchResult],
) -> tuple[BudgetFile, ...]:
    """Build the forms from all calibration images, and write all files with their manifests, or none.

    Raises:
        OutputError: where one cannot be written.
    """
    made = [
        (
            quantizer.build(_recipe(trial)),
            make_file(path, trial, served, model, quantizer, statistics, images, searches),
        )
        for path, trial, served in named
    ]
    write_models([(proto, file.manifest, file.path) for proto, file in made])
    return tuple(file for _, file in made)


def make_file(
    path: Path,
    trial: Trial,
    served: tuple[str, ...],
    model: FloatModel,
    quantizer: Quantizer,
    statistics: Statistics,
    images: SearchImages,
    searches: Sequence[SearchResult],
) -> BudgetFile:
    """What is said of a file, in its manifest and in the report; nothing is written."""
    recipe, difference = _recipe(trial), trial.evaluation.difference
    assert difference is not None
    raw = quantizer.build(recipe, raw=True)
    macs = {layer.name: statistics.macs(layer) for layer in model.layers}
    executed = {
        engine: executed_layers(engine, raw, model, macs, precision=trial.variant.precision) for engine in served
    }
    shares = {engine: found.int8_share for engine, found in executed.items() if found is not None}
    quantized = {layer.name for layer in quantizer.quantized(recipe)}
    in_order = [layer.name for layer in model.layers]
    record = CalibrationRecord(
        method=f"{recipe.describe()} for {', '.join(served)}, searched",
        data_sha256=content_sha256(images.calibration),
        num_images=len(images.calibration.samples),
        layers_in_float=tuple(name for name in in_order if name not in quantized),
        layers_run_twice=tuple(
            name for name in in_order if name in quantized & recipe.fine_layers - recipe.finest_layers
        ),
        layers_run_three_times=tuple(name for name in in_order if name in quantized & recipe.finest_layers),
        int8_share={engine: round(share, 4) for engine, share in shares.items()} or None,
        map_before=difference.map_before,
        map_after=difference.map_after,
        map_images=f"{images.described}, on {trial.variant.engine}; 90 % of resampled drops lie between "
        f"{100 * difference.low:.2f} and {100 * difference.high:.2f} points",
        map_images_sha256=content_sha256(images.choice),
        latency_ms=_latencies(searches),
    )
    manifest = replace(
        model.manifest,
        precision="int8",
        calibration=record,
        verification=None,
        boxwright_version=boxwright.__version__,
    )
    return BudgetFile(path=path, engines=served, manifest=manifest, trial=trial, int8_share=shares)


def _recipe(trial: Trial) -> Recipe:
    assert trial.variant.recipe is not None
    return trial.variant.recipe


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
