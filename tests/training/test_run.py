"""Whole runs on a few small images: what they write, how they go on after a kill, how they refuse."""

import csv
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from boxwright.cli.main import main
from boxwright.core.errors import AnswerIsNoError, BoxwrightError, InputError
from boxwright.models import build_model, darknet, load_model
from boxwright.models.common.registry import NetworkFile, families
from boxwright.training import TrainConfig, TrainResult, train
from boxwright.training.config import Augmentation
from boxwright.training.engine import choose_device, lightning_precision
from boxwright.training.lightning_module import TrainingModule
from boxwright.training.state import read_saved_run
from region_cfg import region_cfg
from tolerances import RESUMED_WEIGHTS

SIZE_HW = (64, 96)


def config(data: Path, out: Path, **changes: Any) -> TrainConfig:
    plain: dict[str, Any] = {
        "data": data,
        "model": "yolox-pico",
        "out": out,
        "epochs": 4,
        "size_hw": SIZE_HW,
        "batch": 8,
        "workers": 0,
        "device": "cpu",
        "val_every": 0,
    }
    return TrainConfig(**{**plain, **changes})


@pytest.fixture(scope="module")
def straight_run(shapes_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    out = tmp_path_factory.mktemp("runs") / "straight"
    return train(config(shapes_dir, out, val_every=2), show_progress=False)


def read_rows(result: TrainResult) -> list[dict[str, str]]:
    with (result.out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_writes_what_it_says(straight_run: TrainResult) -> None:
    assert straight_run.epochs_done == 4
    assert [record.step for record in straight_run.history] == [3, 6, 9, 12]
    assert [record.map is not None for record in straight_run.history] == [False, True, False, True]
    assert straight_run.best_map == max(record.map or 0 for record in straight_run.history)
    rows = read_rows(straight_run)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[0]["map"] == "" and float(rows[1]["map"]) >= 0
    assert rows[0]["loss_l1"] == "" and float(rows[3]["loss_l1"]) > 0  # the final phase has it
    assert list((straight_run.out / "tensorboard").glob("events*"))
    settings = json.loads((straight_run.out / "train.json").read_text())
    assert settings["model"] == "yolox-pico" and settings["seed"] == 0
    assert not [path for path in straight_run.out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoints_hold_everything_and_need_no_pickle(straight_run: TrainResult, name: str) -> None:
    path = getattr(straight_run, name)
    content = torch.load(path, weights_only=True)
    assert content["boxwright"] == {"schema": 1, "family": "yolox", "variant": "yolox-pico"}
    if name == "last":
        assert {"optimizer", "ema", "trainer"} <= content.keys()
    loaded = load_model(path)
    assert loaded.class_names == ("circle", "square", "triangle", "star")
    assert loaded.size_hw == SIZE_HW
    assert loaded.manifest().stage == "raw"
    assert loaded.module(torch.zeros(1, 3, *SIZE_HW))["class_logits"].shape[2] == 4


def assert_same_weights(one: Path, two: Path) -> None:
    first, second = torch.load(one, weights_only=True), torch.load(two, weights_only=True)
    for part in ("model", "trainer"):
        states = [content[part] if part == "model" else content[part]["model"] for content in (first, second)]
        for name, tensor in states[0].items():
            difference = (tensor.double() - states[1][name].double()).abs().max().item()
            assert difference <= RESUMED_WEIGHTS, (part, name, difference)


def test_a_killed_run_goes_on_to_the_same_result(straight_run: TrainResult, shapes_dir: Path, tmp_path: Path) -> None:
    """A process is killed in the midst of its third epoch or so, and another one finishes its work."""
    out = tmp_path / "killed"
    script = (
        "import sys, time; from pathlib import Path; from boxwright.training import *; "
        "from boxwright.training.lightning_module import TrainingModule as M; plain = M.training_step\n"
        "def slow(self, batch, index):\n"
        "    if self.epoch >= 2: time.sleep(600)\n"
        "    return plain(self, batch, index)\n"
        "M.training_step = slow\n"
        "train(TrainConfig(data=Path(sys.argv[1]), out=Path(sys.argv[2]), model='yolox-pico', epochs=4, batch=8, "
        "size_hw=(64, 96), workers=0, device='cpu', val_every=2))\n"
    )
    arguments = [sys.executable, "-c", script, str(shapes_dir), str(out)]
    process = subprocess.Popen(arguments, env=dict(os.environ), stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 900
        while not _has_rows(out / "metrics.csv", 2) or not (out / "last.pt").exists():
            assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
            assert time.monotonic() < deadline, "the run does not get on"
            time.sleep(0.2)
        # The row is written before the checkpoint.
        while json.loads(torch.load(out / "last.pt", weights_only=True)["trainer"]["state"])["epochs_done"] < 2:
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    resumed = train(config(shapes_dir, out, val_every=2, resume=True), show_progress=False)
    assert resumed.epochs_done == 4
    assert_same_weights(straight_run.last, resumed.last)
    for mine, theirs in zip(resumed.history, straight_run.history, strict=True):
        assert (mine.epoch, mine.step, mine.learning_rate) == (theirs.epoch, theirs.step, theirs.learning_rate)
        assert mine.losses == pytest.approx(theirs.losses, abs=1e-3)
        assert mine.map == pytest.approx(theirs.map, abs=1e-3)
    assert [row["epoch"] for row in read_rows(resumed)] == ["1", "2", "3", "4"]


def _has_rows(path: Path, count: int) -> bool:
    return path.exists() and len(path.read_text().splitlines()) > count


def test_a_finished_run_has_nothing_left_to_do(straight_run: TrainResult, shapes_dir: Path) -> None:
    before = straight_run.last.read_bytes()
    again = train(config(shapes_dir, straight_run.out, val_every=2, resume=True), show_progress=False)
    assert again.history == straight_run.history and again.best_map == straight_run.best_map
    assert straight_run.last.read_bytes() == before


def test_other_settings_are_no_resumption(straight_run: TrainResult, shapes_dir: Path) -> None:
    changed = config(shapes_dir, straight_run.out, resume=True, batch=4, seed=1)
    with pytest.raises(InputError, match="got batch 4 instead of 8, seed 1 instead of 0"):
        train(changed, show_progress=False)


def test_a_run_of_before_a_setting_was_there_is_resumed(
    straight_run: TrainResult, shapes_dir: Path, tmp_path: Path
) -> None:
    """It had what is the default now, and is resumed with that alone."""
    content = torch.load(straight_run.last, weights_only=True)
    settings = json.loads(content["trainer"]["config"])
    del settings["qat_engine"], settings["label_smoothing"]
    content["trainer"]["config"] = json.dumps(settings)
    torch.save(content, tmp_path / "last.pt")
    again = dataclasses.replace(config(shapes_dir, tmp_path, resume=True), val_every=2)
    assert read_saved_run(again).state.is_finished
    with pytest.raises(InputError, match=r"got label_smoothing 0\.1 instead of 0\.0;"):
        read_saved_run(dataclasses.replace(again, label_smoothing=0.1))


def test_nothing_to_resume(shapes_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a run with last\.pt, got none; start it without --resume"):
        train(config(shapes_dir, tmp_path / "none", resume=True), show_progress=False)


def test_a_run_is_not_overwritten(straight_run: TrainResult, shapes_dir: Path) -> None:
    with pytest.raises(InputError, match="pass --resume to go on with that run, or another --out"):
        train(config(shapes_dir, straight_run.out), show_progress=False)


def test_fine_tuning_keeps_what_does_not_depend_on_the_classes(
    straight_run: TrainResult, shapes_dir: Path, tmp_path: Path
) -> None:
    data = tmp_path / "two"
    shutil.copytree(shapes_dir, data)
    for path in (data / "annotations").glob("*.json"):
        document = json.loads(path.read_text())
        document["categories"] = [{"id": entry["id"], "name": entry["name"]} for entry in document["categories"][:2]]
        kept = {entry["id"] for entry in document["categories"]}
        document["annotations"] = [entry for entry in document["annotations"] if entry["category_id"] in kept]
        path.write_text(json.dumps(document))
    started = config(data, tmp_path / "tuned", weights=straight_run.best, epochs=1, learning_rate=1e-9, ema=False)
    tuned = load_model(train(started, show_progress=False).last).module.state_dict()
    source = load_model(straight_run.best).module.state_dict()
    changed = {name.rsplit(".", 1)[0] for name in source if source[name].shape != tuned[name].shape}
    assert changed == {f"head.class_logits.{level}" for level in range(3)}
    weights = [name for name in source if name.endswith("conv.weight")]
    assert len(weights) > 50
    for name in weights:
        torch.testing.assert_close(tuned[name], source[name], atol=1e-6, rtol=0)


def test_identity_batchnorm_is_mended_before_training(shapes_dir: Path, tmp_path: Path) -> None:
    module = build_model("yolox-pico", num_classes=4)
    theirs = _authors_names(module.state_dict())
    torch.save({"model": theirs}, tmp_path / "folded.pth")
    result = train(
        config(shapes_dir, tmp_path / "run", weights=tmp_path / "folded.pth", epochs=1, learning_rate=1e-9),
        show_progress=False,
    )
    norm = load_model(result.last).module.get_submodule("backbone.stem.conv.bn")
    assert norm.running_mean.abs().max() > 0.1  # type: ignore[union-attr,operator]


def _authors_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our key names to those of the authors' files, by trying what the import makes of each candidate."""
    family: Any = families()["yolox"]
    replacements = [
        ("neck.lateral_p5.", "backbone.lateral_conv0."),
        ("neck.top_down_p4.", "backbone.C3_p4."),
        ("neck.lateral_p4.", "backbone.reduce_conv1."),
        ("neck.top_down_p3.", "backbone.C3_p3."),
        ("neck.downsample_p3.", "backbone.bu_conv2."),
        ("neck.bottom_up_p4.", "backbone.C3_n3."),
        ("neck.downsample_p4.", "backbone.bu_conv1."),
        ("neck.bottom_up_p5.", "backbone.C3_n4."),
        ("backbone.stem.", "backbone.backbone.stem."),
        *((f"backbone.stages.{index}.", f"backbone.backbone.dark{index + 2}.") for index in range(4)),
        ("head.class_convs.", "head.cls_convs."),
        ("head.box_convs.", "head.reg_convs."),
        ("head.class_logits.", "head.cls_preds."),
        ("head.box_regression.", "head.reg_preds."),
        ("head.objectness.", "head.obj_preds."),
    ]
    renamed = {}
    for name, tensor in state.items():
        for ours, theirs in replacements:
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        renamed[name.replace(".blocks.", ".m.")] = tensor
    assert set(family.import_checkpoint(renamed, "yolox-pico").state) == set(state)
    return renamed


def test_the_time_limit_ends_a_run_with_something_to_show(shapes_dir: Path, tmp_path: Path) -> None:
    result = train(config(shapes_dir, tmp_path / "short", epochs=500, max_minutes=1e-6), show_progress=False)
    assert result.epochs_done == 1 and result.best.exists()
    assert result.best_map is not None
    again = train(
        config(shapes_dir, tmp_path / "short", epochs=500, max_minutes=1e-6, resume=True), show_progress=False
    )
    assert again.epochs_done == 1


def test_a_wild_learning_rate_is_said_to_be_one(shapes_dir: Path, tmp_path: Path) -> None:
    wild = config(shapes_dir, tmp_path / "wild", learning_rate=1e30, optimizer="sgd", clip_norm=0.0, warmup=0.0)
    with pytest.raises(AnswerIsNoError, match="training diverged: expected a finite loss"):
        train(wild, show_progress=False)
    assert not (tmp_path / "wild" / "last.pt").exists()


def test_problems_are_told_and_do_not_end_the_run(
    shapes_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "broken"
    shutil.copytree(shapes_dir, data)
    path = next((data / "annotations").glob("*train*.json"))
    document = json.loads(path.read_text())
    document["annotations"][0]["bbox"][2:] = [0, 0]
    path.write_text(json.dumps(document))
    images = sorted(path for path in (data / "train").iterdir())
    images[3].write_bytes(images[3].read_bytes()[:400])
    result = train(config(data, tmp_path / "run", epochs=1))
    told = capfd.readouterr().err
    assert "zero_area_box" in told and "has no area" in told
    assert f"passed over: {images[3]}" in told
    assert "1 training images could not be read" in told
    assert len(result.unreadable) == 1


def test_without_a_val_split_the_last_weights_are_the_best(shapes_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "train_only"
    shutil.copytree(shapes_dir, data)
    for name in ("annotations/instances_val.json", "val", "annotations/instances_test.json", "test"):
        target = data / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    result = train(config(data, tmp_path / "run", epochs=2), show_progress=False)
    assert result.best_map is None and result.accuracy is None
    torch.testing.assert_close(
        torch.load(result.best, weights_only=True)["model"], torch.load(result.last, weights_only=True)["model"]
    )


# Each changes the weights that a run ends with, and none may be ignored.
EXTRAS: dict[str, dict[str, Any]] = {
    "mosaic9": {"augmentation": Augmentation(mosaic9=1.0, mosaic=0.0)},
    "copy_paste": {"augmentation": Augmentation(copy_paste=1.0)},
    "ssd_crop": {"augmentation": Augmentation(ssd_crop=1.0)},
    "schedule": {"schedule": "one-cycle"},
    "one_cycle_sgd": {"schedule": "one-cycle", "optimizer": "sgd"},
    "freeze": {"freeze": ("backbone",)},
    "layer_decay": {"layer_decay": 0.5},
    "label_smoothing": {"label_smoothing": 0.2},
    "box_loss": {"box_loss": "ciou"},
    "multi_scale": {"multi_scale": 0.5},
    "drop_block": {"drop_block": 0.2},
    "cross_iteration_norm": {"cross_iteration_norm": 3},
    "self_adversarial": {"self_adversarial": 1.0},
}


@pytest.fixture(scope="module")
def short_run(shapes_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    out = tmp_path_factory.mktemp("runs") / "short"
    return train(config(shapes_dir, out, epochs=2, val_split="none"), show_progress=False)


# Those that keep something from step to step or draw in it; the others are held by tests of their own, too.
WITH_STATE = ("drop_block", "multi_scale", "cross_iteration_norm", "self_adversarial", "one_cycle_sgd")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in WITH_STATE else [pytest.mark.full]) for name in EXTRAS]
)
def test_every_extra_changes_the_run_and_survives_a_resume(
    short_run: TrainResult, shapes_dir: Path, tmp_path: Path, name: str
) -> None:
    """Two epochs in one go and in two processes' worth reach the same weights, which are not those without it."""
    changes = {"epochs": 2, "val_split": "none", **EXTRAS[name]}
    through = train(config(shapes_dir, tmp_path / "through", **changes), show_progress=False)
    plain = torch.load(short_run.last, weights_only=True)["trainer"]["model"]
    found = torch.load(through.last, weights_only=True)["trainer"]["model"]
    assert found.keys() == plain.keys()
    assert any(not torch.allclose(found[key].double(), plain[key].double(), atol=1e-6) for key in plain), name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", _killed_in_second_epoch(TrainingModule.training_step))
        with pytest.raises(_KilledError):
            train(config(shapes_dir, tmp_path / "killed", **changes), show_progress=False)
    resumed = train(config(shapes_dir, tmp_path / "killed", resume=True, **changes), show_progress=False)
    assert_same_weights(through.last, resumed.last)
    loaded = load_model(resumed.best).module
    assert not [layer for layer in loaded.modules() if type(layer).__name__ in ("DropBlock", "CrossIterationNorm2d")]


def test_extras_together_in_mixed_precision(shapes_dir: Path, tmp_path: Path) -> None:
    together: dict[str, Any] = {"multi_scale": 0.5, "drop_block": 0.1, "cross_iteration_norm": 2, "layer_decay": 0.8}
    mixed = {"precision": "bf16", "self_adversarial": 0.7, "label_smoothing": 0.1, "schedule": "one-cycle"}
    result = train(config(shapes_dir, tmp_path / "run", epochs=2, **together, **mixed), show_progress=False)
    assert result.best_map is not None and result.operating_point is not None
    model = torch.load(result.last, weights_only=True)["trainer"]["model"]
    assert all(tensor.isfinite().all() for tensor in model.values())


class _KilledError(Exception):
    pass


def _killed_in_second_epoch(plain: Any) -> Any:
    def step(self: TrainingModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.epoch == 1 and batch_idx == 1:
            raise _KilledError
        result: torch.Tensor = plain(self, batch, batch_idx)
        return result

    return step


def test_a_frozen_backbone_stays_what_it_was(straight_run: TrainResult, shapes_dir: Path, tmp_path: Path) -> None:
    frozen = config(shapes_dir, tmp_path / "frozen", weights=straight_run.best, epochs=2, freeze=("backbone",))
    before = load_model(straight_run.best).module.state_dict()
    after = load_model(train(frozen, show_progress=False).last).module.state_dict()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"neck", "head"}


def test_the_file_of_a_network_is_opened_once(
    shapes_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    plain = darknet.open_network

    def counted(path: Path) -> NetworkFile:
        opened.append(path)
        return plain(path)

    monkeypatch.setattr(darknet, "open_network", counted)
    cfg = tmp_path / "net.cfg"
    cfg.write_text(region_cfg(size_hw=SIZE_HW, stride=16, classes=4, head_lines=""))
    result = train(config(shapes_dir, tmp_path / "run", model=str(cfg), epochs=1, size_hw=None), show_progress=False)
    assert opened == [cfg] and load_model(result.last).size_hw == SIZE_HW


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": "yolox-q"}, "expected one of"),
    ({"size_hw": (60, 96)}, "multiples of 32"),
    ({"weights": Path("none.pth")}, "no such file"),
    ({"preprocess": "none"}, "expected one of yolox"),
    ({"freeze": ("stem",)}, "got no parameter of yolox-pico"),
    ({"anchors": "kmeans"}, "expected a family whose anchors depend on the data, got yolox-pico"),
    ({"multi_scale": 0.1}, "that reaches another multiple of 32"),
    ({"data": Path("nowhere")}, "nowhere"),
    ({"train_split": "extra"}, "expected one of"),
    ({"device": "cuda:7"}, "a CUDA device that PyTorch sees"),
    ({"device": "toaster"}, "expected auto, cpu, cuda"),
    ({"precision": "fp16"}, "fp32 or bf16 on the CPU"),
    ({"out": Path("/proc/run")}, "expected a path that can be written|room and a working file system"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(
    shapes_dir: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BoxwrightError, match=message) as caught:
        train(config(**{"data": shapes_dir, "out": tmp_path / "run", **changes}), show_progress=False)
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


WRONG_VALUES: list[dict[str, Any]] = [
    {"epochs": 0},
    {"batch": 0},
    {"optimizer": "adam"},
    {"precision": "int8"},
    {"learning_rate": -1.0},
    {"max_minutes": 0.0},
    {"workers": -1},
    {"warmup": 0.6, "final_phase": 0.6},
    {"weight_decay": -0.1},
    {"schedule": "linear"},
    {"layer_decay": 0.0},
    {"label_smoothing": 1.0},
    {"box_loss": "l1"},
    {"multi_scale": 1.0},
    {"drop_block": 1.0},
    {"cross_iteration_norm": 0},
    {"self_adversarial": 1.1},
    {"anchors": "mine"},
    {"freeze": ("",)},
]


@pytest.mark.parametrize("changes", WRONG_VALUES)
def test_wrong_values_are_refused_at_once(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        config(Path("data"), Path("out"), **changes)


@pytest.mark.parametrize(
    "changes", [{"mosaic": 1.5}, {"mosaic": 0.7, "mosaic9": 0.5}, {"scale_range": (2.0, 1.0)}, {"degrees": 200.0}]
)
def test_wrong_augmentations_are_refused_at_once(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Augmentation(**changes)


def test_workers_read_the_same_images(straight_run: TrainResult, shapes_dir: Path, tmp_path: Path) -> None:
    result = train(config(shapes_dir, tmp_path / "workers", workers=2, val_every=2), show_progress=False)
    assert_same_weights(straight_run.last, result.last)


def test_sgd_without_average_in_mixed_precision(shapes_dir: Path, tmp_path: Path) -> None:
    plain = config(shapes_dir, tmp_path / "sgd", optimizer="sgd", ema=False, epochs=1, precision="bf16")
    result = train(plain, show_progress=False)
    content = torch.load(result.last, weights_only=True)
    assert "ema" not in content
    torch.testing.assert_close(content["model"], content["trainer"]["model"])


def test_precision_by_device() -> None:
    assert lightning_precision("auto", torch.device("cpu")) == "32-true"
    assert lightning_precision("bf16", torch.device("cpu")) == "bf16-mixed"
    assert lightning_precision("fp16", torch.device("cuda")) == "16-mixed"
    assert choose_device("cpu").type == "cpu"


def test_command_line(shapes_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--model", "yolox-pico", "--data", str(shapes_dir), "--epochs", "1", "--imgsz", "64x96"]
    status = main([*arguments, "--batch", "8", "--workers", "0", "--out", str(out), "--json"])
    printed = capfd.readouterr()
    assert status == 0
    report = json.loads(printed.out)
    assert report["best"] == str(out / "best.pt") and report["epochs_done"] == 1
    assert 0 <= report["map"] <= 1 and len(report["history"]) == 1
    assert "epoch 1/1" in printed.err
    assert main([*arguments, "--out", str(out)]) == 2
    assert "pass --resume" in capfd.readouterr().err


def test_the_time_limit_can_be_counted_on_another_clock(shapes_dir: Path, tmp_path: Path) -> None:
    """Each look at this clock is a minute later than the one before."""
    minutes = itertools.count(step=60.0)
    settings = config(shapes_dir, tmp_path / "ticks", epochs=500, max_minutes=3.0)
    result = train(settings, show_progress=False, now=lambda: next(minutes))
    assert result.epochs_done == 1
    assert result.seconds >= 180 and result.seconds % 60 == 0


def test_time_that_ends_between_two_epochs_leaves_what_any_end_leaves(shapes_dir: Path, tmp_path: Path) -> None:
    """The clock jumps to the end when the first epoch has been logged, which then was not known to be the last."""
    out = tmp_path / "between"
    settings = config(shapes_dir, out, epochs=500, max_minutes=3.0, val_every=0)
    result = train(settings, show_progress=False, now=lambda: 1e6 if (out / "metrics.csv").exists() else 0.0)
    assert [record.map is None for record in result.history] == [True, False]
    assert result.best.exists() and result.best_map is not None


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config(Path("d"), Path("o")).epochs = 3  # type: ignore[misc]
