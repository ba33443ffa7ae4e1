"""FPS against mAP with the Pareto front, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.bench.results import BenchReport, Result, short_name
from boxwright.core.errors import MissingDependencyError
from boxwright.core.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

# Colours that people with colour-blindness tell apart too (Okabe and Ito), one for each backend.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = {"fp32": "o", "bf16": "s", "fp16": "D", "int8": "^"}
_LABEL_OFFSETS = ((9, 7), (9, -14), (-9, 7), (-9, -14), (9, 22), (9, -29), (-9, 22), (-9, -29))
_FAR_OFFSET = 16  # points; labels that are farther off get a line to their point
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
    _draw_front(axes, report)
    _draw_points(axes, points)
    _draw_legend(axes, points)
    figure.draw_without_rendering()
    _place_labels(axes, points)
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


def _draw_front(axes: Axes, report: BenchReport) -> None:
    """The edge of what is reached: to the left of and below it nothing is worth a choice."""
    front = sorted(report.pareto, key=lambda point: point.fps)
    if not front:
        return
    left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    rates = [left, *(point.fps for point in front), front[-1].fps]
    maps = [front[0].map, *(point.map for point in front), bottom]
    axes.step(rates, maps, where="pre", color=_FRONT_COLOUR, linewidth=1.2, linestyle="--", zorder=1)


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
            markersize=8,
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


def _place_labels(axes: Axes, points: list[Result]) -> None:
    """Write the name of each candidate beside its point, where it covers no other name and no point.

    Backend and precision are told by the colour and the mark.
    """
    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    marks = [axes.transData.transform((row.fps or 0.0, row.map or 0.0)) for row in points]
    placed: list[Annotation] = []
    for row in points:
        attempts: list[tuple[int, Annotation]] = []
        for offset in _LABEL_OFFSETS:
            text = _write_label(axes, row, offset, _colour_of(row, points))
            box = text.get_window_extent(renderer)
            faults = sum(box.overlaps(other.get_window_extent(renderer)) for other in placed)
            faults += sum(bool(box.contains(*mark)) for mark in marks)
            faults += not (axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1))
            attempts.append((faults, text))
            if faults == 0:
                break
        best = min(attempts, key=lambda attempt: attempt[0])[1]
        for _, text in attempts:
            if text is not best:
                text.remove()
        placed.append(best)


def _write_label(axes: Axes, row: Result, offset: tuple[int, int], colour: str) -> Annotation:
    is_far = abs(offset[1]) > _FAR_OFFSET
    return axes.annotate(
        short_name(row),
        (row.fps or 0.0, row.map or 0.0),
        xytext=offset,
        textcoords="offset points",
        ha="left" if offset[0] > 0 else "right",
        fontsize=8,
        color=colour,
        arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkB": 4} if is_far else None,
    )
