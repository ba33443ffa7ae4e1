"""HOG and a linear SVM: trained on shapes, written as OpenCV's file, and found by OpenCV again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from boxwright.core.boxes import pairwise_overlaps
from boxwright.core.errors import InputError
from boxwright.models.classical.hog import HogModel, HogSettings, hard_negatives, train_hog, write_hog
from boxwright.models.classical.windows import random_windows
from boxwright.runtimes.detector import Detector

pytest.importorskip("sklearn")

Images = NDArray[np.uint8]
HEIGHT, WIDTH = 40, 32


def disc(random: np.random.Generator) -> Images:
    """A window with an oval of any colour on another colour."""
    window = np.empty((HEIGHT, WIDTH, 3), dtype=np.uint8)
    window[:] = random.integers(0, 100, 3)
    centre = (16 + int(random.integers(-1, 2)), 20 + int(random.integers(-1, 2)))
    cv2.ellipse(window, centre, (10, 13), 0, 0, 360, random.integers(150, 255, 3).tolist(), -1)
    return np.clip(window + random.normal(0, 6, window.shape), 0, 255).astype(np.uint8)


def backgrounds(random: np.random.Generator, count: int = 5) -> list[Images]:
    """Noise and rectangles, but no ovals."""
    images = []
    for _ in range(count):
        image = random.normal(80, 6, (110, 130, 3))
        for _ in range(8):
            x, y, w, h = random.integers(5, 60, 4)
            image[y : y + h, x : x + w] = random.integers(0, 255, 3)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    return images


@pytest.fixture(scope="module")
def trained() -> HogModel:
    random = np.random.default_rng(0)
    positives = np.stack([disc(random) for _ in range(80)])
    return train_hog(positives, backgrounds(random), HogSettings(num_negatives=150, max_hard_negatives=200))


def test_tells_objects_from_background(trained: HogModel) -> None:
    random = np.random.default_rng(50)
    discs = np.stack([disc(random) for _ in range(50)])
    assert (trained.margins(discs) > 0).mean() > 0.95
    windows = random_windows(backgrounds(random), (HEIGHT, WIDTH), 200, random)
    assert (trained.margins(windows) > 0).mean() < 0.05


def test_a_round_of_hard_negatives_leaves_fewer() -> None:
    random = np.random.default_rng(4)
    positives, images = np.stack([disc(random) for _ in range(60)]), backgrounds(random)
    counts = []
    for num_rounds in (0, 2):
        model = train_hog(positives, images, HogSettings(num_negatives=20, num_rounds=num_rounds))
        counts.append(len(hard_negatives(model, images, 100_000, random)))
    assert counts[0] > 0
    assert counts[1] < counts[0] / 2


def test_hard_negatives_do_not_depend_on_the_order_that_opencv_gives_them_in(
    trained: HogModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = np.array([[0, 0, 64, 64], [8, 4, 70, 70], [2, 9, 64, 64]], dtype=np.int32)
    image = np.random.default_rng(0).integers(0, 255, (100, 90, 3), dtype=np.uint8)

    def negatives(boxes: NDArray[np.int32]) -> Images:
        detector = SimpleNamespace(detectMultiScale=lambda image, groupThreshold: (boxes, None))
        monkeypatch.setattr(HogModel, "detector", lambda self: detector)
        return hard_negatives(trained, [image], 2, np.random.default_rng(1))

    resize, cuts = cv2.resize, []
    monkeypatch.setattr(cv2, "resize", lambda *args, **kwargs: cuts.append(args) or resize(*args, **kwargs))
    assert len(negatives(found)) == len(cuts) == 2  # no more are cut out than are kept
    np.testing.assert_array_equal(negatives(found), negatives(found[::-1]))


def test_the_file_is_read_by_opencv_with_the_same_margins(trained: HogModel, tmp_path: Path) -> None:
    for name in ("disc.xml", "disc.yml"):
        write_hog(trained, tmp_path / name)
        detector = cv2.HOGDescriptor()
        assert detector.load(str(tmp_path / name))
        assert detector.winSize == (WIDTH, HEIGHT)
        random = np.random.default_rng(3)
        windows = np.stack([disc(random) for _ in range(20)])
        for window, margin in zip(windows, trained.margins(windows), strict=True):
            places, weights = detector.detect(window, hitThreshold=-100.0)
            assert len(places) == 1
            assert np.ravel(weights)[0] == pytest.approx(margin, abs=1e-4)
    assert not list(tmp_path.glob(".*"))


def test_finds_discs_in_an_image(trained: HogModel, tmp_path: Path) -> None:
    write_hog(trained, tmp_path / "disc.xml")
    image = np.full((150, 190, 3), 60, dtype=np.uint8)
    cv2.ellipse(image, (100, 70), (20, 26), 0, 0, 360, (220, 180, 200), -1)
    with Detector(tmp_path / "disc.xml") as detector:
        found = detector(image)
    assert detector.class_names == ("disc",)
    window_about_it = np.array([[68, 30, 132, 110]], dtype=np.float32)
    assert pairwise_overlaps(found.boxes_xyxy[:1], window_about_it)[0, 0] > 0.5


COLOUR = np.full((60, 60, 3), 90, np.uint8)


@pytest.mark.parametrize(
    ("positives", "images", "message"),
    [
        (np.zeros((3, 20, 16, 3), np.uint8), [COLOUR], "multiples of 8"),
        (np.zeros((3, 8, 8, 3), np.uint8), [COLOUR], "at least 16"),
        (np.zeros((3, 16, 16), np.uint8), [COLOUR], r"\(N, H, W, 3\)"),
        (np.zeros((3, 16, 16, 3), np.uint8), [COLOUR[:, :, 0]], "3 channels"),
        (np.zeros((3, 64, 64, 3), np.uint8), [COLOUR], "not smaller than the window"),
    ],
)
def test_too_little_to_learn_from(positives: Images, images: list[Images], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_hog(positives, images)


@pytest.mark.parametrize("wrong", [{"svm_c": 0.0}, {"num_negatives": 0}, {"num_rounds": -1}])
def test_settings_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        HogSettings(**wrong)  # type: ignore[arg-type]
