"""The picture of a search shows what decides."""

from __future__ import annotations

import pytest

from boxwright.calibration.budget import feared_drop
from boxwright.calibration.report_plot import _draw_candidates
from boxwright.calibration.search_result import Trial
from search_fakes import FakeEvaluator, searched


def test_point_and_dash_tell_which_candidates_hold_the_budget() -> None:
    figures = pytest.importorskip("matplotlib.figure")
    budget = feared_drop(0.1)
    result = searched(FakeEvaluator(), budget)
    axes = figures.Figure().subplots()
    _draw_candidates(axes, result, budget)
    dashes = {
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.lines
        if line.get_marker() == "_" and line.get_linestyle() == "None" and len(line.get_xdata()) == 1
    }
    line = 40 - budget
    assert {trial.holds for trial in result.trials} == {True, False}
    for trial in result.trials[1:]:
        assert trial.evaluation.difference is not None
        (dash,) = (y for x, y in dashes if x == trial.latency_ms and y == pytest.approx(feared_map(trial)))
        lowest = min(dash, 100 * trial.evaluation.difference.map_after)
        assert trial.holds == (lowest >= line - 1e-9)
        if dash > 40 - 4 * budget:
            assert axes.get_ylim()[0] < dash
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert any("feared on other images" in label for label in labels)


def feared_map(trial: Trial) -> float:
    return 40 - feared_drop(1 - trial.evaluation.agreement.value)
