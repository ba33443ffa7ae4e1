"""Training of HOG with a linear SVM, in the layout of OpenCV's detector.

Source: Dalal and Triggs, Histograms of Oriented Gradients for Human Detection, CVPR 2005: a first SVM on random
negatives, then again with the windows that it takes for the object.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import InputError, MissingDependencyError
from boxwright.core.files import atomic_file
from boxwright.models.classical.windows import check_windows, random_windows

FloatArray = NDArray[np.float32]
ColourImage = NDArray[np.uint8]
CELL_PIXELS, BLOCK_PIXELS, NUM_BINS = 8, 16, 9
_NODE_NAME = "hog"


@dataclass(frozen=True, kw_only=True)
class HogSettings:
    """How a HOG detector is trained.

    Attributes:
        svm_c: what a wrong window costs the SVM, against the width of its margin.
        num_negatives: random background windows of the first round.
        num_rounds: with hard negatives, after the first.
        max_hard_negatives: added a round.
        seed: of the draws.
    """

    svm_c: float = 0.03
    num_negatives: int = 1000
    num_rounds: int = 3
    max_hard_negatives: int = 4000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.svm_c > 0:
            raise InputError("svm_c", expected="a positive number", got=str(self.svm_c), fix="correct it")
        for name, least in (("num_negatives", 1), ("num_rounds", 0), ("max_hard_negatives", 1)):
            if getattr(self, name) < least:
                raise InputError(name, expected=f"at least {least}", got=str(getattr(self, name)), fix="correct it")


@dataclass(frozen=True, kw_only=True, eq=False)
class HogModel:
    """A linear SVM on the histograms of a window.

    Attributes:
        window_hw: in pixels, multiples of 8.
        weights: (D + 1,) of the descriptor's D numbers, and the bias.
    """

    window_hw: tuple[int, int]
    weights: FloatArray

    def detector(self) -> cv2.HOGDescriptor:
        """The same as OpenCV's detector."""
        descriptor = _descriptor(self.window_hw)
        descriptor.setSVMDetector(self.weights)
        return descriptor

    def margins(self, windows: ColourImage) -> FloatArray:
        """The SVM's margins (N,) of windows (N, H, W, 3) uint8 BGR; positive for the object."""
        result: FloatArray = _features(_descriptor(self.window_hw), windows) @ self.weights[:-1] + self.weights[-1]
        return result


def train_hog(
    positives: ColourImage, backgrounds: Sequence[ColourImage], settings: HogSettings | None = None
) -> HogModel:
    """Train a HOG detector.

    Args:
        positives: (N, H, W, 3) uint8 BGR: the object, filling a window whose sides are multiples of 8.
        backgrounds: (h, w, 3) uint8 BGR images without the object.
        settings: see `HogSettings`.

    Raises:
        InputError: where there is too little to learn from.
        MissingDependencyError: where scikit-learn is not installed.
    """
    settings = settings or HogSettings()
    check_windows(positives, backgrounds, num_channels=3)
    window_hw = (positives.shape[1], positives.shape[2])
    if any(side % CELL_PIXELS or side < BLOCK_PIXELS for side in window_hw):
        raise InputError(
            "positives",
            expected=f"windows whose sides are multiples of {CELL_PIXELS} and at least {BLOCK_PIXELS}",
            got=f"{window_hw[1]}x{window_hw[0]}",
            fix="resize them",
        )
    random = np.random.default_rng(settings.seed)
    descriptor = _descriptor(window_hw)
    of_object = _features(descriptor, positives)
    of_background = _features(descriptor, random_windows(backgrounds, window_hw, settings.num_negatives, random))
    model = HogModel(window_hw=window_hw, weights=_fit(of_object, of_background, settings))
    for _ in range(settings.num_rounds):
        hard = hard_negatives(model, backgrounds, settings.max_hard_negatives, random)
        if len(hard) == 0:
            break
        of_background = np.concatenate([of_background, _features(descriptor, hard)])
        model = HogModel(window_hw=window_hw, weights=_fit(of_object, of_background, settings))
    return model


def hard_negatives(
    model: HogModel, backgrounds: Sequence[ColourImage], count: int, random: np.random.Generator
) -> ColourImage:
    """Windows (M, H, W, 3) of the background that a model takes for the object; at most so many, drawn from all."""
    detector, (height, width) = model.detector(), model.window_hw
    places: list[tuple[int, ...]] = []
    for index, image in enumerate(backgrounds):
        boxes, _ = detector.detectMultiScale(image, groupThreshold=0)
        # OpenCV's threads give them in any order.
        places.extend((index, *place) for place in sorted(tuple(box) for box in boxes))
    kept = random.permutation(len(places))[:count] if places else ()
    windows = np.empty((len(kept), height, width, 3), dtype=np.uint8)
    for window, place in zip(windows, kept, strict=True):  # cut now, since there may be far more places than are kept
        index, x, y, w, h = places[place]
        cut = backgrounds[index][max(y, 0) : y + h, max(x, 0) : x + w]
        window[:] = cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA)
    return windows


def write_hog(model: HogModel, path: str | os.PathLike[str]) -> None:
    """Write a model as the file that `cv2.HOGDescriptor.load` and `boxwright predict` read.

    Args:
        model: to write.
        path: of the file, ending in `.xml`, `.yml` or `.yaml`.
    """
    detector = model.detector()
    with atomic_file(path) as temporary:
        detector.save(str(temporary), _NODE_NAME)


def _descriptor(window_hw: tuple[int, int]) -> cv2.HOGDescriptor:
    block, cell = (BLOCK_PIXELS, BLOCK_PIXELS), (CELL_PIXELS, CELL_PIXELS)
    return cv2.HOGDescriptor(window_hw[::-1], block, cell, cell, NUM_BINS)


def _features(descriptor: cv2.HOGDescriptor, windows: ColourImage) -> FloatArray:
    """Descriptors (N, D) of windows (N, H, W, 3)."""
    return np.stack([np.asarray(descriptor.compute(window), dtype=np.float32).reshape(-1) for window in windows])


def _fit(of_object: FloatArray, of_background: FloatArray, settings: HogSettings) -> FloatArray:
    """The SVM's weights and bias."""
    try:
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", extra="train", needed_for="train_hog") from error
    features = np.concatenate([of_object, of_background])
    is_object = np.arange(len(features)) < len(of_object)
    machine = LinearSVC(C=settings.svm_c, random_state=settings.seed, max_iter=5000)
    machine.fit(features, is_object)
    return np.concatenate([machine.coef_[0], machine.intercept_]).astype(np.float32)
