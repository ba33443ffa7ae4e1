"""`boxwright train`: from a data set to a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from boxwright.cli import _train_options as options
from boxwright.cli._options import DataOption, ImageSizeOption, JsonOption
from boxwright.cli._output import print_json, stdout_console
from boxwright.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from boxwright.training import TrainResult
    from boxwright.training.classical_accuracy import ClassMeasurement
    from boxwright.training.evolution import EvolutionResult
    from boxwright.training.pretrain import PretrainResult

# What means something to a pre-training; the rest speaks of boxes.
_PRETRAINING_OPTIONS = frozenset(
    "as_json batch cutmix data device epochs imgsz label_smoothing lr model optimizer out preprocess schedule "
    "seed weights".split()
)

# What means something to detectors without a network.
_CLASSICAL_OPTIONS = frozenset("as_json config data imgsz model out seed".split())


def train(
    context: typer.Context,
    data: DataOption,
    model: options.ModelOption,
    config: options.ConfigOption = None,
    epochs: options.EpochsOption = 100,
    weights: options.WeightsOption = None,
    class_images: options.ClassImagesOption = None,
    preprocess: options.PreprocessNameOption = None,
    imgsz: ImageSizeOption = None,
    batch: options.BatchSizeOption = 16,
    out: options.OutOption = Path("runs/train"),
    resume: options.ResumeOption = False,
    max_minutes: options.MaxMinutesOption = None,
    lr: options.LearningRateOption = None,
    optimizer: options.OptimizerOption = "adamw",
    mosaic: options.MosaicOption = None,
    mixup: options.MixupOption = None,
    val_every: options.ValEveryOption = 1,
    seed: options.SeedOption = 0,
    workers: options.LoadersOption = None,
    device: options.TrainDeviceOption = "auto",
    precision: options.TrainPrecisionOption = "auto",
    schedule: options.ScheduleOption = "cosine",
    mosaic9: options.Mosaic9Option = 0.0,
    copy_paste: options.CopyPasteOption = 0.0,
    ssd_crop: options.SsdCropOption = None,
    multi_scale: options.MultiScaleOption = 0.0,
    qat: options.QatOption = False,
    qat_engine: options.QatEngineOption = "openvino",
    self_adversarial: options.SelfAdversarialOption = 0.0,
    label_smoothing: options.LabelSmoothingOption = 0.0,
    box_loss: options.BoxLossOption = None,
    drop_block: options.DropBlockOption = 0.0,
    cross_iteration_norm: options.CrossIterationNormOption = 1,
    freeze: options.FreezeOption = None,
    layer_decay: options.LayerDecayOption = 1.0,
    anchors: options.AnchorsOption = "family",
    alternating: options.AlternatingOption = False,
    evolve: options.EvolveOption = None,
    fitness: options.FitnessOption = "0.1,0.1,0.8",
    pretrain_classification: options.PretrainOption = False,
    cutmix: options.CutmixOption = 0.5,
    as_json: JsonOption = False,
) -> None:
    """Train a detector on your own data, from scratch or from a checkpoint."""
    given = options.given_options(context)
    options.require_with(given, "evolve", ("fitness",))
    options.require_with(given, "pretrain_classification", ("cutmix",))
    try:
        from boxwright.training import train as run_training
        from boxwright.training.settings import merge_settings, read_settings
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("boxwright"):
            raise
        raise MissingDependencyError(error.name, extra="train", needed_for="boxwright train") from error

    # Attributes without a default of their own, which the flags have.
    always = {"data": data, "model": model} | ({} if config is not None else {"out": out})
    settings = options.to_settings(context.params, given) | always
    from_file = {} if config is None else {"out": out} | read_settings(config)
    run = merge_settings(from_file, settings)
    if "qat_engine" in given and not run.qat:
        options.require_with(given - {"qat"}, "qat", ("qat_engine",))
    if run.model in ("viola-jones", "hog"):
        options.refuse_with(given, "model", _CLASSICAL_OPTIONS)
        _train_classical(run, as_json)
        return
    if pretrain_classification:
        options.refuse_with(given, "pretrain_classification", _PRETRAINING_OPTIONS)
        _pretrain(run, cutmix, as_json)
        return
    if evolve is not None:
        options.refuse_with(given, "evolve", frozenset(context.params) - {"val_every", "alternating"})
        _evolve(run, evolve, fitness, as_json)
        return
    result = _train_alternating(run) if alternating else run_training(run)
    if as_json:
        print_json(_to_jsonable(result))
    else:
        _print_result(result)


def _train_alternating(run: Any) -> TrainResult:
    from boxwright.training.alternating import train_alternating

    return train_alternating(run, tell=_tell)


def _train_classical(run: Any, as_json: bool) -> None:
    from boxwright.training.classical import train_classical

    results = train_classical(run, tell=_tell)
    measured = [result.val for result in results if result.val is not None]
    means = {name: _mean_or_none([getattr(val, name) for val in measured]) for name in ("map", "map50")}
    if as_json:
        print_json({**means, "detectors": [dataclasses.asdict(result) for result in results]})
        return
    _print_lines(
        *(f"{result.class_name}: {result.file}{_shown_accuracy(result.val)}" for result in results),
        *([f"mAP {means['map']:.4f}, mAP50 {means['map50']:.4f}"] if len(measured) > 1 else []),
        f"next: boxwright predict {results[0].file} IMAGE",
    )


def _mean_or_none(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _shown_accuracy(val: ClassMeasurement | None) -> str:
    return " (not measured)" if val is None else f" (AP {val.map:.4f}, AP50 {val.map50:.4f})"


def _pretrain(run: Any, cutmix: float, as_json: bool) -> None:
    from boxwright.training.pretrain import pretrain_classification

    result: PretrainResult = pretrain_classification(run, cutmix_probability=cutmix)
    if as_json:
        print_json(dataclasses.asdict(result))
        return
    accuracy = "" if result.accuracy is None else f" (top-1 {result.accuracy:.4f})"
    _print_lines(
        f"backbone: {result.backbone}{accuracy}",
        f"next: boxwright train --model {run.model} --weights {result.backbone} --data DATA",
    )


def _evolve(run: Any, num_trials: int, fitness: str, as_json: bool) -> None:
    from boxwright.training.evolution import FitnessWeights, evolve

    precision, recall, mean_ap = options.parse_fitness(fitness)
    weights = FitnessWeights(precision=precision, recall=recall, map=mean_ap)
    result: EvolutionResult = evolve(run, num_trials=num_trials, weights=weights, tell=_tell)
    if as_json:
        print_json(dataclasses.asdict(result))
        return
    _print_lines(
        f"{result.num_trials} trials: fitness {result.fitness:.4f}, {result.first_fitness:.4f} with the given settings",
        f"best: {result.best} (mAP {result.measures['map']:.4f}, mAP50 {result.measures['map50']:.4f})",
        f"settings: {result.settings}",
        f"next: boxwright train --config {result.settings} --model {run.model} --data {run.data} --out runs/evolved",
    )


def _to_jsonable(result: TrainResult) -> dict[str, Any]:
    return {
        "out": result.out,
        "best": result.best,
        "last": result.last,
        "map": result.best_map,
        "map50": result.best_map50,
        "epochs_done": result.epochs_done,
        "seconds": result.seconds,
        "unreadable": result.unreadable,
        "history": [dataclasses.asdict(record) for record in result.history],
    }


def _print_result(result: TrainResult) -> None:
    measured = "" if result.best_map is None else f" (mAP {result.best_map:.4f}, mAP50 {result.best_map50 or 0:.4f})"
    _print_lines(
        f"{result.epochs_done} epochs in {result.seconds:.0f} s",
        f"best: {result.best}{measured}",
        f"last: {result.last}",
        f"next: boxwright export {result.best} --out model.onnx"
        if result.is_exportable
        else f"next: boxwright predict {result.best} IMAGE",
    )


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _print_lines(*lines: str) -> None:
    console = stdout_console()
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
