"""A cascade of boosted stumps: what it decides on a window, and its file in OpenCV's format."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boxwright.core.files import write_text
from boxwright.models.classical.haar_features import HaarFeature, IntegralWindows, Windows

# OpenCV takes this off every stage's threshold, so that the windows that set it pass.
_THRESHOLD_SLACK = np.float32(1e-5)


@dataclass(frozen=True, kw_only=True)
class Stump:
    """A weak classifier: one feature, one threshold, one vote on each side.

    Attributes:
        feature: index among the cascade's features.
        threshold: float32 that values are compared with.
        below: vote for values < threshold.
        above: vote for all others.
    """

    feature: int
    threshold: float
    below: float
    above: float


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Stumps whose votes must sum up to the threshold for a window to go on."""

    stumps: tuple[Stump, ...]
    threshold: float


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """Stages one after another, over windows of one size.

    Attributes:
        window_hw: in pixels.
        features: that the stumps look at.
        stages: in their order.
    """

    window_hw: tuple[int, int]
    features: tuple[HaarFeature, ...]
    stages: tuple[Stage, ...]

    def passes(self, windows: Windows) -> NDArray[np.bool_]:
        """Which windows pass all stages.

        Args:
            windows: (N, H, W) uint8 grey, of the cascade's size.

        Returns:
            (N,)
        """
        passing = np.zeros(len(windows), dtype=np.bool_)
        left = np.arange(len(windows))
        integrals = IntegralWindows(windows)
        left = left[~integrals.is_flat]
        for stage in self.stages:
            if len(left) == 0:
                return passing
            integrals = IntegralWindows(windows[left])
            left = left[self.stage_sums(stage, integrals) >= stage_limit(stage.threshold)]
        passing[left] = True
        return passing

    def stage_sums(self, stage: Stage, integrals: IntegralWindows) -> NDArray[np.float64]:
        """The sums (N,) of a stage's votes."""
        sums = np.zeros(len(integrals.is_flat), dtype=np.float64)
        for stump in stage.stumps:
            is_below = integrals.values(self.features[stump.feature]) < np.float32(stump.threshold)
            sums += np.where(is_below, np.float32(stump.below), np.float32(stump.above))
        return sums

    def without_unused_features(self) -> Cascade:
        """The same cascade with the features alone that its stumps look at."""
        used = sorted({stump.feature for stage in self.stages for stump in stage.stumps})
        place = {feature: index for index, feature in enumerate(used)}
        stages = tuple(
            Stage(
                threshold=stage.threshold,
                stumps=tuple(
                    Stump(
                        feature=place[stump.feature],
                        threshold=stump.threshold,
                        below=stump.below,
                        above=stump.above,
                    )
                    for stump in stage.stumps
                ),
            )
            for stage in self.stages
        )
        return Cascade(window_hw=self.window_hw, features=tuple(self.features[index] for index in used), stages=stages)


def stage_limit(threshold: float) -> np.float32:
    """The sum from which on a window passes a stage."""
    limit: np.float32 = np.float32(threshold) - _THRESHOLD_SLACK
    return limit


def write_cascade(cascade: Cascade, path: str | os.PathLike[str]) -> None:
    """Write a cascade as the XML file that `cv2.CascadeClassifier` and `boxwright predict` read.

    Args:
        cascade: of at least one stage.
        path: of the file, which should end in `.xml`.
    """
    write_text(path, cascade_xml(cascade))


def cascade_xml(cascade: Cascade) -> str:
    """What `write_cascade` writes."""
    cascade = cascade.without_unused_features()
    height, width = cascade.window_hw
    most_stumps = max(len(stage.stumps) for stage in cascade.stages)
    lines = [
        '<?xml version="1.0"?>',
        "<opencv_storage>",
        '<cascade type_id="opencv-cascade-classifier">',
        "<stageType>BOOST</stageType>",
        "<featureType>HAAR</featureType>",
        f"<height>{height}</height>",
        f"<width>{width}</width>",
        f"<stageParams><maxWeakCount>{most_stumps}</maxWeakCount></stageParams>",
        "<featureParams><maxCatCount>0</maxCatCount></featureParams>",
        f"<stageNum>{len(cascade.stages)}</stageNum>",
        "<stages>",
        *(line for stage in cascade.stages for line in _stage_lines(stage)),
        "</stages>",
        "<features>",
        *(line for feature in cascade.features for line in _feature_lines(feature)),
        "</features>",
        "</cascade>",
        "</opencv_storage>",
    ]
    return "\n".join(lines) + "\n"


def _stage_lines(stage: Stage) -> list[str]:
    lines = [
        "<_>",
        f"<maxWeakCount>{len(stage.stumps)}</maxWeakCount>",
        f"<stageThreshold>{_number(stage.threshold)}</stageThreshold>",
        "<weakClassifiers>",
    ]
    for stump in stage.stumps:
        # The children 0 and -1 are the two leaves.
        lines.append(
            f"<_><internalNodes>0 -1 {stump.feature} {_number(stump.threshold)}</internalNodes>"
            f"<leafValues>{_number(stump.below)} {_number(stump.above)}</leafValues></_>"
        )
    return [*lines, "</weakClassifiers>", "</_>"]


def _feature_lines(feature: HaarFeature) -> list[str]:
    rectangles = "".join(
        f"<_>{entry.x} {entry.y} {entry.width} {entry.height} {_number(entry.weight)}</_>" for entry in feature
    )
    return [f"<_><rects>{rectangles}</rects><tilted>0</tilted></_>"]


def _number(value: float) -> str:
    """As many digits as bring a float32 back, with the point or exponent that tells OpenCV that it is none of int."""
    text = f"{np.float32(value):.9g}"
    return text if set(text) & set(".e") else text + "."
