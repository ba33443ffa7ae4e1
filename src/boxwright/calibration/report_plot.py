"""The picture of a search: mAP against time of every candidate, and what each layer costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.calibration.budget import feared_drop
from boxwright.calibration.variant import Variant
from boxwright.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from boxwright.calibration.budget_calibration import BudgetResult
    from boxwright.calibration.search_result import SearchResult, Trial
    from boxwright.calibration.sensitivity import LayerSensitivity

# Colours that people with colour-blindness tell apart too (Okabe and Ito).
_COLOURS = {"float": "#000000", "within": "#009E73", "over": "#D55E00", "depthwise": "#CC79A7", "dense": "#0072B2"}
_MOST_BARS = 40
_ROW_INCHES = 4.8
# What is to be feared of a form that is over the budget by more leaves the picture.
_MOST_BUDGETS = 4


def draw_search(result: BudgetResult, path: Path) -> None:
    """Draw one row an engine: the candidates at the left, the most harmful layers at the right.

    Args:
        result: of a search.
        path: of the PNG file.

    Raises:
        MissingDependencyError: where the extra `bench` is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", extra="bench", needed_for="drawing the search") from error
    rows = len(result.searches)
    figure = Figure(figsize=(14, _ROW_INCHES * rows), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2, squeeze=False, width_ratios=(1, 1.25))
    for search, (left, right) in zip(result.searches, axes, strict=True):
        _draw_candidates(left, search, result.max_drop)
        _draw_sensitivities(right, search)
    figure.savefig(path, format="png")


def _draw_candidates(axes: Axes, search: SearchResult, max_drop: float) -> None:
    for trial in search.trials:
        _draw_trial(axes, trial)
    _mark_trials(axes, search)
    first = search.trials[0].evaluation.difference if search.trials else None
    if first is not None:
        budget = 100 * first.map_before - max_drop
        axes.axhline(budget, color="#888888", linestyle="--", linewidth=1)
        axes.annotate(
            f"budget: FP32 - {max_drop:g}",
            (0, budget),
            (4, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="left",
            fontsize=8,
            color="#666666",
        )
        axes.set_ylim(*_shown_range(search.trials, budget, max_drop))
    for name, marker, colour in (("float", "o", "float"), ("INT8 within", "^", "within"), ("INT8 over", "^", "over")):
        axes.plot([], [], marker, color=_COLOURS[colour], label=name)
    axes.plot([], [], "-", color="#555555", linewidth=0.9, label="90 % of the resampled drops")
    axes.plot([], [], ":_", color="#555555", markersize=9, label="dotted to a dash: feared on other images")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)
    axes.set_xlim(*_shown_times(search.trials))
    axes.set_title(f"{search.engine}: candidates; point and dash must both lie above the budget", fontsize=10)
    axes.set_xlabel("engine alone, ms an image")
    axes.set_ylabel("mAP, points")
    axes.grid(alpha=0.3)


def _draw_trial(axes: Axes, trial: Trial) -> None:
    """A point with its interval, and a dash at the mAP that is to be feared."""
    difference = trial.evaluation.difference
    assert difference is not None
    colour = _COLOURS["float" if trial.is_float else "within" if trial.holds else "over"]
    point = 100 * difference.map_after
    axes.errorbar(
        trial.latency_ms,
        point,
        # The interval is of the drop: a higher drop is a lower mAP.
        yerr=(
            [max(0.0, 100 * (difference.high - difference.drop))],
            [max(0.0, 100 * (difference.drop - difference.low))],
        ),
        fmt="o" if trial.is_float else "^",
        color=colour,
        elinewidth=0.9,
        alpha=0.9,
    )
    feared = _feared_map(trial)
    if feared < point:
        axes.plot([trial.latency_ms] * 2, [point, feared], ":", color=colour, linewidth=1)
    if trial.variant != Variant(engine=trial.variant.engine):
        axes.plot([trial.latency_ms], [feared], "_", color=colour, markersize=9, markeredgewidth=1.6)


def _mark_trials(axes: Axes, search: SearchResult) -> None:
    """Name the float forms, what is chosen, and what is recommended where that is another."""
    chosen, recommended = search.chosen(), search.recommended()
    for trial in search.trials:
        words = [trial.variant.precision.upper()] if trial.is_float else []
        if trial is chosen:
            words.append("chosen")
            axes.scatter(*_place(trial), s=190, facecolors="none", edgecolors=_COLOURS["within"], linewidths=2)
        elif trial is recommended:
            words.append("recommended")
            axes.scatter(*_place(trial), s=190, marker="s", facecolors="none", edgecolors="#555555", linewidths=1.2)
        # Float forms to the left, the others to the right, so that neighbours seldom cover each other.
        offset, side = ((-12, -3), "right") if trial.is_float else ((11, 7), "left")
        colour = _COLOURS["float" if trial.is_float else "within"]
        axes.annotate(
            "\n".join(words), _place(trial), offset, textcoords="offset points", ha=side, fontsize=9, color=colour
        )


def _shown_times(trials: Sequence[Trial]) -> tuple[float, float]:
    """With room for the names at the left."""
    times = [trial.latency_ms for trial in trials] or [0.0, 1.0]
    span = max(max(times) - min(times), 0.2 * max(times))
    return max(0.0, min(times) - 0.45 * span), max(times) + 0.15 * span


def _place(trial: Trial) -> tuple[float, float]:
    assert trial.evaluation.difference is not None
    return trial.latency_ms, 100 * trial.evaluation.difference.map_after


def _feared_map(trial: Trial) -> float:
    """Points that are left where the drop is the one to be feared."""
    assert trial.evaluation.difference is not None
    return 100 * trial.evaluation.difference.map_before - feared_drop(1 - trial.evaluation.agreement.value)


def _shown_range(trials: Sequence[Trial], budget: float, max_drop: float) -> tuple[float, float]:
    """From the lowest point to the highest; of what is to be feared only what is of the budget's order."""
    values = [budget]
    for trial in trials:
        difference = trial.evaluation.difference
        assert difference is not None
        before = 100 * difference.map_before
        values += [_place(trial)[1], before - 100 * difference.low, before - 100 * difference.high]
        values += [feared for feared in (_feared_map(trial),) if before - feared < _MOST_BUDGETS * max_drop]
    margin = 0.06 * (max(values) - min(values))
    return min(values) - margin, max(values) + 2 * margin


def _draw_sensitivities(axes: Axes, search: SearchResult) -> None:
    entries = sorted(search.sensitivities, key=lambda entry: entry.damage, reverse=True)
    shown = entries[:_MOST_BARS]
    chosen = search.chosen()
    in_float = chosen.variant.recipe.float_layers if chosen is not None and chosen.variant.recipe else frozenset()
    colours = [_COLOURS["depthwise" if entry.kind == "depthwise" else "dense"] for entry in shown]
    hatches = ["//" if entry.layer in in_float else "" for entry in shown]
    axes.bar(range(len(shown)), [entry.damage for entry in shown], color=colours, hatch=hatches, edgecolor="white")
    axes.set_xticks(range(len(shown)), [entry.layer for entry in shown], rotation=90, fontsize=6)
    axes.set_title(_sensitivity_title(search, entries, len(shown)), fontsize=10)
    axes.set_ylabel("1 - agreement, this layer alone in INT8")
    for name, colour, hatch in (("dense", "dense", ""), ("depthwise", "depthwise", ""), ("in float", "float", "//")):
        face = "none" if hatch else _COLOURS[colour]
        axes.bar([0], [0], color=face, hatch=hatch, edgecolor="#555555" if hatch else "white", label=name)
    axes.legend(fontsize=8, loc="upper right")


def _sensitivity_title(search: SearchResult, entries: Sequence[LayerSensitivity], shown: int) -> str:
    if not entries:
        return f"{search.engine}: sensitivity was not measured"
    return f"{search.engine}: the {shown} most harmful of {len(entries)} layers"
