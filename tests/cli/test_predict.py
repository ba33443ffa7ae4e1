"""`boxwright predict`: what it prints, what it writes, and what it says where it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from boxwright.cli.main import main
from boxwright.runtimes.detector import Detector, StreamItem
from models_for_tests import colour_image, save_colour_cells

pytest.importorskip("onnxruntime")

RED = colour_image((1, 2, "red"))
TWO = colour_image((1, 2, "red"), (4, 5, "red"), (3, 0, "blue"))

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run_predict(*arguments: object) -> tuple[int, str, str]:
        status = main(["predict", *map(str, arguments)])
        out, err = capfd.readouterr()
        return status, out, err

    return run_predict


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_colour_cells(tmp_path / "m.onnx")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images, one of which is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), RED)
    (folder / "b.jpg").write_bytes(b"no image")
    cv2.imwrite(str(folder / "c.png"), TWO)
    return folder


def _write_video(path: Path, num_frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12, (320, 240))
    frame = cv2.resize(colour_image((1, 2, "red")), (320, 240), interpolation=cv2.INTER_NEAREST)
    for _ in range(num_frames):
        writer.write(frame)
    writer.release()
    return path


def test_one_image_as_json(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    status, out, _ = run(model, photos / "a.png", "--save", tmp_path / "out", "--json")
    assert status == 0
    document = json.loads(out)
    image = document.pop("images")[0]
    assert document == {
        "model": str(model),
        "schema_version": 1,
        "backend": "onnxruntime",
        "device": "cpu",
        "precision": "fp32",
        "conf": 0.25,
        "iou": 0.7,
        "num_images": 1,
        "num_detections": 1,
        "unreadable": [],
    }
    assert image["name"] == str(photos / "a.png")
    assert image["size_hw"] == [48, 64]
    assert image["saved"] == str(tmp_path / "out" / "a.png")
    (detection,) = image["detections"]
    assert detection["class_name"] == "red"
    assert detection["class_id"] == 2
    assert detection["score"] == pytest.approx(1 / (1 + np.exp(-10)), abs=1e-5)
    assert detection["box_xyxy"] == pytest.approx([12, 4, 28, 20], abs=1e-2)
    annotated = cv2.imread(image["saved"])
    assert annotated is not None
    assert annotated.shape[:2] == (240, 320)  # enlarged five times, so that the label can be read


def test_a_folder_for_people(run: Run, model: Path, photos: Path) -> None:
    status, out, err = run(model, photos)
    assert status == 3
    assert out.splitlines() == [f"{photos / 'a.png'}: 1 red", f"{photos / 'c.png'}: 2 red, 1 blue"]
    assert "1 of 3 images could not be used" in err
    assert "b.jpg" in err


def test_a_folder_as_json(run: Run, model: Path, photos: Path) -> None:
    status, out, _ = run(model, photos, "--json")
    assert status == 3
    document = json.loads(out)
    assert [Path(entry["name"]).name for entry in document["images"]] == ["a.png", "c.png"]
    assert [Path(entry["name"]).name for entry in document["unreadable"]] == ["b.jpg"]
    assert document["num_detections"] == 4
    assert document["images"][0]["saved"] is None


@pytest.mark.parametrize("thresholds", [["--conf", "0.99999"], ["--conf", "0.5"]])
def test_conf(run: Run, model: Path, photos: Path, thresholds: list[str]) -> None:
    status, out, _ = run(model, photos / "a.png", "--json", *thresholds)
    assert status == 0
    assert json.loads(out)["num_detections"] == (1 if thresholds[1] == "0.5" else 0)


def test_several_sources_with_a_bad_one(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    status, out, err = run(model, photos / "c.png", photos / "b.jpg", tmp_path / "missing.png", photos / "a.png")
    assert status == 3
    assert len(out.splitlines()) == 2
    assert "2 of 4 images could not be used" in err


@pytest.mark.parametrize("name", ["b.jpg", "missing.png", "tiny.png", "thin.png", "*.bmp", ""])
def test_a_bad_image_alone(run: Run, model: Path, photos: Path, name: str) -> None:
    cv2.imwrite(str(photos / "tiny.png"), np.zeros((1, 1, 3), np.uint8))
    cv2.imwrite(str(photos / "thin.png"), np.zeros((50, 20000, 3), np.uint8))
    status, out, err = run(model, photos / name if name else "", "--json")
    assert status == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "expected" in err
    assert "got" in err


def test_empty_folder(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, out, err = run(model, tmp_path / "empty")
    assert (status, out, len(err.splitlines())) == (2, "", 1)


def test_sources_of_the_same_name(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    cv2.imwrite(str(other / "a.png"), TWO)
    status, out, _ = run(model, photos / "a.png", other / "a.png", "--save", tmp_path / "out", "--json")
    assert status == 0
    saved = [entry["saved"] for entry in json.loads(out)["images"]]
    assert saved == [str(tmp_path / "out" / "a.png"), str(tmp_path / "out" / "a_2.png")]
    assert (cv2.imread(saved[0]) != cv2.imread(saved[1])).any()


def test_the_images_themselves_are_never_replaced(run: Run, model: Path, photos: Path) -> None:
    before = (photos / "a.png").read_bytes()
    status, _, err = run(model, photos / "a.png", "--save", photos)
    assert status == 2
    assert "the folder of the images" in err
    assert (photos / "a.png").read_bytes() == before


def test_a_folder_that_cannot_be_written(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    status, out, err = run(model, photos / "a.png", "--save", tmp_path / "m.onnx" / "out")
    assert (status, out, len(err.splitlines())) == (2, "", 1)


def test_a_full_disk(run: Run, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_room)
    status, out, err = run(model, photos / "a.png", "--save", tmp_path / "out", "--json")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "No space left" in err
    assert list((tmp_path / "out").iterdir()) == []


def test_video(run: Run, model: Path, tmp_path: Path) -> None:
    clip = _write_video(tmp_path / "my clip.avi", 7)
    status, out, _ = run(model, clip, "--save", tmp_path / "out")
    assert status == 0
    assert out.splitlines()[0] == f"{clip}: 7 frames, 7 red"
    reader = cv2.VideoCapture(str(tmp_path / "out" / "my_clip.mp4"))
    assert reader.get(cv2.CAP_PROP_FRAME_COUNT) == 7
    assert reader.get(cv2.CAP_PROP_FPS) == 12
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["my_clip.mp4"]


def test_video_as_json(run: Run, model: Path, tmp_path: Path) -> None:
    clip = _write_video(tmp_path / "clip.avi", 3)
    status, out, _ = run(model, clip, "--json")
    assert status == 0
    assert [entry["name"] for entry in json.loads(out)["images"]] == [f"{clip}#{index}" for index in range(3)]


def test_a_disk_that_fills_up_under_a_video(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = _write_video(tmp_path / "clip.avi", 4)
    real = cv2.VideoWriter

    class ForgetfulWriter:
        """Drops frames without a word, as OpenCV's does where the disk is full."""

        fourcc = real.fourcc

        def __init__(self, *arguments: Any) -> None:
            self._writer = real(*arguments)
            self._count = 0

        def isOpened(self) -> bool:
            return self._writer.isOpened()

        def write(self, frame: Any) -> None:
            self._count += 1
            if self._count <= 2:
                self._writer.write(frame)

        def release(self) -> None:
            self._writer.release()

    monkeypatch.setattr(cv2, "VideoWriter", ForgetfulWriter)
    status, _, err = run(model, clip, "--save", tmp_path / "out")
    assert status == 2
    assert "2 of 4 frames written" in err
    assert list((tmp_path / "out").iterdir()) == []


def test_ctrl_c_keeps_what_was_found(run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = _write_video(tmp_path / "clip.avi", 5)
    stream = Detector.stream

    def interrupted_stream(self: Detector, source: str) -> Iterator[StreamItem]:
        for index, item in enumerate(stream(self, source)):
            if index == 3:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(Detector, "stream", interrupted_stream)
    status, out, err = run(model, clip, "--save", tmp_path / "out", "--json")
    assert status == 130
    assert "interrupted" in err
    assert json.loads(out)["num_images"] == 3
    assert cv2.VideoCapture(str(tmp_path / "out" / "clip.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--backend", "darknet"], 2, "one of"),
        (["--precision", "bf16"], 2, "fp32"),
        (["--precision", "int8"], 2, "boxwright calibrate"),
        (["--device", "cuda"], 2, "onnxruntime-gpu"),
        (["--device", "moon"], 2, "cpu, cuda and tensorrt"),
        (["--conf", "1.5"], 2, "--conf"),
    ],
)
def test_wishes_that_cannot_be_fulfilled(
    run: Run, model: Path, photos: Path, arguments: list[str], status: int, message: str
) -> None:
    got, out, err = run(model, photos / "a.png", "--json", *arguments)
    assert (got, out) == (status, "")
    assert message in err
    assert len(err.splitlines()) == 1
