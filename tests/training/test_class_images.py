"""Images of which the class alone is known: how they come into a training, and what is refused."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from boxwright.cli.main import main
from boxwright.core.errors import DatasetError, InputError
from boxwright.core.preprocess import Preprocess
from boxwright.data import load_dataset
from boxwright.models import build_model, load_model
from boxwright.training.class_images import load_class_images
from boxwright.training.classification_data import ClassificationData
from boxwright.training.config import Augmentation
from boxwright.training.dataset import Collate, SampleKey, TrainDataset
from boxwright.training.multi_scale import resize_batch
from region_cfg import region_cfg

SIZE_HW = (64, 96)
RED_BGR = (0, 0, 255)
# round: circle; angular: square, triangle, star (red_star, blue_star). Only nodes of the data have boxes.
TREE = "round -1\nangular -1\ncircle 0\nsquare 1\ntriangle 1\nstar 1\nred_star 5\nblue_star 5\n"
NAMES = tuple(line.split()[0] for line in TREE.splitlines())
CFG = region_cfg(size_hw=SIZE_HW, stride=8, classes=len(NAMES), head_lines="tree=a.tree")


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """Three red stars and a blue one, as images of one colour, and a file that is no image."""
    for name, color, count in (("red_star", RED_BGR, 3), ("blue_star", (255, 0, 0), 1)):
        folder = tmp_path / "stars" / "train" / name
        folder.mkdir(parents=True)
        for index in range(count):
            cv2.imwrite(str(folder / f"{index}.png"), np.full((40, 50, 3), color, np.uint8))
    (tmp_path / "stars" / "train" / "blue_star" / "9.png").write_text("no image")
    return tmp_path / "stars"


@pytest.fixture
def network(tmp_path: Path) -> Path:
    (tmp_path / "net.cfg").write_text(CFG)
    (tmp_path / "a.tree").write_text(TREE)
    return tmp_path / "net.cfg"


def read(folder: Path, network: Path) -> ClassificationData:
    return load_class_images(folder, "train", load_model(network).module, NAMES)


def test_they_come_after_the_images_with_boxes_and_stay_alone(
    class_folder: Path, network: Path, shapes_dir: Path
) -> None:
    located = load_dataset(shapes_dir, "train", class_names=NAMES)
    samples = TrainDataset(
        located,
        preprocess=Preprocess(size_hw=SIZE_HW),
        size_hw=SIZE_HW,
        augmentation=Augmentation(mosaic=1.0, mixup=1.0, copy_paste=1.0, hue=0.0, saturation=0.0, brightness=0.0),
        seed=3,
        class_images=read(class_folder, network),
    )
    assert len(samples) == len(located) + 5
    # In alphabetical order: the readable blue star, the file that is none, three red stars.
    keys = [SampleKey(0, len(located) + index, strong=True) for index in range(5)]
    blue, unreadable, *red = [samples[key] for key in keys]
    for sample, name in [(blue, "blue_star"), *((sample, "red_star") for sample in red)]:
        assert sample.is_class_only and sample.labeled.class_ids.tolist() == [NAMES.index(name)]
        assert sample.labeled.size_hw == SIZE_HW
        pixels = sample.labeled.image.reshape(-1, 3)
        assert (pixels == pixels[0]).all()
    assert not unreadable.is_class_only
    assert "9.png" in unreadable.unreadable[0]
    # No mosaic, no blend, no pasted box of an image with boxes comes from them: their classes have none.
    for index in range(len(located)):
        with_boxes = samples[SampleKey(1, index, strong=True)]
        assert not with_boxes.is_class_only
        assert not set(with_boxes.labeled.class_ids.tolist()) & {NAMES.index("red_star"), NAMES.index("blue_star")}

    batch = Collate(preprocess=Preprocess(size_hw=SIZE_HW))([blue, samples[SampleKey(0, 0, strong=True)], *red])
    assert batch.targets.is_class_only == (True, False, True, True, True)
    assert resize_batch(batch, (128, 64)).targets.is_class_only == batch.targets.is_class_only


def test_a_run_on_both_kinds(
    class_folder: Path, network: Path, shapes_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--model", str(network), "--data", str(shapes_dir), "--class-images", str(class_folder)]
    # Six of the 29 images are a batch: in two epochs each star is seen.
    options = ["--epochs", "2", "--batch", "6", "--workers", "0", "--val-every", "0", "--multi-scale", "0.4"]
    assert main([*arguments, *options, "--out", str(tmp_path / "run"), "--json"]) == 0
    printed = capfd.readouterr()
    assert f"{class_folder}: 5 images that teach their class alone" in " ".join(printed.err.split())
    assert json.loads(printed.out)["history"][-1]["step"] == 2 * (29 // 6)
    trained = load_model(tmp_path / "run" / "last.pt")
    assert trained.class_names == NAMES
    assert all(torch.isfinite(value).all() for value in trained.module.state_dict().values())


def test_they_change_what_is_learned(class_folder: Path, network: Path, shapes_dir: Path) -> None:
    """After steps on red and blue stars alone, the network tells the two apart, which it has no boxes of."""
    torch.manual_seed(0)
    (class_folder / "train" / "blue_star" / "9.png").unlink()
    module = load_model(network).module.train()
    preprocess = Preprocess(size_hw=SIZE_HW, scale=1 / 255)
    samples = TrainDataset(
        load_dataset(shapes_dir, "train", class_names=NAMES),
        preprocess=preprocess,
        size_hw=SIZE_HW,
        augmentation=Augmentation(hue=0.0, saturation=0.0, brightness=0.0),
        seed=0,
        class_images=read(class_folder, network),
    )
    batch = Collate(preprocess=preprocess)([samples[SampleKey(0, index, strong=True)] for index in range(24, 28)])
    assert batch.targets.is_class_only == (True,) * 4
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    first = None
    for _ in range(40):
        parts = module.training_loss(batch.images, batch.targets)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        first = parts["class"].item() if first is None else first
    assert first is not None and parts["class"].item() < 0.2 * first


def test_a_family_that_needs_boxes_refuses_them(class_folder: Path) -> None:
    with pytest.raises(InputError, match=r"--class-images.*yolov5-pico"):
        load_class_images(class_folder, "train", build_model("yolov5-pico", num_classes=8), NAMES)


def test_unknown_classes_are_named(class_folder: Path, network: Path) -> None:
    with pytest.raises(DatasetError, match=r"among the 2 of the detector, got blue_star;"):
        load_class_images(class_folder, "train", load_model(network).module, ("red_star", "star"))


def test_a_missing_split_or_folder_is_named(class_folder: Path, network: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="'val', got none"):
        load_class_images(class_folder, "val", load_model(network).module, NAMES)
    with pytest.raises(DatasetError, match="absent"):
        read(tmp_path / "absent", network)
