"""Settings from a file and from flags: typed, strict, flags before the file."""

import json
from pathlib import Path

import pytest

from boxwright.cli.main import main
from boxwright.core.errors import InputError
from boxwright.training import Augmentation, TrainConfig, train
from boxwright.training.settings import merge_settings, read_settings, settings_to_json

CONFIG = TrainConfig(
    data=Path("data"),
    model="yolox-pico",
    out=Path("runs/a"),
    size_hw=(64, 96),
    weights=Path("start.pt"),
    freeze=("backbone", "neck"),
    box_loss="ciou",
    schedule="one-cycle",
    learning_rate=0.003,
    augmentation=Augmentation(mosaic9=0.2, mixup=0.0, scale_range=(0.5, 1.5)),
)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_what_a_run_writes_is_what_it_reads(tmp_path: Path) -> None:
    path = written(tmp_path / "train.json", settings_to_json(CONFIG))
    assert merge_settings(read_settings(path), {}) == CONFIG


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "part.json", json.dumps({"epochs": 7, "augmentation": {"mixup": 0.4, "hue": 0.0}}))
    given = {"data": Path("d"), "model": "yolox-pico", "out": Path("o"), "mixup": 0.2, "mosaic9": 0.1, "batch": 4}
    merged = merge_settings(read_settings(path), given)
    assert (merged.epochs, merged.batch) == (7, 4)
    assert merged.augmentation == Augmentation(mixup=0.2, mosaic9=0.1, hue=0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"epocs": 3}', "unknown key 'epocs'"),
        ('{"augmentation": {"mosaik": 1}}', "unknown key 'mosaik'"),
        ('{"epochs": "many"}', r"epochs: expected int, got 'many'"),
        ('{"box_loss": "l1"}', "expected one of iou, giou, diou, ciou"),
        ("[1]", "expected an object"),
        ("{", "expected a JSON object of settings"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_settings(written(tmp_path / "wrong.json", text))
    assert "\n" not in str(caught.value) and "mend the file" in str(caught.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a file that can be read"):
        read_settings(tmp_path / "none.json")


def test_the_family_decides_where_nothing_was_given() -> None:
    plain = Augmentation()
    assert (plain.resolved().mosaic, plain.resolved().mixup, plain.resolved().ssd_crop) == (0.5, 0.1, 0.0)
    suggested = {"ssd_crop": 1.0, "mosaic": 0.0, "mixup": 0.0}
    assert plain.resolved(suggested) == Augmentation(mosaic=0.0, mixup=0.0, ssd_crop=1.0).resolved()
    assert plain.resolved().scale_range == (0.6, 1.4) and plain.resolved().hue == plain.change("hue") == 0.015
    still = {"scale_range": (1.0, 1.0), "hue": 0.0}
    assert (plain.resolved(still).scale_range, plain.resolved(still).hue) == ((1.0, 1.0), 0.0)
    assert (
        Augmentation(hue=0.1, scale_range=(0.5, 2.0)).resolved(still)
        == Augmentation(hue=0.1, scale_range=(0.5, 2.0)).resolved()
    )
    assert Augmentation(mixup=0.3).resolved(suggested).mixup == 0.3
    cropped = Augmentation(ssd_crop=1.0).resolved()
    assert (cropped.mosaic, cropped.mixup) == (0.0, 0.1) and cropped.resolved() == cropped
    assert Augmentation(ssd_crop=0.5).resolved(suggested).mosaic == 0.0
    assert Augmentation(mosaic9=0.8).resolved().mosaic == pytest.approx(0.2)
    with pytest.raises(InputError, match="an --ssd-crop below 1 beside it"):
        Augmentation(mosaic=0.5).resolved(suggested)


MISUSED = [
    (["--fitness", "1,1,1"], "--fitness: expected --evolve beside it"),
    (["--cutmix", "0.3"], "--cutmix: expected --pretrain-classification beside it"),
    (["--pretrain-classification", "--mosaic", "0.5", "--resume"], "got --mosaic, --resume"),
    (["--pretrain-classification", "--evolve", "3"], "got --evolve"),
    (["--evolve", "2", "--val-every", "3"], "got --val-every"),
    (["--evolve", "2", "--fitness", "1,2"], "three numbers such as 0.1,0.1,0.8"),
    (["--evolve", "2", "--fitness", "0,0,0"], "not negative and not all 0"),
    (["--mosaic", "0.8", "--mosaic9", "0.5"], "probabilities of at most 1 in sum"),
    (["--qat-engine", "onnxruntime"], "--qat-engine: expected --qat beside it"),
    (["--layer-decay", "0"], "a number in (0, 1]"),
    (["--freeze", "nothing"], "no parameter of yolox-pico"),
    (["--anchors", "kmeans"], "a family whose anchors depend on the data"),
]


@pytest.mark.parametrize(("arguments", "message"), MISUSED)
def test_flags_that_do_not_go_together(
    shapes_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    plain = ["train", "--model", "yolox-pico", "--data", str(shapes_dir), "--out", str(tmp_path / "run")]
    assert main([*plain, "--imgsz", "64", "--device", "cpu", *arguments]) == 2
    told = capfd.readouterr().err
    assert message in told
    assert told.strip().splitlines()[-1].startswith("boxwright: ")


@pytest.mark.parametrize("has_qat", [False, True])
def test_an_engine_to_train_for_needs_qat_from_wherever(
    shapes_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], has_qat: bool
) -> None:
    path = written(tmp_path / "part.json", json.dumps({"qat": has_qat, "epochs": 1}))
    arguments = ["train", "--model", "no-such-model", "--data", str(shapes_dir), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--config", str(path), "--qat-engine", "tensorrt"]) == 2
    assert ("--qat-engine: expected --qat beside it" in capfd.readouterr().err) == (not has_qat)


def test_every_extra_reaches_the_run_from_the_command_line(
    shapes_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "part.json", json.dumps({"weight_decay": 0.001, "epochs": 9}))
    out = tmp_path / "run"
    arguments = ["train", "--model", "yolox-pico", "--data", str(shapes_dir), "--out", str(out), "--imgsz", "64x96"]
    arguments += ["--config", str(path), "--epochs", "1", "--batch", "12", "--device", "cpu", "--workers", "0"]
    arguments += ["--schedule", "one-cycle", "--mosaic9", "0.3", "--copy-paste", "0.4", "--multi-scale", "0.5"]
    arguments += ["--self-adversarial", "0.5", "--label-smoothing", "0.1", "--box-loss", "giou", "--drop-block", "0.1"]
    arguments += ["--cross-iteration-norm", "3", "--freeze", "backbone.stem,neck", "--freeze", "head.stems"]
    arguments += ["--layer-decay", "0.7", "--ssd-crop", "0.25", "--json"]
    assert main(arguments) == 0, capfd.readouterr().err
    written_settings = json.loads((out / "train.json").read_text())
    expected = {
        "epochs": 1,
        "weight_decay": 0.001,
        "batch": 12,
        "size_hw": [64, 96],
        "schedule": "one-cycle",
        "multi_scale": 0.5,
        "self_adversarial": 0.5,
        "label_smoothing": 0.1,
        "box_loss": "giou",
        "drop_block": 0.1,
        "cross_iteration_norm": 3,
        "freeze": ["backbone.stem", "neck", "head.stems"],
        "layer_decay": 0.7,
        "anchors": "family",
    }
    assert {name: written_settings[name] for name in expected} == expected
    varied = written_settings["augmentation"]
    assert (varied["mosaic9"], varied["copy_paste"], varied["ssd_crop"], varied["mosaic"]) == (0.3, 0.4, 0.25, None)
    report = capfd.readouterr()
    assert json.loads(report.out)["epochs_done"] == 1
    for told in ("frozen", "DropBlock follows", "look back over 3 batches", "input sizes from"):
        assert told in report.err, told


def test_an_unknown_model_is_refused_before_anything_is_read_or_written(tmp_path: Path) -> None:
    config = TrainConfig(data=tmp_path / "absent", model="abacus-nano", out=tmp_path / "run")
    with pytest.raises(InputError, match="abacus-nano"):
        train(config, show_progress=False)
    assert not (tmp_path / "run").exists()
