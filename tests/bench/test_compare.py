"""What counts as a regression between two benchmarks, and what the noise explains."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench_reports import failed, report_of, result_of
from boxwright.bench.compare import compare_reports
from boxwright.bench.results import BenchReport, Result
from boxwright.core.errors import InputError


def base() -> Result:
    return result_of("m", p50_ms=10.0, map_=0.300)


@pytest.mark.parametrize(
    ("p50_ms", "map_", "changes", "is_regression"),
    [
        (10.0, 0.300, ("same",), False),
        (10.3, 0.300, ("same",), False),  # slower, by less than is allowed
        (10.8, 0.300, ("slower",), True),
        (9.0, 0.300, ("faster",), False),
        (10.0, 0.298, ("same",), False),  # 0.2 points
        (10.0, 0.296, ("less_accurate",), True),
        (10.0, 0.304, ("more_accurate",), False),
        (12.0, 0.310, ("slower", "more_accurate"), True),
        (12.0, 0.290, ("slower", "less_accurate"), True),
    ],
)
def test_movements(p50_ms: float, map_: float, changes: tuple[str, ...], is_regression: bool) -> None:
    new = result_of("m", p50_ms=p50_ms, map_=map_, seed=1)
    comparison = compare_reports(report_of(base()), report_of(new), max_slowdown=0.05, max_drop_points=0.3)
    (movement,) = comparison.movements
    assert movement.changes == changes
    assert movement.is_regression is is_regression
    assert movement.map_change_points == pytest.approx((map_ - 0.300) * 100)
    assert movement.latency is not None
    assert movement.latency.ratio == pytest.approx(p50_ms / 10, rel=0.01)
    assert len(comparison.regressions) == int(is_regression)


def test_a_slowdown_that_the_noise_explains_is_none() -> None:
    """8 % apart in the median, but the rounds scatter by 40 %."""
    old = result_of("m", p50_ms=10.0, map_=0.3, noise=0.4, seed=5)
    new = replace(old, rounds_ms=tuple(tuple(1.08 * value for value in row) for row in old.rounds_ms))
    comparison = compare_reports(report_of(old), report_of(new))
    assert comparison.movements[0].latency is not None
    assert comparison.movements[0].latency.ratio == pytest.approx(1.08)
    assert comparison.regressions == ()


def test_candidates_that_come_and_go() -> None:
    old = report_of(base(), result_of("gone", p50_ms=5, map_=0.1), failed(result_of("never", p50_ms=5, map_=0.1)))
    new = report_of(
        failed(base()), result_of("fresh", p50_ms=5, map_=0.1), failed(result_of("never", p50_ms=5, map_=0.1))
    )
    movements = {movement.name: movement for movement in compare_reports(old, new).movements}
    assert {name: movement.changes for name, movement in movements.items()} == {
        "m": ("lost",),
        "fresh": ("new",),
        "never": ("same",),
        "gone": ("lost",),
    }
    assert movements["m"].reason == "crashed: its process ended with signal 11"
    assert movements["gone"].reason == "not in the new results"


def test_candidates_are_known_by_their_file_whatever_its_folder_and_name() -> None:
    moved = replace(base(), name="m.onnx fp32", model="/elsewhere/m.onnx")
    assert compare_reports(report_of(base()), report_of(moved)).movements[0].changes == ("same",)


def test_a_candidate_that_is_there_twice_is_compared_in_order() -> None:
    slow = result_of("m", p50_ms=20.0, map_=0.3)
    comparison = compare_reports(report_of(base(), slow), report_of(base(), slow))
    assert [movement.changes for movement in comparison.movements] == [("same",), ("same",)]


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (report_of(base(), data=replace(report_of().data, sha256="e" * 64)), "two benchmarks of the same data"),
        (report_of(result_of("other", p50_ms=1, map_=0.1)), "a candidate that is in both"),
    ],
)
def test_what_cannot_be_compared_is_an_error(new: BenchReport, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare_reports(report_of(base()), new)


def test_notes_say_why_times_may_not_compare() -> None:
    old = report_of(base())
    new = report_of(
        base(),
        machine=replace(old.machine, cpu_name="Other CPU"),
        software={"python": "3.11.7", "onnxruntime": "2.0"},
        settings=replace(old.settings, iou=0.65),
        is_noisy=True,
    )
    assert compare_reports(old, new).notes == (
        "measured on different machines (Test CPU, 2 cores; Other CPU, 2 cores): times do not compare",
        "other versions: onnxruntime 1.0 to 2.0",
        "iou was 0.7 and is 0.65",
        "the new run was disturbed",
    )


def test_notes_say_what_was_not_compared() -> None:
    old = replace(report_of(base()), is_complete=False)
    new = report_of(replace(base(), map=None, map50=None, accuracy=None))
    comparison = compare_reports(old, new)
    assert comparison.regressions == ()
    assert comparison.notes == (
        f"{base().name}: its AP was measured before and is not now; only times are compared",
        "the old run was cut short",
    )
