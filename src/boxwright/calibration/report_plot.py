"""The picture of a search: mAP against time of every candidate, and what each layer costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from boxwright.calibration.budget_calibration import BudgetResult
    from boxwright.calibration.search_result import SearchResult
    from boxwright.calibration.sensitivity import LayerSensitivity

# Colours that people with colour-blindness tell apart too (Okabe and Ito).
_COLOURS = {"float": "#000000", "within": "#009E73", "over": "#D55E00", "depthwise": "#CC79A7", "dense": "#0072B2"}
_MOST_BARS = 40
_ROW_INCHES = 4.4


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
    chosen = search.chosen()
    for trial in search.trials:
        difference = trial.evaluation.difference
        assert difference is not None
        is_float = trial.variant.recipe is None
        colour = _COLOURS["float" if is_float else "within" if trial.holds else "over"]
        drops = [100 * (difference.drop - difference.low)], [100 * (difference.high - difference.drop)]
        axes.errorbar(
            trial.latency_ms,
            100 * difference.map_after,
            # The interval is of the drop: a higher drop is a lower mAP.
            yerr=([max(0.0, drops[1][0])], [max(0.0, drops[0][0])]),
            fmt="o" if is_float else "^",
            color=colour,
            elinewidth=0.7,
            alpha=0.9,
        )
        if is_float:
            place = (trial.latency_ms, 100 * difference.map_after)
            axes.annotate(trial.variant.precision.upper(), place, (6, 6), textcoords="offset points", fontsize=9)
    if chosen is not None and chosen.evaluation.difference is not None:
        place = (chosen.latency_ms, 100 * chosen.evaluation.difference.map_after)
        axes.scatter(*place, s=190, facecolors="none", edgecolors=_COLOURS["within"], linewidths=2)
        colour = _COLOURS["within"]
        axes.annotate("chosen", place, (-9, 9), textcoords="offset points", ha="right", fontsize=9, color=colour)
    first = search.trials[0].evaluation.difference if search.trials else None
    if first is not None:
        axes.axhline(100 * first.map_before - max_drop, color="#888888", linestyle="--", linewidth=1)
        axes.annotate(
            f"budget: {max_drop:g} points below FP32",
            (0, 100 * first.map_before - max_drop),
            (4, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="left",
            fontsize=8,
            color="#666666",
        )
    for name, marker, colour in (("float", "o", "float"), ("INT8 within", "^", "within"), ("INT8 over", "^", "over")):
        axes.plot([], [], marker, color=_COLOURS[colour], label=name)
    axes.legend(fontsize=8, loc="best")
    axes.set_xlim(0, 1.15 * max((trial.latency_ms for trial in search.trials), default=1.0))
    axes.set_title(f"{search.engine}: candidates", fontsize=10)
    axes.set_xlabel("engine alone, ms an image")
    axes.set_ylabel("mAP, points, with 90 % of the resampled drops")
    axes.grid(alpha=0.3)


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
