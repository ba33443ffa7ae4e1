"""Sources of images: files, folders, globs and videos, one image at a time."""

import itertools
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from boxwright.core import sources
from boxwright.core.errors import ImageError
from boxwright.core.sources import SourceItem, open_source

HEIGHT, WIDTH = 48, 80


def write_image(path: Path, grey: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((HEIGHT, WIDTH, 3), grey, np.uint8))
    return path


def write_video(path: Path, greys: list[int]) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    for grey in greys:
        writer.write(np.full((HEIGHT, WIDTH, 3), grey, np.uint8))
    writer.release()
    return path


def greys(items) -> list[int | None]:
    return [None if item.image is None else int(np.median(item.image)) for item in items]


def names(items, folder: Path) -> list[str]:
    return [Path(item.name).relative_to(folder).as_posix() for item in items]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, one of them broken, a text file and a subfolder with one more."""
    write_image(tmp_path / "b.png", 20)
    write_image(tmp_path / "a.PNG", 10)
    (tmp_path / "c.jpg").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("not looked at")
    write_image(tmp_path / "deep" / "d.png", 40)
    return tmp_path


def test_a_folder_gives_its_images_by_name_and_reports_the_broken_one(folder: Path) -> None:
    items = list(open_source(folder))
    assert names(items, folder) == ["a.PNG", "b.png", "c.jpg"]
    assert greys(items) == [10, 20, None]
    assert isinstance(items[2].error, ImageError) and "c.jpg" in str(items[2].error)
    assert items[0].frame_rate is None and items[0].image is not None and items[0].image.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("*.png", ["b.png"]), ("**/*.png", ["b.png", "deep/d.png"]), ("[ab].*", ["a.PNG", "b.png"])],
)
def test_a_glob(folder: Path, pattern: str, expected: list[str]) -> None:
    assert names(open_source(f"{folder}/{pattern}"), folder) == expected


def test_an_existing_name_is_no_pattern(tmp_path: Path) -> None:
    path = write_image(tmp_path / "shot[1].png", 30)
    assert greys(open_source(path)) == [30]


def test_a_video_frame_by_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", [0, 60, 120, 180])
    items = list(open_source(path))
    assert [item.name for item in items] == [f"{path}#{index}" for index in range(4)]
    np.testing.assert_allclose(greys(items), [0, 60, 120, 180], atol=3)  # JPEG
    assert [item.frame_rate for item in items] == [10] * 4


def test_a_glob_may_hold_images_and_videos(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 10)
    write_video(tmp_path / "b.avi", [200, 100])
    (tmp_path / "c.mp4").write_bytes(b"no video")
    items = list(open_source(str(tmp_path / "*")))
    assert names(items, tmp_path) == ["a.png", "b.avi#0", "b.avi#1", "c.mp4"]
    assert items[3].error is not None


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(lambda path: path / "absent.jpg", "does not exist", id="missing file"),
        pytest.param(lambda path: path / "absent", "does not exist", id="missing folder"),
        pytest.param(lambda path: path, "got none", id="folder without images"),
        pytest.param(lambda path: path / "*.jpg", "got none", id="glob without files"),
        pytest.param(lambda path: path / "broken.jpg", "do not decode", id="broken image"),
        pytest.param(lambda path: path / "broken.mp4", "no frame", id="broken video"),
        pytest.param(lambda path: "", "does not exist", id="empty text"),
        pytest.param(lambda path: "x" * 5000, "does not exist", id="too long"),
        pytest.param(lambda path: 97, "camera 97", id="camera that is not there"),
        pytest.param(lambda path: "97", "camera 97", id="camera as text"),
        pytest.param(lambda path: "rtsp://127.0.0.1:9/none", "rtsp://", id="stream that is not there"),
    ],
)
def test_nothing_to_read_is_an_error_before_the_first_item(
    tmp_path: Path, make, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if "broken" in str(make(folder)):
        make(folder).write_bytes(b"neither image nor video")
    with pytest.raises(ImageError, match=expected) as caught:
        open_source(make(folder))
    assert "\n" not in str(caught.value)


class FakeCapture:
    """A camera that gives three frames and then none."""

    released = False

    def __init__(self, address: int) -> None:
        self.left = 3

    def isOpened(self) -> bool:
        return True

    def read(self):
        self.left -= 1
        return (True, np.full((4, 4, 3), self.left, np.uint8)) if self.left >= 0 else (False, None)

    def get(self, setting: int) -> float:
        return {cv2.CAP_PROP_FPS: 25.0}[setting]

    def release(self) -> None:
        type(self).released = True


def test_a_camera_that_stops_is_reported_and_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.cv2, "VideoCapture", FakeCapture)
    items = list(open_source(0))
    assert greys(items) == [2, 1, 0, None]
    assert items[3].name == "camera 0#3" and "none after 3" in str(items[3].error)
    assert FakeCapture.released


def test_a_camera_left_early_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(FakeCapture, "released", False)
    stream = open_source("0")
    next(stream)
    stream.close()
    assert FakeCapture.released


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    for index in range(12):
        path = tmp_path / f"{index:02d}.bmp"
        assert cv2.imwrite(str(path), np.zeros((500, 400, 3), np.uint8))
    image_bytes = 500 * 400 * 3
    stream = open_source(tmp_path)
    tracemalloc.start()
    total = sum(1 for _ in itertools.islice(stream, 12))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 12
    assert peak < 5 * image_bytes  # the file's bytes, the image, and the one before


def test_an_item_has_an_image_or_an_error() -> None:
    with pytest.raises(AssertionError):
        SourceItem(name="neither")
