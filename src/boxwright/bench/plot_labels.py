"""Names beside the points of a plot, where they cover no other name, no mark and no line."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

# Diameter of the marks.
MARK_POINTS = 8
_OFFSETS = tuple((x, y) for y in (7, -14, 22, -29, 38, -45, 54, -61) for x in (9, -9, 30, -30))
# Points; labels that are farther off get a line to their mark.
_FAR_OFFSET = 16


@dataclass(frozen=True, kw_only=True)
class Label:
    """A point and its name.

    Attributes:
        text: to write.
        x: of the point, in the axes' data.
        y: likewise.
        x_interval: ends of the horizontal line through it.
        colour: of the text.
    """

    text: str
    x: float
    y: float
    x_interval: tuple[float, float]
    colour: str


def place_labels(axes: Axes, labels: Sequence[Label], line: Sequence[tuple[float, float]]) -> list[Annotation]:
    """Write all names; the axes' limits and the figure's layout must be final.

    Args:
        axes: to write into.
        labels: one a point.
        line: corners of a line to be kept clear of where there is room.
    """
    from matplotlib.text import Text

    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    marks = [_extent_of_mark(axes, label, label.x_interval) for label in labels]
    # A way to a mark may cross intervals, which lie across each other anyway.
    dots = [_extent_of_mark(axes, label, (label.x, label.x)) for label in labels]
    corners = list(axes.transData.transform(line)) if line else []
    lines = [_extent_of_line(*ends) for ends in itertools.pairwise(corners)]
    placed: list[Annotation] = []
    taken: list[Bbox] = []
    for label, dot in zip(labels, dots, strict=True):
        obstacles = [*taken, *(other for other in dots if other is not dot)]
        attempts: list[tuple[float, Bbox, Annotation]] = []
        for offset in _OFFSETS:
            text = _write(axes, label, offset)
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)  # without the line to its mark
            faults = 3.0 * sum(box.overlaps(other) for other in taken) + 2.0 * sum(box.overlaps(m) for m in marks)
            faults += 3.0 * (not (axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)))
            faults += 1.5 * sum(_leads_through(box, dot, other) for other in obstacles)
            faults += 0.5 * sum(box.overlaps(other) for other in lines)
            attempts.append((faults, box, text))
            if faults == 0:
                break
        _, box, best = min(attempts, key=lambda attempt: attempt[0])
        for _, _, text in attempts:
            if text is not best:
                text.remove()
        placed.append(best)
        taken.append(box)
    return placed


def _write(axes: Axes, label: Label, offset: tuple[int, int]) -> Annotation:
    from matplotlib.patheffects import withStroke

    is_far = max(map(abs, offset)) > _FAR_OFFSET
    return axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=offset,
        textcoords="offset points",
        ha="left" if offset[0] > 0 else "right",
        fontsize=8,
        color=label.colour,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.5, "shrinkB": 4} if is_far else None,
    )


def _extent_of_mark(axes: Axes, label: Label, interval: tuple[float, float]) -> Bbox:
    """A mark and a line through it, in pixels."""
    from matplotlib.transforms import Bbox

    ends = axes.transData.transform([(x, label.y) for x in (interval[0], label.x, interval[1])])
    radius = 0.5 * MARK_POINTS * axes.figure.get_dpi() / 72
    (low, _), (x, y), (high, _) = ends
    return Bbox.from_extents(min(low, x - radius), y - radius, max(high, x + radius), y + radius)


def _extent_of_line(start: Sequence[float], end: Sequence[float]) -> Bbox:
    from matplotlib.transforms import Bbox

    (left, right), (bottom, top) = sorted((start[0], end[0])), sorted((start[1], end[1]))
    return Bbox.from_extents(left, bottom, right, top)


def _leads_through(box: Bbox, mark: Bbox, other: Bbox) -> bool:
    """Whether the way from the middle of a label to its mark leads through something else."""
    parts = np.linspace(0, 1, 20)[:, None]
    return any(other.contains(x, y) for x, y in (1 - parts) * _middle(box) + parts * _middle(mark))


def _middle(box: Bbox) -> NDArray[np.float64]:
    return np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
