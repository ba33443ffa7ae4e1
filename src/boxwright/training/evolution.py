"""Evolution of hyper-parameters: short runs, each with settings bred from the best so far, by Optuna's NSGA-II.

The study lies in the run's folder, so that it can go on after it was interrupted. Its first trial has the settings that
were given, so the best is never worse than those.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from boxwright.core.errors import AnswerIsNoError, InputError, OutputError
from boxwright.core.files import atomic_file, check_writable, write_text
from boxwright.data import list_splits
from boxwright.models.common.loading import choose_model
from boxwright.training.config import USUAL_SCALE_RANGE, TrainConfig
from boxwright.training.run import TrainResult, train
from boxwright.training.settings import check_same_settings, settings_to_json
from boxwright.training.state import BEST, LAST

STUDY_FILE = "study.journal"
TABLE_FILE = "evolution.csv"
SETTINGS_FILE = "best_settings.json"
# Small, since a trial is a whole training: a generation should be seen to end.
POPULATION = 8
_STUDY_NAME = "evolution"
_SETTINGS_ATTRIBUTE = "settings"
_MEASURES = ("precision", "recall", "map", "map50")

RunTraining = Callable[[TrainConfig], TrainResult]


@dataclass(frozen=True, kw_only=True)
class FitnessWeights:
    """How much each measure counts; only their ratio matters.

    Attributes:
        precision: at the score with the best balance of precision and recall.
        recall: at the same score.
        map: COCO's AP.
    """

    precision: float = 0.1
    recall: float = 0.1
    map: float = 0.8

    def __post_init__(self) -> None:
        weights = (self.precision, self.recall, self.map)
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) == 0:
            raise InputError(
                "--fitness",
                expected="weights of precision, recall and mAP, not negative and not all 0",
                got=str(weights),
                fix="pass three numbers such as 0.1,0.1,0.8",
            )

    def fitness(self, *, precision: float, recall: float, map: float) -> float:
        """The weighted mean, 0 to 1."""
        total = self.precision * precision + self.recall * recall + self.map * map
        return total / (self.precision + self.recall + self.map)


@dataclass(frozen=True, kw_only=True)
class Gene:
    """A setting that evolves.

    Attributes:
        name: of the attribute of `TrainConfig` or, after "augmentation.", of `Augmentation`.
        low: smallest value.
        high: largest value.
        is_logarithmic: whether ratios count and not differences.
    """

    name: str
    low: float
    high: float
    is_logarithmic: bool = False

    def clip(self, value: float) -> float:
        """The nearest value in the range."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True, kw_only=True)
class EvolutionResult:
    """What came out of an evolution.

    Attributes:
        out: its folder.
        best: checkpoint of the fittest trial.
        settings: file with its settings, for `--config`.
        fitness: of the fittest trial.
        first_fitness: of the settings that were given.
        num_trials: finished, those of earlier processes included.
        values: the evolved settings of the fittest.
        measures: its precision, recall, map and map50.
    """

    out: Path
    best: Path
    settings: Path
    fitness: float
    first_fitness: float
    num_trials: int
    values: dict[str, float]
    measures: dict[str, float]


def genes_of(config: TrainConfig) -> tuple[Gene, ...]:
    """The settings that evolve; what a run has switched on besides stays as it is."""
    peak = config.peak_learning_rate
    augmentation = config.augmentation.resolved()
    genes = [
        Gene(name="learning_rate", low=peak / 10, high=peak * 4, is_logarithmic=True),
        Gene(name="weight_decay", low=1e-5, high=1e-2, is_logarithmic=True),
        Gene(name="warmup", low=0.01, high=max(0.01, min(0.4, 1 - config.final_phase))),
        Gene(name="augmentation.mixup", low=0.0, high=0.5),
        Gene(name="augmentation.copy_paste", low=0.0, high=0.5),
    ]
    if augmentation.ssd_crop != 1:  # which leaves no image to these
        genes += [
            Gene(name="augmentation.mosaic", low=0.0, high=1 - augmentation.mosaic9),
            Gene(name="augmentation.smallest_scale", low=0.3, high=1.0),
            Gene(name="augmentation.largest_scale", low=1.0, high=2.0),
            Gene(name="augmentation.translate", low=0.0, high=0.3),
            Gene(name="augmentation.hue", low=0.0, high=0.1),
            Gene(name="augmentation.saturation", low=0.0, high=0.9),
            Gene(name="augmentation.brightness", low=0.0, high=0.9),
        ]
    return tuple(genes)


def values_of(config: TrainConfig) -> dict[str, float]:
    """The present values of the genes."""
    augmentation = config.augmentation.resolved()
    smallest, largest = augmentation.scale_range or USUAL_SCALE_RANGE
    special = {
        "learning_rate": config.peak_learning_rate,
        "warmup": config.rise,
        "augmentation.smallest_scale": smallest,
        "augmentation.largest_scale": largest,
    }
    values = {}
    for gene in genes_of(config):
        owner: Any = augmentation if gene.name.startswith("augmentation.") else config
        value = special[gene.name] if gene.name in special else getattr(owner, gene.name.rpartition(".")[2])
        values[gene.name] = gene.clip(value)
    return values


def with_values(config: TrainConfig, values: Mapping[str, float]) -> TrainConfig:
    """The configuration with other values of the genes."""
    own: dict[str, Any] = {name: value for name, value in values.items() if not name.startswith("augmentation.")}
    varied: dict[str, Any] = {name.rpartition(".")[2]: value for name, value in values.items() if name not in own}
    if "smallest_scale" in varied:
        varied["scale_range"] = varied.pop("smallest_scale"), varied.pop("largest_scale")
    augmentation = dataclasses.replace(config.augmentation, **varied)
    return dataclasses.replace(config, augmentation=augmentation, **own)


def evolve(
    config: TrainConfig,
    *,
    num_trials: int,
    weights: FitnessWeights,
    tell: Callable[[str], None] = lambda line: None,
    run_training: RunTraining | None = None,
) -> EvolutionResult:
    """Search for better settings by training again and again.

    Args:
        config: what every trial shares, and where to begin. `out` is the folder of all; with `resume` the study in it
            goes on until it has `num_trials`.
        num_trials: to be finished in all.
        weights: of precision, recall and mAP.
        tell: called with a line for people after each trial.
        run_training: trains; `train` without a display where None.

    Raises:
        InputError: where the configuration or the data do not fit.
        OutputError: where the folder holds a study already, or cannot be written.
        AnswerIsNoError: where every trial diverged.
    """
    if num_trials < 1:
        raise InputError("--evolve", expected="at least 1 trial", got=str(num_trials), fix="pass more")
    if run_training is None:
        _check_measurable(config)
    with torch.device("meta"):
        model = choose_model(config.model).example()
    config = dataclasses.replace(
        config,
        augmentation=config.augmentation.resolved(model.suggested_augmentation),
        learning_rate=config.peak_for(model.suggested_learning_rate),
    )
    study = _open_study(config, weights)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):  # of a process that was killed
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
        shutil.rmtree(_trial_folder(config.out, trial.number), ignore_errors=True)
    run = _train_quietly if run_training is None else run_training
    while len(finished := _finished(study)) < num_trials:
        try:
            number, fitness = _run_trial(study, config, weights, run)
        except InputError:
            if not finished and not config.resume:
                _forget_study(config.out)  # so that it can be begun again once what was refused is mended
            raise
        _write_table(study, config.out)
        done = len(finished) + 1
        tell(f"trial {done}/{num_trials} ({_trial_folder(config.out, number).name}): fitness {fitness:.4f}")
    return _conclude(study, config)


def _train_quietly(config: TrainConfig) -> TrainResult:
    return train(config, show_progress=False)


def _check_measurable(config: TrainConfig) -> None:
    """Raise `InputError` before the first training where its fitness could not be measured."""
    if config.val_split not in list_splits(config.data):
        raise InputError(
            "--evolve",
            expected=f"data with a split {config.val_split!r} to measure on",
            got="splits " + ", ".join(list_splits(config.data)),
            fix="add one to the data",
        )


def _forget_study(out: Path) -> None:
    """Remove what a study leaves before its first trial has ended."""
    shutil.rmtree(_trial_folder(out, 0), ignore_errors=True)
    (out / STUDY_FILE).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # there is something else in it
        out.rmdir()


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE,))


def _open_study(config: TrainConfig, weights: FitnessWeights) -> optuna.Study:
    path = config.out / STUDY_FILE
    if path.exists() != config.resume:
        raise OutputError(
            str(config.out),
            expected="a folder with a study to go on with" if config.resume else "a folder without a study in it",
            got="none" if config.resume else f"one with {STUDY_FILE}",
            fix="leave --resume out" if config.resume else "pass --resume to go on with it, or another --out",
        )
    if not config.resume and (config.out / LAST).exists():
        raise OutputError(
            str(config.out), expected="a folder without a run in it", got=f"one with {LAST}", fix="pass another --out"
        )
    check_writable(path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(
        study_name=_STUDY_NAME, storage=storage, direction="maximize", load_if_exists=config.resume
    )
    # A resumed sampler must not draw what it drew before.
    study.sampler = optuna.samplers.NSGAIISampler(
        population_size=POPULATION, seed=config.seed * 100_003 + len(study.get_trials(deepcopy=False))
    )
    settings = {**config.fingerprint(), "fitness": dataclasses.asdict(weights)}
    if not config.resume:
        study.set_user_attr(_SETTINGS_ATTRIBUTE, settings)
        study.enqueue_trial(values_of(config))
    check_same_settings(study.user_attrs.get(_SETTINGS_ATTRIBUTE, {}), settings, path, what="study")
    return study


def _trial_folder(out: Path, number: int) -> Path:
    return out / f"trial-{number:04d}"


def _run_trial(
    study: optuna.Study, config: TrainConfig, weights: FitnessWeights, run: RunTraining
) -> tuple[int, float]:
    trial = study.ask()
    values = {
        gene.name: trial.suggest_float(gene.name, gene.low, gene.high, log=gene.is_logarithmic)
        for gene in genes_of(config)
    }
    folder = _trial_folder(config.out, trial.number)
    # Measured at the end alone: it is the settings that are chosen here, not an epoch.
    own = dataclasses.replace(with_values(config, values), out=folder, resume=False, val_every=0)
    try:
        result = run(own)
    except AnswerIsNoError as error:  # diverged; that is how fit these settings are
        measures = dict.fromkeys(_MEASURES, 0.0)
        trial.set_user_attr("problem", str(error))
    else:
        measures = _measures(result, config)
        result.last.unlink(missing_ok=True)  # no trial goes on, and they are many
    for name, value in measures.items():
        trial.set_user_attr(name, value)
    fitness = weights.fitness(precision=measures["precision"], recall=measures["recall"], map=measures["map"])
    study.tell(trial, fitness)
    return trial.number, fitness


def _measures(result: TrainResult, config: TrainConfig) -> dict[str, float]:
    if result.accuracy is None or result.operating_point is None:
        raise InputError(
            "--evolve",
            expected=f"data with a split {config.val_split!r} to measure on",
            got="none with boxes",
            fix="add one to the data",
        )
    point = result.operating_point
    return {
        "precision": point.precision,
        "recall": point.recall,
        "map": result.accuracy.map or 0.0,
        "map50": result.accuracy.map50 or 0.0,
    }


def _write_table(study: optuna.Study, out: Path) -> None:
    with atomic_file(out / TABLE_FILE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        finished = _finished(study)
        writer = csv.writer(file)
        names = list(finished[0].params)
        writer.writerow(["trial", "fitness", *_MEASURES, *names])
        for trial in finished:
            measures = [trial.user_attrs[name] for name in _MEASURES]
            writer.writerow([trial.number, trial.value, *measures, *(trial.params[name] for name in names)])


def _conclude(study: optuna.Study, config: TrainConfig) -> EvolutionResult:
    finished = _finished(study)
    best = max(finished, key=lambda trial: (trial.value, -trial.number))
    folder = _trial_folder(config.out, best.number)
    if not (folder / BEST).exists():
        raise AnswerIsNoError(
            f"{config.out}: no trial gave a detector: {best.user_attrs.get('problem', f'{folder / BEST} is gone')}"
        )
    with atomic_file(config.out / BEST) as temporary:
        shutil.copyfile(folder / BEST, temporary)
    # The numbers of epochs and trials of a real run are its own; the folder and --resume are, too.
    settings = json.loads(settings_to_json(with_values(config, best.params)))
    for name in ("data", "model", "out", "resume"):
        del settings[name]
    write_text(config.out / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
    assert best.value is not None and finished[0].value is not None
    return EvolutionResult(
        out=config.out,
        best=config.out / BEST,
        settings=config.out / SETTINGS_FILE,
        fitness=best.value,
        first_fitness=finished[0].value,
        num_trials=len(finished),
        values=dict(best.params),
        measures={name: best.user_attrs[name] for name in _MEASURES},
    )
