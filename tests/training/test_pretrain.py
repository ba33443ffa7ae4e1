"""Classification pre-training of a backbone, from folders of images and from the objects of a detection data set."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from boxwright.cli.main import main
from boxwright.core.errors import CheckpointError, DatasetError, InputError, OutputError
from boxwright.models import DetectionModel, build_model, load_model
from boxwright.models.common.loading import read_weights
from boxwright.training import TrainConfig, train
from boxwright.training.classification_data import ClassificationImages, load_classification
from boxwright.training.config import Augmentation
from boxwright.training.cutmix import cutmix
from boxwright.training.initial_weights import start_from_weights
from boxwright.training.pretrain import BackboneClassifier, pretrain_classification

COLORS = {"blue": (250, 40, 40), "green": (40, 250, 40), "red": (40, 40, 250)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "colors"
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for name, color in COLORS.items():
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                image = random.integers(0, 60, (40, 52, 3)) + np.array(color) * 0.7
                cv2.imwrite(str(root / split / name / f"{index}.png"), image.astype(np.uint8))
    return root


def config(data: Path, out: Path, **changes: object) -> TrainConfig:
    plain = {"data": data, "model": "yolox-pico", "out": out, "epochs": 40, "size_hw": (64, 64), "batch": 8}
    colors = Augmentation(hue=0.0)
    return TrainConfig(**{**plain, "device": "cpu", "augmentation": colors, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_shares_the_label_by_area(seed: int) -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 20, 30).clone()
    before = images.clone()
    mixed, targets = cutmix(images, torch.eye(4), np.random.default_rng(seed))
    assert torch.equal(images, before)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
    for row in range(4):
        for label in range(4):
            share = (mixed[row, 0] == label).float().mean()
            assert targets[row, label].item() == pytest.approx(share.item(), abs=1e-6)
        foreign = (mixed[row, 0] != row).nonzero()
        if len(foreign):  # a rectangle
            height, width = (foreign.max(dim=0).values - foreign.min(dim=0).values + 1).tolist()
            assert len(foreign) == height * width


def test_cutmix_cuts_all_sizes() -> None:
    parts = []
    for seed in range(200):
        _, targets = cutmix(torch.zeros(2, 3, 32, 32), torch.eye(2), np.random.default_rng(seed))
        parts.append(targets[0, 0].item())
    # Uniform but for what a rectangle loses at the border, and for the batches in which an image meets itself.
    assert min(parts) < 0.3 and max(parts) == 1 and 0.5 < np.mean(parts) < 0.9


def test_folders_are_classes(folders: Path) -> None:
    data = load_classification(folders, "train")
    assert data is not None and data.class_names == ("blue", "green", "red")
    assert [sample.class_id for sample in data.samples] == [0] * 8 + [1] * 8 + [2] * 8
    val = load_classification(folders, "val")
    assert val is not None and len(val.samples) == 9
    assert load_classification(folders, "test") is None


def test_objects_are_cut_out_with_a_margin(shapes_dir: Path) -> None:
    data = load_classification(shapes_dir, "train")
    assert data is not None and data.class_names == ("circle", "square", "triangle", "star")
    images = ClassificationImages(data, size_hw=(48, 40), seed=0, augmentation=None)
    sample = data.samples[0]
    assert sample.box_xyxy is not None
    found = images.read(0, 0)
    assert found.shape == (48, 40, 3)
    left, top, right, bottom = sample.box_xyxy
    margin_x, margin_y = 0.15 * (right - left), 0.15 * (bottom - top)
    whole = cv2.imread(str(sample.path))
    part = whole[
        int(max(top - margin_y, 0)) : int(np.ceil(bottom + margin_y)),
        int(max(left - margin_x, 0)) : int(np.ceil(right + margin_x)),
    ]
    np.testing.assert_array_equal(found, cv2.resize(part, (40, 48), interpolation=cv2.INTER_AREA))
    varied = ClassificationImages(data, size_hw=(48, 40), seed=0, augmentation=Augmentation())
    np.testing.assert_array_equal(varied.read(3, 1), varied.read(3, 1))
    assert (varied.read(3, 1) != varied.read(3, 2)).any()


@pytest.mark.parametrize(("variant", "width"), [("yolox-pico", 128), ("retinanet-pico", 128)])
def test_the_classifier_reads_the_coarsest_map(variant: str, width: int) -> None:
    model = build_model(variant, num_classes=2)
    backbone = model.get_submodule(model.backbone_prefixes[0])
    classifier = BackboneClassifier(backbone, 5, torch.zeros(1, 3, 64, 64))
    assert classifier.classify.in_features == width
    assert classifier.eval()(torch.zeros(2, 3, 64, 96)).shape == (2, 5)
    with pytest.raises(InputError, match="a family whose backbone gives feature maps"):
        BackboneClassifier(torch.nn.Flatten(), 5, torch.zeros(1, 3, 8, 8))


def test_a_backbone_learns_and_a_detector_starts_from_it(folders: Path, shapes_dir: Path, tmp_path: Path) -> None:
    # Three colours are learned in a moment, whatever is mixed in.
    result = pretrain_classification(
        config(folders, tmp_path / "backbone", learning_rate=0.003, label_smoothing=0.1), show_progress=False
    )
    assert result.num_images == 24 and len(result.history) == 40
    assert result.history[-1].loss < result.history[0].loss
    assert result.accuracy is not None and result.accuracy >= 8 / 9
    written = load_model(result.backbone)
    torch.manual_seed(0)
    fresh = build_model("yolox-pico", num_classes=3).state_dict()
    moved = {
        name.partition(".")[0]
        for name, value in written.module.state_dict().items()
        if not torch.equal(value, fresh[name])
    }
    assert moved == {"backbone"}
    started = TrainConfig(
        data=shapes_dir,
        model="yolox-pico",
        out=tmp_path / "run",
        weights=result.backbone,
        epochs=1,
        size_hw=(64, 96),
        batch=8,
        workers=0,
        device="cpu",
        freeze=("backbone",),
    )
    tuned = load_model(train(started, show_progress=False).last).module.state_dict()
    name = "backbone.stages.3.0.conv.weight"
    torch.testing.assert_close(tuned[name], written.module.state_dict()[name])


def test_the_same_seed_gives_the_same_backbone(shapes_dir: Path, tmp_path: Path) -> None:
    states = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        result = pretrain_classification(config(shapes_dir, tmp_path / name, epochs=1, seed=seed), show_progress=False)
        states.append(load_model(result.backbone).module.state_dict()["backbone.stem.conv.conv.weight"])
    torch.testing.assert_close(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_backbone_is_tuned_on_at_another_size_and_with_other_classes(
    folders: Path, shapes_dir: Path, tmp_path: Path
) -> None:
    first = pretrain_classification(
        config(folders, tmp_path / "first", epochs=1, preprocess="darknet"), show_progress=False
    )
    changes = {"epochs": 1, "weights": first.backbone, "size_hw": (96, 96), "learning_rate": 1e-9}
    second = pretrain_classification(config(shapes_dir, tmp_path / "second", **changes), show_progress=False)
    before, after = load_model(first.backbone), load_model(second.backbone)
    name = "backbone.stages.3.0.conv.weight"
    torch.testing.assert_close(after.module.get_parameter(name), before.module.get_parameter(name))
    assert after.module.num_classes == 4 and after.preprocess == before.preprocess


def test_a_darknet_backbone_learns_alone_and_is_tuned_on(folders: Path, shapes_dir: Path, tmp_path: Path) -> None:
    plain = {"model": "yolov4-pico", "epochs": 1}
    first = pretrain_classification(config(folders, tmp_path / "first", **plain), show_progress=False)
    written = load_model(first.backbone)
    torch.manual_seed(0)
    fresh = build_model("yolov4-pico", num_classes=3)
    state = fresh.state_dict()
    moved = {name for name, value in written.module.state_dict().items() if not torch.equal(value, state[name])}
    beginnings = tuple(f"{prefix}." for prefix in fresh.backbone_prefixes)
    assert moved and moved == {name for name in state if name.startswith(beginnings)}
    changes = {**plain, "weights": first.backbone, "size_hw": (96, 96), "learning_rate": 1e-9}
    second = pretrain_classification(config(shapes_dir, tmp_path / "second", **changes), show_progress=False)
    name = "network.layers.26.0.weight"
    torch.testing.assert_close(load_model(second.backbone).module.state_dict()[name], written.module.state_dict()[name])


def test_the_backbone_of_a_tree_learns_from_other_classes_than_its_nodes(folders: Path, tmp_path: Path) -> None:
    tree = tmp_path / "animals.tree"
    tree.write_text("animal -1\nplant -1\ncat 0\ndog 0\n")
    small = {"model": str(tree), "epochs": 1, "size_hw": (32, 32)}
    result = pretrain_classification(config(folders, tmp_path / "a", **small), show_progress=False)
    assert result.class_names == ("blue", "green", "red")
    weights = read_weights(result.backbone, model=str(tree))
    assert weights.manifest is not None and weights.manifest.class_names == ("animal", "plant", "cat", "dog")
    module = build_model(str(tree), num_classes=4)
    assert "all layers" in start_from_weights(module, weights, weights.manifest.class_names, "backbone.pt")[0]


def test_what_is_wrong_with_the_model_is_said_before_the_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(CheckpointError, match="missing"):
        missing = tmp_path / "missing.pt"
        pretrain_classification(config(nowhere, tmp_path / "a", weights=missing), show_progress=False)
    monkeypatch.setattr(DetectionModel, "backbone_prefixes", ())
    with pytest.raises(InputError, match="a family whose backbone runs by itself"):
        pretrain_classification(config(nowhere, tmp_path / "a"), show_progress=False)


def test_images_that_do_not_decode_are_passed_over(folders: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    for split in ("train", "val"):
        for name in COLORS:
            (broken / split / name).mkdir(parents=True)
            for path in (folders / split / name).iterdir():
                (broken / split / name / path.name).write_bytes(path.read_bytes())
    bad = broken / "train" / "red" / "0.png"
    bad.write_bytes(b"no picture")
    result = pretrain_classification(config(broken, tmp_path / "run", epochs=1), show_progress=False)
    assert len(result.unreadable) == 1 and str(bad) in result.unreadable[0]


def test_what_cannot_be_learned_from(folders: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    (one / "train" / "only").mkdir(parents=True)
    cv2.imwrite(str(one / "train" / "only" / "a.png"), np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(DatasetError, match="got 1 class"):
        pretrain_classification(config(one, tmp_path / "a"), show_progress=False)
    with pytest.raises(DatasetError, match="expected a data set's folder with"):
        pretrain_classification(config(tmp_path / "nowhere", tmp_path / "b"), show_progress=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "backbone.pt").write_text("mine")
    with pytest.raises(OutputError, match=r"backbone\.pt"):
        pretrain_classification(config(folders, tmp_path / "full"), show_progress=False)
    assert (tmp_path / "full" / "backbone.pt").read_text() == "mine"


def test_command_line(shapes_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "backbone"
    arguments = ["train", "--pretrain-classification", "--cutmix", "1", "--model", "yolox-pico", "--imgsz", "64"]
    arguments += ["--data", str(shapes_dir), "--epochs", "1", "--out", str(out), "--device", "cpu", "--json"]
    assert main(arguments) == 0, capfd.readouterr().err
    report = json.loads(capfd.readouterr().out)
    assert report["backbone"] == str(out / "backbone.pt") and 0 <= report["accuracy"] <= 1
    assert json.loads((out / "pretrain.json").read_text())["num_images"] == report["num_images"]
