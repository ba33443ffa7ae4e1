"""Evolution: that it searches, can go on after a kill, and never ends worse than it began."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxwright.bench.accuracy import AccuracyResult
from boxwright.cli.main import main
from boxwright.core.errors import AnswerIsNoError, DatasetError, InputError, OutputError
from boxwright.training import Augmentation, TrainConfig, TrainResult
from boxwright.training.evolution import FitnessWeights, evolve, genes_of, values_of, with_values
from boxwright.training.operating_point import OperatingPoint
from boxwright.training.settings import merge_settings, read_settings


def config(out: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(**{"data": Path("data"), "model": "yolox-pico", "out": out, "epochs": 2, **changes})


def accuracy(value: float) -> AccuracyResult:
    empty: dict[str, Any] = {field.name: None for field in dataclasses.fields(AccuracyResult)}
    counts = {"num_images": 1, "num_boxes": 1, "num_detections": 1}
    return AccuracyResult(
        **{**empty, **counts, "map": value, "map50": value, "per_class": (), "unreadable": (), "ignored_classes": ()}
    )


class FakeTraining:
    """Is the fitter, the nearer the mosaic is to 0.9 and the mixup to 0.4; writes the files that a run would."""

    def __init__(self) -> None:
        self.seen: list[TrainConfig] = []

    def __call__(self, run: TrainConfig) -> TrainResult:
        self.seen.append(run)
        mosaic, mixup = run.augmentation.mosaic, run.augmentation.mixup
        assert mosaic is not None and mixup is not None
        fitness = float(np.exp(-4 * ((mosaic - 0.9) ** 2 + (mixup - 0.4) ** 2)))
        run.out.mkdir(parents=True)
        (run.out / "best.pt").write_text(f"{fitness}")
        (run.out / "last.pt").write_text("optimizer")
        point = OperatingPoint(precision=fitness, recall=fitness, threshold=0.5)
        return TrainResult(
            out=run.out,
            best=run.out / "best.pt",
            last=run.out / "last.pt",
            best_map=fitness,
            best_map50=fitness,
            epochs_done=2,
            seconds=1.0,
            history=(),
            accuracy=accuracy(fitness),
            operating_point=point,
            unreadable=(),
        )


def test_genes_go_into_a_config_and_out_of_it() -> None:
    begun = config(Path("o"), learning_rate=0.002, augmentation=Augmentation(mosaic9=0.25, scale_range=(0.5, 1.2)))
    values = values_of(begun)
    assert values["learning_rate"] == 0.002 and values["augmentation.smallest_scale"] == 0.5
    assert values["augmentation.mosaic"] == 0.5 and values["warmup"] == 0.05
    for gene in genes_of(begun):
        assert gene.low <= values[gene.name] <= gene.high
    changed = with_values(
        begun, {**values, "augmentation.hue": 0.07, "weight_decay": 0.003, "augmentation.largest_scale": 1.9}
    )
    assert changed.augmentation.hue == 0.07 and changed.weight_decay == 0.003
    assert changed.augmentation.scale_range == (0.5, 1.9) and changed.augmentation.mosaic9 == 0.25
    assert values_of(changed) == {
        **values,
        "augmentation.hue": 0.07,
        "weight_decay": 0.003,
        "augmentation.largest_scale": 1.9,
    }


def test_no_gene_without_an_effect() -> None:
    cropped = config(Path("o"), augmentation=Augmentation(ssd_crop=1.0))
    assert not {"augmentation.mosaic", "augmentation.hue"} & {gene.name for gene in genes_of(cropped)}
    assert with_values(cropped, values_of(cropped)).augmentation.ssd_crop == 1.0


def test_fitness_is_the_weighted_mean() -> None:
    assert FitnessWeights().fitness(precision=0.5, recall=0.7, map=0.2) == pytest.approx(0.05 + 0.07 + 0.16)
    assert FitnessWeights(precision=2, recall=1, map=1).fitness(precision=1, recall=0, map=0) == 0.5
    for weights in ({"precision": -1.0}, {"precision": 0.0, "recall": 0.0, "map": 0.0}, {"map": float("nan")}):
        with pytest.raises(InputError):
            FitnessWeights(**weights)


def test_it_finds_better_settings_and_says_which(tmp_path: Path) -> None:
    training = FakeTraining()
    told: list[str] = []
    begun = config(tmp_path / "study", augmentation=Augmentation(mosaic=0.2, mixup=0.0))
    result = evolve(begun, num_trials=40, weights=FitnessWeights(), tell=told.append, run_training=training)
    assert result.num_trials == len(training.seen) == len(told) == 40
    assert training.seen[0].augmentation.mosaic == 0.2  # it begins with what was given
    assert result.fitness > result.first_fitness + 0.3
    # Later generations are fitter than the first, which random search would not bring about.
    with (result.out / "evolution.csv").open() as file:
        rows = list(csv.DictReader(file))
    fitness = [float(row["fitness"]) for row in rows]
    assert len(rows) == 40 and max(fitness) == pytest.approx(result.fitness)
    assert np.mean(fitness[-16:]) > np.mean(fitness[1:9]) + 0.1
    assert result.best.read_text() == str(result.fitness)
    assert not list(result.out.rglob("last.pt"))
    given = {"data": Path("data"), "model": "yolox-pico", "out": tmp_path / "next"}
    settings = merge_settings(read_settings(result.settings), given)
    assert settings.augmentation.mosaic == result.values["augmentation.mosaic"]
    assert settings.epochs == 2 and settings.val_every == 1 and not settings.resume


def test_a_killed_study_goes_on_with_the_trial_that_was_cut_off(tmp_path: Path) -> None:
    begun = config(tmp_path / "study")
    training = FakeTraining()

    def dies_in_third(run: TrainConfig) -> TrainResult:
        if len(training.seen) == 2:
            run.out.mkdir()
            (run.out / "half").write_text("half a run")
            raise KeyboardInterrupt
        return training(run)

    with pytest.raises(KeyboardInterrupt):
        evolve(begun, num_trials=5, weights=FitnessWeights(), run_training=dies_in_third)
    with pytest.raises(OutputError, match="pass --resume to go on with it"):
        evolve(begun, num_trials=5, weights=FitnessWeights(), run_training=training)
    going_on = dataclasses.replace(begun, resume=True)
    with pytest.raises(InputError, match="got epochs 3 instead of 2"):
        evolve(dataclasses.replace(going_on, epochs=3), num_trials=5, weights=FitnessWeights(), run_training=training)
    result = evolve(going_on, num_trials=5, weights=FitnessWeights(), run_training=training)
    assert result.num_trials == len(training.seen) == 5
    assert not list(result.out.rglob("half"))
    values = [tuple(values_of(run).values()) for run in training.seen]
    assert len(set(values)) == 5  # nothing is tried twice
    again = evolve(going_on, num_trials=5, weights=FitnessWeights(), run_training=training)
    assert again.fitness == result.fitness and len(training.seen) == 5
    with pytest.raises(OutputError, match="expected a folder with a study to go on with"):
        evolve(config(tmp_path / "none", resume=True), num_trials=1, weights=FitnessWeights(), run_training=training)


def test_the_seed_decides(tmp_path: Path) -> None:
    def values(name: str, seed: int) -> list[dict[str, float]]:
        training = FakeTraining()
        evolve(config(tmp_path / name, seed=seed), num_trials=4, weights=FitnessWeights(), run_training=training)
        return [values_of(run) for run in training.seen]

    first = values("a", 0)
    assert first == values("b", 0)
    assert first[1:] != values("c", 1)[1:]


def test_a_trial_that_diverges_is_unfit_and_does_not_end_the_study(tmp_path: Path) -> None:
    training = FakeTraining()

    def sometimes(run: TrainConfig) -> TrainResult:
        if not training.seen:
            return training(run)
        raise AnswerIsNoError("diverged")

    result = evolve(config(tmp_path / "a"), num_trials=3, weights=FitnessWeights(), run_training=sometimes)
    assert result.num_trials == 3 and result.fitness == result.first_fitness > 0

    def never(run: TrainConfig) -> TrainResult:
        raise AnswerIsNoError("diverged")

    with pytest.raises(AnswerIsNoError, match="no trial gave a detector: diverged"):
        evolve(config(tmp_path / "b"), num_trials=2, weights=FitnessWeights(), run_training=never)


def test_what_the_user_can_mend_ends_the_study(tmp_path: Path) -> None:
    def broken(run: TrainConfig) -> TrainResult:
        raise DatasetError("data", expected="images", got="none", fix="add some")

    with pytest.raises(DatasetError):
        evolve(config(tmp_path / "a"), num_trials=2, weights=FitnessWeights(), run_training=broken)
    assert not (tmp_path / "a").exists()  # so that it may be begun again


def test_data_to_measure_on_are_asked_for_first(shapes_dir: Path, tmp_path: Path) -> None:
    without = config(tmp_path / "a", val_split="holdout")
    with pytest.raises(InputError, match="expected data with a split 'holdout' to measure on"):
        evolve(dataclasses.replace(without, data=shapes_dir), num_trials=1, weights=FitnessWeights())
    assert not (tmp_path / "a").exists()


def test_command_line(shapes_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    arguments = ["train", "--model", "yolox-pico", "--data", str(shapes_dir), "--epochs", "1", "--imgsz", "64x96"]
    arguments += ["--batch", "8", "--workers", "0", "--device", "cpu", "--evolve", "2", "--out", str(out), "--json"]
    assert main(arguments) == 0, capfd.readouterr().err
    report = json.loads(capfd.readouterr().out)
    assert report["num_trials"] == 2 and 0 <= report["fitness"] <= 1
    assert (out / "best.pt").exists() and (out / "trial-0001" / "best.pt").exists()
    assert set(report["measures"]) == {"precision", "recall", "map", "map50"}
