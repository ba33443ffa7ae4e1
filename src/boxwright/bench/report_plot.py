"""FPS against mAP with the Pareto front, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.bench.plot_labels import MARK_POINTS, Label, place_labels
from boxwright.bench.results import BenchReport, Result, short_name
from boxwright.core.errors import MissingDependencyError
from boxwright.core.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that people with colour-blindness tell apart too (Okabe and Ito), one for each backend.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = {"fp32": "o", "bf16": "s", "fp16": "D", "int8": "^"}
_FRONT_COLOUR = "#888888"
_WIDE_RANGE = 8.0  # between the slowest and the fastest; above it the axis is logarithmic


def is_drawable(report: BenchReport) -> bool:
    """Whether any candidate has both numbers."""
    return bool(_points(report))


def draw_pareto(report: BenchReport, path: Path) -> None:
    """Draw the picture.

    Args:
        report: with at least one candidate that has both numbers.
        path: of the PNG file.

    Raises:
        MissingDependencyError: where the extra `bench` is not installed.
        OutputError: where it cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", extra="bench", needed_for="drawing the report") from error
    figure = Figure(figsize=(9, 5.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = _points(report)
    _prepare(axes, report, points)
    front = _draw_front(axes, report)
    _draw_points(axes, points)
    _draw_legend(axes, points)
    figure.draw_without_rendering()
    labels = [_label_of(row, points) for row in points]
    place_labels(axes, labels, front)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _points(report: BenchReport) -> list[Result]:
    return [row for row in report.results if row.fps is not None and row.map is not None]


def _colour_of(row: Result, points: list[Result]) -> str:
    backends = sorted({point.backend for point in points})
    return _COLOURS[backends.index(row.backend) % len(_COLOURS)]


def _prepare(axes: Axes, report: BenchReport, points: list[Result]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    rates = [row.fps or 0.0 for row in points]
    if max(rates) > _WIDE_RANGE * min(rates):
        axes.set_xscale("log")
        axes.set_xlim(min(rates) / 1.5, max(rates) * 2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        highest = max(1e3 / row.latency_ms.p50_low for row in points if row.latency_ms is not None)
        axes.set_xlim(0, max(1.3 * max(rates), 1.03 * min(highest, 2 * max(rates))))
    maps = [row.map or 0.0 for row in points]
    margin = max(0.15 * (max(maps) - min(maps)), 0.01)
    axes.set_ylim(max(0.0, min(maps) - 1.5 * margin), max(maps) + 1.5 * margin)
    axes.set_xlabel("images a second, end to end, one at a time (line: 95 % interval)")
    axes.set_ylabel(f"COCO AP on {Path(report.data.path).name} {report.data.split}")
    axes.set_title(
        f"{report.machine.cpu_name}, {report.machine.num_cores} cores" + (", disturbed run" if report.is_noisy else ""),
        fontsize=10,
        color="#444444",
    )
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_front(axes: Axes, report: BenchReport) -> list[tuple[float, float]]:
    """The edge of what is reached: to the left of and below it nothing is worth a choice. Returns its corners."""
    front = sorted(report.pareto, key=lambda point: point.fps)
    if not front:
        return []
    left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    rates = [left, *(point.fps for point in front), front[-1].fps]
    maps = [front[0].map, *(point.map for point in front), bottom]
    corners = [(rates[0], maps[0])]
    for rate, height in zip(rates[1:], maps[1:], strict=True):
        corners += [(corners[-1][0], height), (rate, height)]
    axes.plot(*zip(*corners, strict=True), color=_FRONT_COLOUR, linewidth=1.2, linestyle="--", zorder=1)
    return corners


def _draw_points(axes: Axes, points: list[Result]) -> None:
    for row in points:
        latency = row.latency_ms
        assert row.fps is not None and row.map is not None and latency is not None
        colour = _colour_of(row, points)
        ends = [[max(0.0, row.fps - 1e3 / latency.p50_high)], [max(0.0, 1e3 / latency.p50_low - row.fps)]]
        axes.errorbar(
            row.fps,
            row.map,
            xerr=ends,
            fmt=_MARKERS.get(row.precision, "o"),
            color=colour,
            markersize=MARK_POINTS,
            markeredgecolor="white",
            elinewidth=1.5,
            capsize=3,
            zorder=3,
        )


def _draw_legend(axes: Axes, points: list[Result]) -> None:
    from matplotlib.lines import Line2D

    def handle(label: str, colour: str, marker: str) -> Line2D:
        return Line2D([], [], color=colour, marker=marker, linestyle="none", label=label)

    backends = {row.backend: _colour_of(row, points) for row in points}
    precisions = {row.precision: _MARKERS.get(row.precision, "o") for row in points}
    handles = [handle(name, colour, "o") for name, colour in sorted(backends.items())]
    handles += [handle(name, "#666666", marker) for name, marker in sorted(precisions.items())]
    handles.append(Line2D([], [], color=_FRONT_COLOUR, linestyle="--", label="Pareto front"))
    axes.legend(handles=handles, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _label_of(row: Result, points: list[Result]) -> Label:
    """Backend and precision are told by the colour and the mark."""
    assert row.fps is not None and row.map is not None and row.latency_ms is not None
    interval = (min(row.fps, 1e3 / row.latency_ms.p50_high), max(row.fps, 1e3 / row.latency_ms.p50_low))
    return Label(text=short_name(row), x=row.fps, y=row.map, x_interval=interval, colour=_colour_of(row, points))
