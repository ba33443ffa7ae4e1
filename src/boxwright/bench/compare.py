"""What has become slower, faster, better or worse between two benchmarks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from boxwright.bench.noise import Comparison, compare_separate
from boxwright.bench.results import BenchReport, Result
from boxwright.core.errors import InputError

# slower, less_accurate and lost are regressions; lost: measured before, and not any more.
Change = Literal["same", "faster", "slower", "more_accurate", "less_accurate", "lost", "new"]
REGRESSIONS: frozenset[Change] = frozenset({"slower", "less_accurate", "lost"})
_POINTS = 100.0


@dataclass(frozen=True, kw_only=True)
class Movement:
    """What became of one candidate.

    Attributes:
        name: of the candidate.
        changes: `same` alone, or what is beyond the noise and, for regressions, beyond what is allowed.
        old_p50_ms: median latency.
        new_p50_ms: median latency.
        latency: of the new against the old; None where either was not measured.
        old_map: COCO AP.
        new_map: COCO AP.
        map_change_points: new less old, in points of 100.
        reason: why the new one was not measured.
    """

    name: str
    changes: tuple[Change, ...]
    old_p50_ms: float | None = None
    new_p50_ms: float | None = None
    latency: Comparison | None = None
    old_map: float | None = None
    new_map: float | None = None
    map_change_points: float | None = None
    reason: str | None = None

    @property
    def is_regression(self) -> bool:
        """Whether it became worse than is allowed."""
        return not REGRESSIONS.isdisjoint(self.changes)


@dataclass(frozen=True, kw_only=True)
class ReportComparison:
    """How two benchmarks compare.

    Attributes:
        movements: of the candidates of either, the new one's order first.
        notes: why the numbers may not be comparable.
        max_slowdown: that was allowed, as a share of the old time.
        max_drop_points: of AP that was allowed, in points of 100.
    """

    movements: tuple[Movement, ...]
    notes: tuple[str, ...]
    max_slowdown: float
    max_drop_points: float

    @property
    def regressions(self) -> tuple[Movement, ...]:
        """The candidates that became worse than is allowed."""
        return tuple(movement for movement in self.movements if movement.is_regression)


def compare_reports(
    old: BenchReport, new: BenchReport, *, max_slowdown: float = 0.05, max_drop_points: float = 0.3
) -> ReportComparison:
    """Compare two benchmarks of the same data, candidate by candidate.

    Args:
        old: before.
        new: after.
        max_slowdown: share of the old latency that the new may be longer; what the noise explains is never a slowdown.
        max_drop_points: AP that may be lost, in points of 100.

    Raises:
        InputError: where the two were measured on other data, or have no candidate in common.
    """
    _check_comparable(old, new)
    old_rows, new_rows = _by_key(old.results), _by_key(new.results)
    if not old_rows.keys() & new_rows.keys():
        raise InputError(
            "the results files",
            expected="a candidate that is in both (same file name, backend, device, precision, threads and size)",
            got=f"{', '.join(row.name for row in old.results)} and {', '.join(row.name for row in new.results)}",
            fix="compare two runs of the same candidates",
        )
    movements = [
        _movement(old_rows.get(key), row, max_slowdown=max_slowdown, max_drop_points=max_drop_points)
        for key, row in new_rows.items()
    ]
    movements += [_lost(row, "not in the new results") for key, row in old_rows.items() if key not in new_rows]
    return ReportComparison(
        movements=tuple(movements),
        notes=_notes(old, new),
        max_slowdown=max_slowdown,
        max_drop_points=max_drop_points,
    )


def _check_comparable(old: BenchReport, new: BenchReport) -> None:
    if old.data.sha256 != new.data.sha256:
        raise InputError(
            "the results files",
            expected="two benchmarks of the same data",
            got=f"{old.data.path} {old.data.split} and {new.data.path} {new.data.split}, whose contents differ",
            fix="measure both on the same data set",
        )


def _notes(old: BenchReport, new: BenchReport) -> tuple[str, ...]:
    notes = []
    if (old.machine.cpu_name, old.machine.num_cores) != (new.machine.cpu_name, new.machine.num_cores):
        notes.append(
            f"measured on different machines ({old.machine.cpu_name}, {old.machine.num_cores} cores; "
            f"{new.machine.cpu_name}, {new.machine.num_cores} cores): times do not compare"
        )
    changed = [
        f"{package} {old.software[package]} to {new.software[package]}"
        for package in old.software.keys() & new.software.keys()
        if old.software[package] != new.software[package]
    ]
    if changed:
        notes.append("other versions: " + ", ".join(sorted(changed)))
    for setting in ("accuracy_conf", "latency_conf", "iou"):
        before, after = getattr(old.settings, setting), getattr(new.settings, setting)
        if before != after:
            notes.append(f"{setting} was {before:g} and is {after:g}")
    measured_before = {key for key, row in _by_key(old.results).items() if row.map is not None}
    notes += [
        f"{row.name}: its AP was measured before and is not now; only times are compared"
        for key, row in _by_key(new.results).items()
        if key in measured_before and row.map is None and row.status == "measured"
    ]
    notes += [f"the {age} run was cut short" for age, report in (("old", old), ("new", new)) if not report.is_complete]
    notes += [f"the {age} run was disturbed" for age, report in (("old", old), ("new", new)) if report.is_noisy]
    return tuple(notes)


def _by_key(rows: Sequence[Result]) -> dict[tuple[object, ...], Result]:
    """The rows by what makes them the same candidate in another run; a repeated one is told by its position."""
    seen: Counter[tuple[object, ...]] = Counter()
    keyed: dict[tuple[object, ...], Result] = {}
    for row in rows:
        key = (Path(row.model).name, row.backend, row.device, row.precision, row.num_threads, row.imgsz)
        seen[key] += 1
        identity = (*key, seen[key])
        keyed[identity] = row
    return keyed


def _movement(old: Result | None, new: Result, *, max_slowdown: float, max_drop_points: float) -> Movement:
    if old is None:
        return Movement(name=new.name, changes=("new",), new_p50_ms=_p50(new), new_map=new.map, reason=new.reason)
    if old.status == "measured" and new.status != "measured":
        return _lost(old, f"{new.status}: {new.reason}")
    latency = compare_separate(new.rounds_ms, old.rounds_ms) if new.rounds_ms and old.rounds_ms else None
    points = None if old.map is None or new.map is None else (new.map - old.map) * _POINTS
    changes: list[Change] = []
    if latency is not None and latency.verdict == "slower" and latency.ratio > 1 + max_slowdown:
        changes.append("slower")
    if latency is not None and latency.verdict == "faster":
        changes.append("faster")
    if points is not None and points < -max_drop_points:
        changes.append("less_accurate")
    if points is not None and points > max_drop_points:
        changes.append("more_accurate")
    return Movement(
        name=new.name,
        changes=tuple(changes) or ("same",),
        old_p50_ms=_p50(old),
        new_p50_ms=_p50(new),
        latency=latency,
        old_map=old.map,
        new_map=new.map,
        map_change_points=points,
        reason=new.reason,
    )


def _lost(old: Result, reason: str) -> Movement:
    """A candidate that has no new numbers: a regression where it had old ones."""
    changes: tuple[Change, ...] = ("lost",) if old.status == "measured" else ("same",)
    return Movement(name=old.name, changes=changes, old_p50_ms=_p50(old), old_map=old.map, reason=reason)


def _p50(row: Result) -> float | None:
    return None if row.latency_ms is None else row.latency_ms.p50
