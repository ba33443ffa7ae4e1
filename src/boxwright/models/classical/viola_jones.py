"""Training of a cascade: each stage boosts stumps against what all stages before it have let pass.

Source: Viola and Jones, Rapid Object Detection using a Boosted Cascade of Simple Features, CVPR 2001, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import InputError, MissingDependencyError
from boxwright.models.classical.cascade import Cascade, Stage, Stump, stage_limit
from boxwright.models.classical.haar_features import FloatArray, IntegralWindows, Windows, sample_features
from boxwright.models.classical.scan import scan
from boxwright.models.classical.windows import check_windows, random_windows

# Windows expected among those looked at for a stage where the cascade has just reached its target: enough to tell.
_WINDOWS_AT_TARGET = 20
_FIRST_BUDGET = 8
# Random windows for the first stage are drawn again, at most so often, until such a share of them has contrast.
_LEAST_SHARE, _MOST_DRAWS = 0.1, 50


@dataclass(frozen=True, kw_only=True)
class CascadeSettings:
    """How a cascade is trained.

    Attributes:
        num_stages: at most.
        min_true_positive_rate: that each stage keeps of the positives.
        max_false_positive_rate: at which a stage is done.
        max_stumps: of a stage, whatever it lets pass.
        target_false_positive_rate: at which training ends: the share of the places of the backgrounds, at all scales,
            at which OpenCV finds the object. Of all windows more may pass, since OpenCV skips the place beside one that
            the first stage rejects.
        num_features: drawn from all, for the whole cascade.
        num_negatives: windows that each stage is trained against; fewer where the backgrounds give no more.
        seed: of the draws.
    """

    num_stages: int = 20
    min_true_positive_rate: float = 0.995
    max_false_positive_rate: float = 0.5
    max_stumps: int = 100
    target_false_positive_rate: float = 1e-6
    num_features: int = 2000
    num_negatives: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("min_true_positive_rate", "max_false_positive_rate", "target_false_positive_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(name, expected="a number in (0, 1]", got=str(getattr(self, name)), fix="correct it")
        for name in ("num_stages", "max_stumps", "num_features", "num_negatives"):
            if getattr(self, name) < 1:
                raise InputError(name, expected="at least 1", got=str(getattr(self, name)), fix="correct it")


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """What a stage reached on the windows that it was trained on.

    Attributes:
        num_stumps: of the stage.
        true_positive_rate: of the positives that came to it.
        false_positive_rate: of its negatives.
        negatives_passed_so_far: the share of background windows that got as far as this stage; from the second stage on
            of the places at which OpenCV may look, and so a lower bound (see `Scan`).
    """

    num_stumps: int
    true_positive_rate: float
    false_positive_rate: float
    negatives_passed_so_far: float


def train_cascade(
    positives: Windows,
    backgrounds: Sequence[NDArray[np.uint8]],
    settings: CascadeSettings | None = None,
    *,
    on_stage: Callable[[StageReport], None] | None = None,
) -> Cascade:
    """Train a cascade.

    Args:
        positives: (N, H, W) uint8 grey: the object, filling a window of that size.
        backgrounds: (h, w) uint8 grey images without the object, from which negatives are taken at all sizes: at random
            for the first stage, then what passes in OpenCV's scan of them (of one beyond a megapixel, of a part).
        settings: see `CascadeSettings`.
        on_stage: told of every stage.

    Returns:
        A cascade of one stage at least.

    Raises:
        InputError: where there is too little to learn from.
        MissingDependencyError: where scikit-learn is not installed.
    """
    settings = settings or CascadeSettings()
    check_windows(positives, backgrounds)
    random = np.random.default_rng(settings.seed)
    window_hw = (positives.shape[1], positives.shape[2])
    features = sample_features(window_hw, settings.num_features, random)
    cascade = Cascade(window_hw=window_hw, features=features, stages=())
    for _ in range(settings.num_stages):
        positives = positives[cascade.passes(positives)]
        negatives, share = _negatives(cascade, backgrounds, settings, random)
        if len(positives) == 0 or (len(negatives) == 0 and not cascade.stages):  # later stages keep positives
            raise InputError(
                "windows to learn from",
                expected="positives and backgrounds with some contrast",
                got=f"{len(positives)} and {len(negatives)} usable windows",
                fix="pass other images",
            )
        if cascade.stages and (len(negatives) == 0 or share <= settings.target_false_positive_rate):
            break
        stage, report = _train_stage(cascade, positives, negatives, settings, share)
        cascade = Cascade(window_hw=window_hw, features=features, stages=(*cascade.stages, stage))
        if on_stage is not None:
            on_stage(report)
    return cascade.without_unused_features()


def _negatives(
    cascade: Cascade, backgrounds: Sequence[NDArray[np.uint8]], settings: CascadeSettings, random: np.random.Generator
) -> tuple[Windows, float]:
    """Background windows (M, H, W) that the cascade takes for the object, and a lower bound of their share."""
    if not cascade.stages:
        return _random_negatives(cascade, backgrounds, settings.num_negatives, random)
    most_scanned = ceil(_WINDOWS_AT_TARGET / settings.target_false_positive_rate)
    found = scan(cascade, backgrounds, settings.num_negatives, random, most_scanned=most_scanned)
    return found.windows, found.num_passed / found.num_scanned


def _random_negatives(
    cascade: Cascade, backgrounds: Sequence[NDArray[np.uint8]], count: int, random: np.random.Generator
) -> tuple[Windows, float]:
    """Windows anywhere in the backgrounds, less those without contrast, and the share of the others.

    So many are drawn once, and where hardly any has contrast, as in images that are flat for the most part, again.
    """
    found: list[Windows] = []
    for _ in range(_MOST_DRAWS):
        windows = random_windows(backgrounds, cascade.window_hw, count, random)
        found.append(windows[cascade.passes(windows)])
        num_found = sum(map(len, found))
        if num_found >= _LEAST_SHARE * count:
            break
    return np.concatenate(found)[:count], num_found / (len(found) * count)


def _train_stage(
    cascade: Cascade, positives: Windows, negatives: Windows, settings: CascadeSettings, share: float
) -> tuple[Stage, StageReport]:
    """The shortest stage that keeps enough positives and lets few enough negatives pass."""
    table = IntegralWindows(np.concatenate([positives, negatives])).table(cascade.features)  # (N, F)
    is_positive = np.arange(len(table)) < len(positives)
    for most_stumps in _growing_budgets(settings.max_stumps):
        stumps = _boost(table, is_positive, most_stumps, settings.seed)
        stage, report = _shortest_stage(table, is_positive, stumps, settings, share)
        if report.false_positive_rate <= settings.max_false_positive_rate:
            break
    return stage, report


def _growing_budgets(most: int) -> Iterator[int]:
    """Numbers of stumps to try; most stages need a few, and scikit-learn fits as many as it is told."""
    budget = _FIRST_BUDGET
    while budget < most:
        yield budget
        budget *= 2
    yield most


def _shortest_stage(
    table: FloatArray, is_positive: NDArray[np.bool_], stumps: list[Stump], settings: CascadeSettings, share: float
) -> tuple[Stage, StageReport]:
    """The fewest of these stumps that let few enough negatives pass; all, where none do."""
    sums = np.zeros(len(table), dtype=np.float64)
    stage = report = None
    for count, stump in enumerate(stumps, start=1):
        is_below = table[:, stump.feature] < np.float32(stump.threshold)
        sums += np.where(is_below, np.float32(stump.below), np.float32(stump.above))
        threshold = _threshold(sums[is_positive], settings.min_true_positive_rate)
        passes = sums >= stage_limit(threshold)
        stage = Stage(stumps=tuple(stumps[:count]), threshold=threshold)
        report = StageReport(
            num_stumps=count,
            true_positive_rate=float(passes[is_positive].mean()),
            false_positive_rate=float(passes[~is_positive].mean()),
            negatives_passed_so_far=share,
        )
        if report.false_positive_rate <= settings.max_false_positive_rate:
            break
    assert stage is not None
    assert report is not None
    return stage, report


def _boost(table: FloatArray, is_positive: NDArray[np.bool_], most_stumps: int, seed: int) -> list[Stump]:
    """AdaBoost's stumps in their order; fewer stumps are a prefix of more."""
    try:
        from sklearn.ensemble import AdaBoostClassifier
        from sklearn.tree import DecisionTreeClassifier
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", extra="train", needed_for="train_cascade") from error
    ensemble = AdaBoostClassifier(DecisionTreeClassifier(max_depth=1), n_estimators=most_stumps, random_state=seed)
    try:
        ensemble.fit(table, is_positive.astype(np.int64))
    except ValueError as error:
        if "worse than random" not in str(error):
            raise
        raise _nothing_tells_them_apart() from error
    trees = zip(ensemble.estimators_, ensemble.estimator_weights_, strict=False)
    stumps = [_as_stump(tree, float(weight)) for tree, weight in trees]
    if any(stump is None for stump in stumps[:1]):
        raise _nothing_tells_them_apart()
    return [stump for stump in stumps if stump is not None]


def _nothing_tells_them_apart() -> InputError:
    return InputError(
        "windows to learn from",
        expected="positives that some feature tells from the background",
        got="none that does",
        fix="pass other images, or more features",
    )


def _as_stump(tree: Any, weight: float) -> Stump | None:
    """A tree of depth one as a stump of ours; None for one that did not split."""
    nodes = tree.tree_
    if nodes.node_count != 3:
        return None
    # Its left side is value <= threshold, ours value < threshold.
    threshold = np.float32(nodes.threshold[0])
    if threshold <= nodes.threshold[0]:
        threshold = np.nextafter(threshold, np.float32(np.inf))
    votes = [weight if nodes.value[node][0].argmax() == 1 else -weight for node in (1, 2)]
    return Stump(feature=int(nodes.feature[0]), threshold=float(threshold), below=votes[0], above=votes[1])


def _threshold(sums: NDArray[np.float64], min_rate: float) -> float:
    """The highest threshold that so many of the positives' sums reach."""
    most_lost = int(np.floor((1.0 - min_rate) * len(sums) + 1e-9))
    return float(np.float32(np.sort(sums)[most_lost]))
