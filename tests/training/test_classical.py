"""Cascades and HOG from an annotated data set, by command: what is cut out, what is written, what is refused."""

import dataclasses
import functools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from boxwright.cli.main import main
from boxwright.core.images import read_image
from boxwright.data import load_dataset
from boxwright.models.classical.backgrounds import largest_free_part
from boxwright.models.classical.hog import HogSettings
from boxwright.models.classical.viola_jones import CascadeSettings
from boxwright.runtimes.detector import Detector
from boxwright.training import classical

pytest.importorskip("sklearn")


# Boxes in an image of 40 rows and 60 columns, and the largest part that they leave.
FREE_PARTS = [
    ([], (0, 0, 60, 40)),
    ([[0, 0, 60, 40]], (0, 0, 0, 0)),
    ([[20, 0, 30, 40]], (30, 0, 60, 40)),
    ([[0, 10, 60, 12.5]], (0, 13, 60, 40)),  # a started pixel is taken
    ([[10, 10, 15, 15], [50, 30, 55, 35]], (15, 0, 50, 40)),
]


@pytest.mark.parametrize(("boxes", "expected"), FREE_PARTS)
def test_the_largest_part_without_objects(boxes: list[list[float]], expected: tuple[int, ...]) -> None:
    assert largest_free_part((40, 60), np.array(boxes, dtype=np.float32).reshape(-1, 4)) == expected


def test_large_images_are_looked_at_in_cells() -> None:
    left, top, right, bottom = largest_free_part((480, 640), np.array([[101, 0, 139, 480]], dtype=np.float32))
    assert (top, right, bottom) == (0, 640, 480) and 139 <= left <= 150


def crosses(folder: Path, count: int) -> Path:
    """YOLO data: a bright cross among rectangles in each image."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            image = random.normal(60, 8, (96, 112, 3))
            for left, top, width, height in random.integers(4, 40, (10, 4)):
                left, top = 2 * left, int(1.7 * top)
                image[top : top + height, left : left + width] = random.integers(0, 255)
            x, y = int(random.integers(4, 60)), int(random.integers(4, 40))
            image[y + 16 : y + 32, x : x + 48] = image[y : y + 48, x + 16 : x + 32] = random.integers(150, 250, 3)
            cv2.imwrite(str(folder / "images" / split / f"{number}.png"), np.clip(image, 0, 255).astype(np.uint8))
            label = f"0 {(x + 24) / 112} {(y + 24) / 96} {48 / 112} {48 / 96}\n"
            (folder / "labels" / split / f"{number}.txt").write_text(label)
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [red cross]\n")
    return folder / "data.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crosses(tmp_path_factory.mktemp("crosses"), 30)


def centres(boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    return result


@pytest.mark.parametrize(
    ("model", "window", "file"), [("viola-jones", "24", "haarcascade_red cross.xml"), ("hog", "48", "red cross.xml")]
)
def test_finds_what_it_was_trained_on(
    model: str,
    window: str,
    file: str,
    data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Small ones, so that it takes seconds.
    less = {"num_features": 400, "num_negatives": 300, "target_false_positive_rate": 0.01}
    monkeypatch.setattr(classical, "CascadeSettings", functools.partial(CascadeSettings, **less))
    monkeypatch.setattr(classical, "HogSettings", functools.partial(HogSettings, num_negatives=300))
    arguments = ["train", "--model", model, "--data", str(data), "--out", str(tmp_path), "--imgsz", window, "--json"]
    assert main(arguments) == 0
    out, err = capfd.readouterr()
    document = json.loads(out)
    (detector,) = document["detectors"]
    assert detector["class_name"] == "red cross"
    # Each also a little aside, four times; HOG's once more at another scale.
    assert detector["num_positives"] == (150 if model == "viola-jones" else 300)
    assert detector["num_backgrounds"] > 0 and Path(detector["file"]).name == file
    assert detector["window_hw"] == [int(window)] * 2 and (len(detector["stages"]) > 0) == (model == "viola-jones")
    val = load_dataset(data, "val")
    with Detector(detector["file"], conf=0.0) as opened:
        assert opened.class_names == ("red cross",)
        num_near = 0
        for sample in val.samples:
            found = opened(read_image(sample.image_path))
            if len(found):
                distance = np.abs(centres(found.boxes_xyxy) - centres(sample.boxes_xyxy)).max(axis=1)
                num_near += bool((distance < 12).any())
    assert num_near >= 0.8 * len(val)
    measured = detector["val"]
    assert main(["val", detector["file"], "--data", str(data), "--json"]) == 0
    of_val = json.loads(capfd.readouterr().out)
    assert (measured["map"], measured["map50"]) == (of_val["map"], of_val["map50"])
    assert (measured["num_images"], measured["num_boxes"]) == (30, 30) and measured["map50"] > 0.1
    assert (document["map"], document["map50"]) == (measured["map"], measured["map50"])
    assert f"red cross: AP50 {measured['map50']:.4f} on val, 30 images with 30 boxes" in err
    assert main(arguments) == 2  # it is there already
    assert "pass another --out" in capfd.readouterr().err


def people_detector(config: object, positives: object, backgrounds: object, file: Path, tell: object) -> tuple[()]:
    """In place of a training: OpenCV's own, whose window is larger than the images, so that it finds nothing."""
    descriptor = cv2.HOGDescriptor()
    descriptor.setSVMDetector(cv2.HOGDescriptor.getDefaultPeopleDetector())
    descriptor.save(str(file))
    return ()


def test_each_class_is_measured_where_it_can_be(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classical, "_train_one", people_detector)
    file = crosses(tmp_path, 4)
    label = tmp_path / "labels" / "train" / "1.txt"
    label.write_text(label.read_text().replace("0 ", "1 ", 1))
    (tmp_path / "images" / "train" / "3.png").write_bytes(b"no image")
    (tmp_path / "images" / "val" / "3.png").write_bytes((tmp_path / "images" / "val" / "3.png").read_bytes()[:300])
    file.write_text("train: images/train\nval: images/val\nnames: [red cross, dot]\n")
    arguments = ["train", "--model", "hog", "--imgsz", "48", "--data", str(file)]
    assert main([*arguments, "--out", str(tmp_path / "a"), "--json"]) == 0
    out, err = capfd.readouterr()
    document = json.loads(out)
    assert [detector["class_name"] for detector in document["detectors"]] == ["red cross", "dot"]
    cross = {"map": 0.0, "map50": 0.0, "num_images": 3, "num_boxes": 3}
    assert [detector["val"] for detector in document["detectors"]] == [cross, None]
    assert (document["map"], document["map50"]) == (0.0, 0.0)
    assert "dot: no boxes in the split 'val', so nothing is measured" in err
    assert "1 images of the split 'val' could not be read" in err

    file.write_text("train: images/train\nnames: [red cross, dot]\n")
    assert main([*arguments, "--out", str(tmp_path / "b")]) == 0
    out, err = capfd.readouterr()
    assert "has no split 'val': nothing is measured" in err and out.count("(not measured)") == 2
    for names, message in (("[a/b, a_b]", "two that make a_b.xml"), ("[a, b, c]", "objects of every class, got none")):
        file.write_text(f"train: images/train\nnames: {names}\n")
        assert main([*arguments, "--out", str(tmp_path / "c")]) == 2
        assert message in capfd.readouterr().err
    assert not list((tmp_path / "c").glob("*.xml"))


REFUSED = [
    (["--model", "viola-jones", "--epochs", "3"], "--epochs"),
    (["--model", "hog", "--imgsz", "60x60"], "multiples of 8"),
    (["--model", "viola-jones", "--imgsz", "96"], "smaller --imgsz"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(
    arguments: list[str], message: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments, "--data", str(data), "--out", str(tmp_path)]) == 2
    error = capfd.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert not list(tmp_path.glob("*.xml"))


@pytest.mark.parametrize(
    ("model", "sides", "expected"),
    [
        ("viola-jones", [(10, 10), (90, 90)], (24, 24)),
        ("viola-jones", [(40, 80), (20, 40)], (34, 17)),
        ("hog", [(80, 80), (90, 90), (100, 100), (110, 110)], (64, 64)),
        ("hog", [(40, 40), (40, 40), (100, 100), (110, 110)], (40, 40)),  # else half of them could not be found
        ("hog", [(9, 9), (10, 10)], (32, 32)),
        ("hog", [(60, 120)] * 3, (88, 48)),
        ("hog", [], (64, 64)),  # crowds alone
    ],
)
def test_the_usual_window(model: str, sides: list[tuple[int, int]], expected: tuple[int, int], data: Path) -> None:
    dataset = load_dataset(data, "train")
    boxes = np.array([[5, 5, 5 + width, 5 + height] for width, height in sides], dtype=np.float32).reshape(-1, 4)
    sample = dataclasses.replace(
        dataset.samples[0],
        boxes_xyxy=boxes,
        class_ids=np.zeros(len(boxes), np.int64),
        is_crowd=np.zeros(len(boxes), bool),
        areas=np.ones(len(boxes), np.float32),
    )
    assert classical._usual_window(model, dataset.with_samples([sample]), 0) == expected
