"""Names beside points: each is written once, and none covers another one, a mark, or the picture's edge."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from boxwright.bench.plot_labels import Label, place_labels

figures = pytest.importorskip("matplotlib.figure")


def placed(
    points: list[tuple[float, float]], *, name: str = "model_openvino_model", spread: float = 0.02
) -> tuple[Any, list[Any], list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    figure = figures.Figure(figsize=(9, 5.6), dpi=150)
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = figure.add_subplot()
    axes.set_xlim(0, 1500)
    axes.set_ylim(0.6, 0.7)
    labels = [
        Label(text=f"{name} {index}", x=x, y=y, x_interval=((1 - spread) * x, (1 + spread) * x), colour="k")
        for index, (x, y) in enumerate(points)
    ]
    figure.draw_without_rendering()
    texts = place_labels(axes, labels, [(0, 0.65), (1000, 0.65), (1000, 0.6)])
    assert [text.get_text() for text in texts] == [label.text for label in labels]
    assert len(axes.texts) == len(labels)
    return axes, [Text.get_window_extent(text, renderer) for text in texts], texts


@pytest.mark.parametrize(
    "points",
    [
        [(600, 0.6432), (960, 0.6424), (1000, 0.6429), (1024, 0.6424), (1150, 0.6429)],
        [(1000, 0.65)] * 4,
        [(1490, 0.699), (10, 0.601), (1490, 0.601), (10, 0.699)],
    ],
)
def test_no_name_covers_another_or_a_mark(points: list[tuple[float, float]]) -> None:
    axes, boxes, _ = placed(points)
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    for box in boxes:
        assert axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
        for point in points:
            assert not box.contains(*axes.transData.transform(point))


def test_a_name_keeps_off_intervals_and_off_the_line() -> None:
    """The usual place, to the right above, is taken by another's interval, and by the line, if only a part of it."""
    axes, (box, _), _ = placed([(700, 0.62), (800, 0.6223)], name="m.onnx")
    ends = axes.transData.transform([(0.98 * 800, 0.6223), (1.02 * 800, 0.6223)])
    for x, y in ends:
        assert not box.padded(4).contains(x, y)
    axes, (box,), _ = placed([(700, 0.6478)], name="m.onnx")
    line = axes.transData.transform((700, 0.65))[1]
    assert not box.y0 <= line <= box.y1


def test_a_name_covers_no_mark_that_lies_where_it_ends() -> None:
    points = [(400, 0.62), (670, 0.6235)]
    axes, (box, _), _ = placed(points)
    assert not box.padded(6).contains(*axes.transData.transform(points[1]))


@pytest.mark.parametrize(
    ("points", "spread"),
    [
        ([(700, 0.64), (740, 0.6412), (740, 0.6388), (660, 0.6412), (660, 0.6388)], 0.02),
        # Two at one height whose intervals lie across each other, and one above.
        ([(656, 0.647), (658, 0.655), (672, 0.647)], 0.15),
    ],
)
def test_the_way_to_a_far_name_leads_through_no_other_mark(points: list[tuple[float, float]], spread: float) -> None:
    axes, boxes, _ = placed(points, spread=spread)
    marks = [axes.transData.transform(point) for point in points]
    for index, box in enumerate(boxes):
        middle = [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2]
        for other in (mark for position, mark in enumerate(marks) if position != index):
            parts = np.linspace(0, 1, 50)[:, None]
            way = (1 - parts) * np.array(middle) + parts * np.array(marks[index])
            assert np.abs(way - other).max(axis=1).min() > 4  # half of a mark, in pixels


def test_a_lone_point_has_its_name_beside_it_and_off_the_line() -> None:
    axes, (box,), (text,) = placed([(700, 0.65)], name="m.onnx")
    x, y = axes.transData.transform((700, 0.65))
    assert box.x0 - x < 30 and 0 < box.y0 - y < 30  # pixels, at 150 dots an inch
    assert text.arrow_patch is None
