"""How long a search will still take, on a clock of the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boxwright.calibration import budget_calibration, forecast
from boxwright.calibration.budget import feared_drop
from boxwright.calibration.budget_calibration import calibrate_to_budget
from boxwright.calibration.forecast import Forecast, WholeSearch
from boxwright.cli._calibration_search import shown_progress
from colour_data import write_colour_data
from colour_network import save_colour_network
from search_fakes import FakeEvaluator, searcher


def test_nothing_is_foretold_before_the_first_measurement() -> None:
    known = Forecast()
    assert known.seconds_left == 0
    known.expect("ranking", 5, num_images=10)
    assert known.seconds_left == 0


def test_what_is_to_come_lasts_as_long_as_the_last_of_its_kind() -> None:
    known = Forecast()
    known.expect("ranking", 12, num_images=10)
    known.expect("full", 3, num_images=40)
    known.note("ranking", 100.0, num_images=10)
    # A kind that none was made of lasts as long for an image.
    assert known.seconds_left == pytest.approx(11 * 100 + 3 * 400)
    for _ in range(8):
        known.note("ranking", 2.0, num_images=10)
    assert known.seconds_left == pytest.approx(3 * 2 + 3 * 8)  # the slow first is forgotten
    known.note("full", 20.0, num_images=40)
    assert known.seconds_left == pytest.approx(3 * 2 + 2 * 20)
    known.expect("ranking", 0, num_images=10)
    assert known.seconds_left == pytest.approx(2 * 20)
    for _ in range(5):
        known.note("full", 20.0, num_images=40)  # more than was thought
    assert known.seconds_left == 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(forecast.time, "monotonic", lambda: now[0])
    return now


def test_later_searches_are_thought_to_last_as_long_as_this_one(clock: list[float]) -> None:
    told: list[tuple[str, int, int]] = []
    whole = WholeSearch(lambda *entry: told.append(entry), num_searches=2, deadline=float("inf"))
    whole.begin(lambda: 0.0)
    whole("first: ranges", 1, 3)
    assert told == [("first: ranges", 1, 3)]  # nobody knows yet
    clock[0] += 10
    whole.begin(lambda: 5.0)
    whole("second: ranges", 1, 3)
    assert told[-1] == (WholeSearch.PHASE, 10, 15)


def test_the_last_timing_is_foretold_by_itself(clock: list[float]) -> None:
    told: list[tuple[str, int, int]] = []
    whole = WholeSearch(lambda *entry: told.append(entry), num_searches=2, deadline=float("inf"))
    whole.begin(lambda: 50.0)
    whole.begin(lambda: 50.0)
    clock[0] += 4
    whole.begin_end(20.0)
    clock[0] += 5
    whole("first: timing", 1, 3)
    assert told[-1] == (WholeSearch.PHASE, 9, 24)
    clock[0] += 30
    whole("second: timing", 1, 3)
    assert told[-1] == (WholeSearch.PHASE, 39, 40)


@pytest.mark.parametrize(("minutes", "is_tried"), [(None, True), (10.0, True), (1e-4, False)])
def test_a_second_pass_must_leave_most_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float | None, is_tried: bool
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(budget_calibration, "equalized_quantizer", lambda *arguments: asked.append(True))
    monkeypatch.setattr(budget_calibration, "_run_in_turn", stop)
    data = write_colour_data(tmp_path / "colours", num_images=16)
    model = save_colour_network(tmp_path / "m.onnx")
    with pytest.raises(KeyboardInterrupt):
        calibrate_to_budget(
            model, data, tmp_path / "out.onnx", max_drop=5.0, split="val", engines=("onnxruntime",),
            time_limit_minutes=minutes,
        )  # fmt: skip
    assert bool(asked) == is_tried


def stop(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_the_forecast_of_a_search_comes_true(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that every measurement moves on by what it takes for its images."""
    now = [0.0]
    monkeypatch.setattr("boxwright.calibration.search.time.monotonic", lambda: now[0])
    evaluator = FakeEvaluator(fine_speed=0.5)
    measure = evaluator.evaluate

    def evaluate(variant: Any, choice: Any, **wishes: Any) -> Any:
        now[0] += 0.5 * len(choice.samples)
        return measure(variant, choice, **wishes)

    monkeypatch.setattr(evaluator, "evaluate", evaluate)
    foretold: dict[str, tuple[float, float]] = {}
    search = searcher(evaluator, feared_drop(0.03), on_progress=lambda phase, done, total: note(phase))

    def note(phase: str) -> None:
        foretold.setdefault(phase.split(": ")[1], (now[0], search.seconds_left()))

    search.run(deadline=float("inf"))
    assert search.seconds_left() < 0.2 * now[0]
    for phase in ("ranges", "cheap repairs", "sensitivity of layers", "layers to better"):
        at, left = foretold[phase]
        assert 0.6 < (at + left) / now[0] < 1.6, phase


def test_the_whole_search_ends_by_the_deadline(clock: list[float]) -> None:
    told: list[tuple[str, int, int]] = []
    whole = WholeSearch(lambda *entry: told.append(entry), num_searches=3, deadline=160.0)
    whole.begin(lambda: 20.0)
    clock[0] += 4
    whole("first: ranges", 1, 3)
    assert told[-1] == (WholeSearch.PHASE, 4, 60)  # not 4 + 20 + 2 * 24
    whole.begin(lambda: 1.0)
    whole("second: ranges", 1, 3)
    assert told[-1] == (WholeSearch.PHASE, 4, 6)
    clock[0] += 3
    whole.end()
    assert told[-1] == (WholeSearch.PHASE, 7, 7)


def test_a_search_tells_how_long_it_will_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("boxwright.calibration.stopwatch._BLOCK_S", 0.002)
    told: list[tuple[str, int, int]] = []
    data = write_colour_data(tmp_path / "colours", num_images=16)
    calibrate_to_budget(
        save_colour_network(tmp_path / "m.onnx"),
        data,
        tmp_path / "m_int8.onnx",
        max_drop=5.0,
        split="val",
        engines=("onnxruntime",),
        on_progress=lambda *entry: told.append(entry),
    )
    whole = [(done, total) for phase, done, total in told if phase == WholeSearch.PHASE]
    assert len(whole) > 5 and all(0 <= done <= total for done, total in whole)
    assert whole[-1][0] == whole[-1][1] > 0
    phases = list(dict.fromkeys(phase for phase, _, _ in told))
    assert "onnxruntime: ranges" in phases and phases.index(WholeSearch.PHASE) < phases.index("onnxruntime: ranges") + 2


def test_the_command_line_shows_what_is_left_of_the_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    with shown_progress() as show:
        show(WholeSearch.PHASE, 30, 125)
        show(WholeSearch.PHASE, 60, 131)
    line = capsys.readouterr().err
    assert "60/131" in line and "0:01:11" in line
