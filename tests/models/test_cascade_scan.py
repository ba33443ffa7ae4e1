"""What a cascade's scan counts, cuts out and leaves out."""

import cv2
import numpy as np
import pytest

from boxwright.models.classical import scan as scanning
from boxwright.models.classical.cascade import Cascade, Stage, Stump
from boxwright.models.classical.haar_features import sample_features
from boxwright.models.classical.scan import scan


def any_cascade(window_hw: tuple[int, int], threshold: float) -> Cascade:
    """One that lets everything pass from a threshold of -20 down."""
    features = sample_features(window_hw, 20, np.random.default_rng(0))
    stumps = tuple(Stump(feature=index, threshold=0.0, below=-1.0, above=1.0) for index in range(20))
    return Cascade(window_hw=window_hw, features=features, stages=(Stage(stumps=stumps, threshold=threshold),))


def test_a_scan_counts_every_place() -> None:
    """Of a cascade that lets everything pass; after one that does not pass OpenCV skips a place, which counts too."""
    cascade = any_cascade((9, 11), -21.0)
    for size_hw in ((9, 11), (10, 40), (61, 83)):
        noise = np.random.default_rng(1).integers(0, 256, size_hw, dtype=np.uint8)
        found = scan(cascade, [noise], 10**6, np.random.default_rng(0), most_scanned=10**9)
        assert found.num_passed == found.num_scanned == len(found.windows) > 0


@pytest.mark.parametrize("window_hw", [(40, 5), (5, 40), (60, 4)])
def test_a_scan_cuts_narrow_windows_at_the_scale_they_were_seen_at(window_hw: tuple[int, int]) -> None:
    image = cv2.GaussianBlur(np.random.default_rng(2).integers(0, 256, (120, 150), dtype=np.uint8), (0, 0), 1)
    image = np.asarray(cv2.normalize(image, np.empty_like(image), 0, 255, cv2.NORM_MINMAX), dtype=np.uint8)
    found = scan(any_cascade(window_hw, 2.0), [image], 10**6, np.random.default_rng(0), most_scanned=10**9)
    assert found.num_scanned > 2 * found.num_passed
    assert len(found.windows) == found.num_passed > 500


def test_a_scan_looks_at_a_part_of_a_large_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "_MOST_PIXELS", 40 * 60)
    # How dark a window is tells where it lay.
    image = np.add.outer(np.arange(120), np.arange(120)).astype(np.uint8)
    random, cascade = np.random.default_rng(0), any_cascade((9, 11), -21.0)
    darkest = []
    for _ in range(12):
        found = scan(cascade, [image], 10**6, random, most_scanned=10**9)
        alone = scan(cascade, [image[:49, :49]], 10**6, random, most_scanned=10**9)
        assert found.num_scanned == alone.num_scanned
        darkest.append(found.windows.min())
    assert min(darkest) < 60 and max(darkest) > 80
    twice = [scan(cascade, [image], 50, np.random.default_rng(3), most_scanned=10**9).windows for _ in range(2)]
    np.testing.assert_array_equal(*twice)
    monkeypatch.setattr(scanning, "_MOST_PIXELS", 500)
    assert scan(cascade, [image[:9]], 50, random, most_scanned=10**9).num_scanned > 0  # no smaller than the window
