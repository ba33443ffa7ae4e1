"""Cascades: the arithmetic of OpenCV's evaluator, training against what passes, and the file that OpenCV reads."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from boxwright.core.errors import InputError
from boxwright.models.classical import viola_jones
from boxwright.models.classical.cascade import Cascade, Stage, Stump, write_cascade
from boxwright.models.classical.haar_features import (
    IntegralWindows,
    WeightedRectangle,
    haar_features,
    sample_features,
)
from boxwright.models.classical.scan import SCALE_FACTOR, scan
from boxwright.models.classical.viola_jones import CascadeSettings, StageReport, train_cascade
from boxwright.models.classical.windows import random_windows
from boxwright.runtimes.detector import Detector

pytest.importorskip("sklearn")

Windows = NDArray[np.uint8]
HEIGHT, WIDTH = 12, 16


def cross(random: np.random.Generator, arms: int = 4) -> Windows:
    """A window with a dark cross on light, noisy and not always in its place; without some arms it is none."""
    window = random.normal(190, 25, (HEIGHT, WIDTH))
    top, left = random.integers(4, 7), random.integers(6, 9)
    grey, kept = random.uniform(30, 110), random.permutation(4)[:arms]
    bars = ((slice(1, top + 3), slice(left, left + 3)), (slice(top, -1), slice(left, left + 3)),
            (slice(top, top + 3), slice(2, left + 3)), (slice(top, top + 3), slice(left, -2)))  # fmt: skip
    for arm in kept:
        window[bars[arm]] = grey
    return np.clip(window + random.normal(0, 10, window.shape), 0, 255).astype(np.uint8)


def backgrounds(random: np.random.Generator, count: int = 8) -> list[Windows]:
    """Noise, gradients, and shapes that are a cross but for an arm or two."""
    images = []
    for _ in range(count):
        image = cv2.GaussianBlur(random.normal(128, 60, (72, 96)), (0, 0), random.uniform(0.5, 3))
        image += np.linspace(-50, 50, 96)[None] * random.uniform(-1, 1)
        for _ in range(12):
            y, x = random.integers(72 - HEIGHT), random.integers(96 - WIDTH)
            image[y : y + HEIGHT, x : x + WIDTH] = cross(random, arms=int(random.integers(1, 4)))
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    return images


@pytest.fixture(scope="module")
def trained() -> tuple[Cascade, list[StageReport]]:
    random = np.random.default_rng(1)
    positives = np.stack([cross(random) for _ in range(200)])
    settings = CascadeSettings(
        num_stages=4, min_true_positive_rate=0.99, max_false_positive_rate=0.3, max_stumps=15,
        num_features=200, num_negatives=250, seed=2,
        target_false_positive_rate=1e-3,
    )  # fmt: skip
    reports: list[StageReport] = []
    return train_cascade(positives, backgrounds(random), settings, on_stage=reports.append), reports


def opencv_passes(classifier: cv2.CascadeClassifier, window: Windows) -> bool:
    """Whether OpenCV lets this one window pass, which is a whole image with one place."""
    return len(classifier.detectMultiScale(window, 1.1, 0, maxSize=window.shape[::-1])) > 0


def test_features_fit_the_window_and_sum_to_nothing() -> None:
    features = list(haar_features((6, 5)))
    assert len(set(features)) == len(features) == 468
    for feature in features:
        assert sum(entry.weight * entry.width * entry.height for entry in feature) == 0
        assert all(entry.x >= 0 and entry.x + entry.width <= 5 for entry in feature)
        assert all(entry.y >= 0 and entry.y + entry.height <= 6 for entry in feature)


@pytest.mark.parametrize("window_hw", [(6, 5), (1, 7), (9, 11), (12, 12)])
def test_features_are_drawn_as_if_all_were_listed(window_hw: tuple[int, int]) -> None:
    features = list(haar_features(window_hw))
    for count in (1, len(features) // 2, len(features) - 1):
        drawn = np.sort(np.random.default_rng(3).choice(len(features), size=count, replace=False))
        expected = tuple(features[index] for index in drawn)
        assert sample_features(window_hw, count, np.random.default_rng(3)) == expected
    for count in (len(features), len(features) + 1):
        assert sample_features(window_hw, count, np.random.default_rng(3)) == tuple(features)


def test_features_of_large_windows_are_drawn_in_little_memory() -> None:
    tracemalloc.start()
    try:
        assert len(set(sample_features((48, 48), 200, np.random.default_rng(0)))) == 200
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_values_are_normalised_sums() -> None:
    random = np.random.default_rng(0)
    windows = random.integers(0, 256, (3, 7, 9), dtype=np.uint8)
    feature = (WeightedRectangle(1, 2, 6, 4, -1.0), WeightedRectangle(4, 2, 3, 4, 2.0))
    values = IntegralWindows(windows).values(feature)
    for window, value in zip(windows.astype(np.float64), values, strict=True):
        inner = window[1:-1, 1:-1]
        expected = (window[2:6, 4:7].sum() - window[2:6, 1:4].sum()) / (inner.size * inner.std())
        assert value == pytest.approx(expected, rel=1e-5)


def test_brightness_and_contrast_change_nothing() -> None:
    window = np.random.default_rng(3).integers(40, 90, (1, 10, 10), dtype=np.uint8)
    features = sample_features((10, 10), 50, np.random.default_rng(0))
    same = IntegralWindows(window).table(features)
    other = IntegralWindows((window * 2 + 10).astype(np.uint8)).table(features)
    np.testing.assert_allclose(same, other, rtol=1e-4, atol=1e-6)


def test_stages_keep_the_objects_and_drop_the_background(trained: tuple[Cascade, list[StageReport]]) -> None:
    cascade, reports = trained
    assert len(reports) == len(cascade.stages) >= 2
    assert all(report.true_positive_rate >= 0.99 for report in reports)
    shares = [report.negatives_passed_so_far for report in reports]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.05  # each stage saw what the ones before it had let pass
    unseen = np.random.default_rng(99)
    assert cascade.passes(np.stack([cross(unseen) for _ in range(100)])).mean() > 0.85
    windows = random_windows(backgrounds(unseen), (HEIGHT, WIDTH), 500, unseen)
    assert cascade.passes(windows).mean() < 0.01


def test_opencv_decides_the_same_on_every_window(trained: tuple[Cascade, list[StageReport]], tmp_path: Path) -> None:
    cascade, _ = trained
    path = tmp_path / "crosses.xml"
    write_cascade(cascade, path)
    classifier = cv2.CascadeClassifier(str(path))
    assert classifier.getOriginalWindowSize() == (WIDTH, HEIGHT)
    random = np.random.default_rng(7)
    crosses = np.stack([cross(random) for _ in range(150)])
    other = random_windows(backgrounds(random), (HEIGHT, WIDTH), 300, random)
    faint = (crosses[:50] // 12 + 100).astype(np.uint8)  # of so little contrast that OpenCV looks away
    windows = np.concatenate([crosses, other, faint])
    expected = cascade.passes(windows)
    assert 100 < expected.sum() < 200
    assert [opencv_passes(classifier, window) for window in windows] == list(expected)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_opencv_decides_the_same_for_random_cascades(seed: int, tmp_path: Path) -> None:
    """Thresholds and votes of any digits, features of all kinds."""
    random = np.random.default_rng(seed)
    features = sample_features((9, 11), 40, random)
    windows = random.integers(0, 256, (200, 9, 11), dtype=np.uint8)
    cascade = Cascade(window_hw=(9, 11), features=features, stages=())
    for _ in range(2):
        numbers = random.normal(0, (0.05, 1.0, 1.0), (4, 3)).astype(np.float32).tolist()
        stumps = tuple(
            Stump(feature=int(random.integers(40)), threshold=threshold, below=below, above=above)
            for threshold, below, above in numbers
        )
        sums = cascade.stage_sums(Stage(stumps=stumps, threshold=0.0), IntegralWindows(windows))
        stage = Stage(stumps=stumps, threshold=float(np.quantile(sums, 0.3)) - 0.001)
        cascade = Cascade(window_hw=(9, 11), features=features, stages=(*cascade.stages, stage))
    write_cascade(cascade, tmp_path / "any.xml")
    classifier = cv2.CascadeClassifier(str(tmp_path / "any.xml"))
    expected = cascade.passes(windows)
    assert 10 < expected.sum() < 190
    assert [opencv_passes(classifier, window) for window in windows] == list(expected)


def test_a_scan_gives_what_opencv_takes_for_the_object(
    trained: tuple[Cascade, list[StageReport]], tmp_path: Path
) -> None:
    whole, _ = trained
    cascade = Cascade(window_hw=whole.window_hw, features=whole.features, stages=whole.stages[:1])
    write_cascade(cascade, tmp_path / "first.xml")
    classifier = cv2.CascadeClassifier(str(tmp_path / "first.xml"))
    images = backgrounds(np.random.default_rng(8))
    expected = [len(classifier.detectMultiScale(image, SCALE_FACTOR, 0)) for image in images]
    found = scan(cascade, images, 10**6, np.random.default_rng(0), most_scanned=10**9)
    assert found.num_passed == sum(expected) == len(found.windows) > 200
    assert cascade.passes(found.windows).all()
    # Of fewer than all, each image gives its share; a second time the same.
    few = scan(cascade, images, 80, np.random.default_rng(0), most_scanned=10**9)
    assert len(few.windows) == sum(min(count, 10) for count in expected)
    again = scan(cascade, images, 80, np.random.default_rng(0), most_scanned=10**9)
    np.testing.assert_array_equal(few.windows, again.windows)
    first = scan(cascade, images, 10**6, np.random.default_rng(0), most_scanned=1)
    assert first.num_passed in expected


def test_finds_crosses_in_an_image(trained: tuple[Cascade, list[StageReport]], tmp_path: Path) -> None:
    cascade, _ = trained
    path = tmp_path / "haarcascade_cross.xml"
    write_cascade(cascade, path)
    random = np.random.default_rng(11)
    image = np.full((90, 140), 190, dtype=np.uint8)
    image[20:44, 30:62] = cv2.resize(cross(random), (32, 24), interpolation=cv2.INTER_LINEAR)
    with Detector(path) as detector:
        found = detector(np.repeat(image[:, :, None], 3, axis=2))
    assert detector.class_names == ("cross",)
    assert len(found) >= 1
    centre = (found.boxes_xyxy[0, :2] + found.boxes_xyxy[0, 2:]) / 2
    np.testing.assert_allclose(centre, [46, 32], atol=6)


def test_the_same_seed_gives_the_same_cascade() -> None:
    random = np.random.default_rng(5)
    positives, images = np.stack([cross(random) for _ in range(40)]), backgrounds(random, 2)
    settings = CascadeSettings(
        num_stages=2, max_stumps=3, num_features=60, num_negatives=60, target_false_positive_rate=0.01
    )
    assert train_cascade(positives, images, settings) == train_cascade(positives, images, settings)


@pytest.mark.parametrize("target", [0.3, 0.05])
def test_training_ends_when_little_enough_passes(target: float) -> None:
    random = np.random.default_rng(5)
    positives, images = np.stack([cross(random) for _ in range(60)]), backgrounds(random, 3)
    settings = CascadeSettings(
        num_stages=8, max_stumps=5, num_features=80, num_negatives=100, target_false_positive_rate=target
    )
    reports: list[StageReport] = []
    cascade = train_cascade(positives, images, settings, on_stage=reports.append)
    assert 1 <= len(cascade.stages) == len(reports) < 8
    assert all(report.negatives_passed_so_far > target for report in reports)
    found = scan(cascade, images, 10**6, random, most_scanned=10**9)
    assert 0 < found.num_passed / found.num_scanned < 1.5 * target


FLAT = np.full((30, 30), 100, np.uint8)


def test_backgrounds_that_are_flat_for_the_most_part() -> None:
    random = np.random.default_rng(5)
    image = np.full((400, 400), 128, dtype=np.uint8)
    image[:40, :40] = random.integers(0, 256, (40, 40))
    reports: list[StageReport] = []
    settings = CascadeSettings(num_stages=1, max_stumps=5, num_features=80, num_negatives=60)
    cascade = train_cascade(np.stack([cross(random) for _ in range(40)]), [image], settings, on_stage=reports.append)
    assert len(cascade.stages) == 1 and 0 < reports[0].negatives_passed_so_far < 0.05


def test_boosting_in_portions_gives_what_boosting_at_once_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    images = backgrounds(random, 3)
    # Crosses, and background that is to be told from background: that takes many stumps.
    positives = np.concatenate(
        [np.stack([cross(random) for _ in range(20)]), random_windows(images, (HEIGHT, WIDTH), 40, random)]
    )
    settings = CascadeSettings(
        num_stages=1, num_features=60, num_negatives=300, max_stumps=40, max_false_positive_rate=1e-9, seed=2
    )
    in_portions = train_cascade(positives, images, settings)
    monkeypatch.setattr(viola_jones, "_growing_budgets", lambda most: [most])
    at_once = train_cascade(positives, images, settings)
    assert len(in_portions.stages[0].stumps) > 8 and in_portions == at_once


@pytest.mark.parametrize(
    ("positives", "images", "message"),
    [
        (np.zeros((0, 8, 8), np.uint8), [FLAT], "at least one positive"),
        (np.zeros((3, 8, 8), np.uint8), [], "at least one positive"),
        (np.zeros((3, 8, 8), np.float32), [FLAT], "uint8"),
        (np.zeros((3, 8, 8, 3), np.uint8), [FLAT], r"\(N, H, W\)"),
        (np.zeros((3, 8, 8), np.uint8), [FLAT[:5]], "not smaller than the window"),
        (np.zeros((3, 8, 8), np.uint8), [FLAT], "some contrast"),
    ],
)
def test_too_little_to_learn_from(positives: Windows, images: list[Windows], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_cascade(positives, images)


@pytest.mark.parametrize("count", [30, 60, 90])
def test_objects_that_are_the_background(count: int) -> None:
    window = np.random.default_rng(0).integers(0, 256, (12, 12), dtype=np.uint8)
    settings = CascadeSettings(num_features=50, num_negatives=60)
    with pytest.raises(InputError, match="some feature tells from the background"):
        train_cascade(np.repeat(window[None], count, axis=0), [window], settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_stages": 0},
        {"target_false_positive_rate": -1.0},
        {"min_true_positive_rate": 0.0},
        {"max_false_positive_rate": 2},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        CascadeSettings(**wrong)  # type: ignore[arg-type]
