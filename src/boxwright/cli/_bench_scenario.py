"""`boxwright bench --scenario`: MLPerf's LoadGen asks, and judges."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.cli._output import print_json, stderr_console, stdout_console
from boxwright.core.errors import AnswerIsNoError, InputError

if TYPE_CHECKING:
    from boxwright.bench.results import Settings
    from boxwright.bench.scenario_run import ScenarioResult
    from boxwright.cli._bench_artifacts import SourceOptions
    from boxwright.cli._bench_plan import Matrix
    from boxwright.data import Dataset


def run_scenario(
    scenario: str,
    models: list[Path],
    matrix: Matrix,
    options: SourceOptions,
    data: Path,
    dataset: Dataset,
    settings: Settings,
    out: Path | None,
    *,
    duration_s: float,
    target_qps: float | None,
    target_latency_ms: float | None,
    as_json: bool,
) -> None:
    """Run a scenario on every candidate and print a line each.

    Args:
        scenario: of LoadGen.
        models: paths as they were given.
        matrix: what each is measured with.
        options: what authors' files do not say of themselves.
        data: folder of the data set.
        dataset: read from it.
        settings: thresholds, cores, streams, time limit.
        out: folder for LoadGen's logs; one below `runs` where None.
        duration_s: of the performance mode, at least.
        target_qps: of server.
        target_latency_ms: of server.
        as_json: whether to print JSON.

    Raises:
        AnswerIsNoError: where candidates could not be measured.
        InputError: where none could.
    """
    from boxwright.bench.scenario_run import SCHEMA_VERSION, run_scenarios
    from boxwright.bench.scenarios import ScenarioSettings, parse_scenario
    from boxwright.cli._bench_display import BenchDisplay
    from boxwright.cli._bench_plan import prepare_candidates

    name = parse_scenario(scenario)
    folder = out if out is not None else Path("runs") / f"loadgen-{name}"
    asked = ScenarioSettings(
        scenario=name,
        duration_s=duration_s,
        streams=settings.streams[0] if settings.streams else 1,
        target_qps=target_qps,
        target_latency_ms=target_latency_ms,
    )
    with BenchDisplay() as display:
        candidates = prepare_candidates(models, matrix, options, data, on_note=display.note)
        results = run_scenarios(candidates, dataset, folder, scenario=asked, settings=settings, observer=display)
    stderr_console().print(f"LoadGen's logs: {folder}", highlight=False, soft_wrap=True)
    if as_json:
        print_json(
            {"schema_version": SCHEMA_VERSION, "scenarios": [{**asdict(row), "result": row.verdict} for row in results]}
        )
    else:
        _print(results)
    _give_answer(results)


def _print(results: list[ScenarioResult]) -> None:
    console = stdout_console()
    for row in results:
        metric = "" if row.metric is None else f", {row.metric:.3f} {row.unit}"
        accuracy = "" if row.map is None else f", AP {row.map:.4f}"
        why = row.reason or row.invalid_reason
        console.print(
            f"{row.name} ({row.backend}, {row.precision}) {row.scenario}: {row.verdict}{metric}{accuracy}"
            + (f" ({why})" if why else ""),
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _give_answer(results: list[ScenarioResult]) -> None:
    missing = [row for row in results if row.status not in ("measured", "unsupported")]
    if not any(row.status == "measured" for row in results):
        raise InputError(
            "candidates", expected="at least one that runs", got=f"{results[0].reason}", fix="mend or replace it"
        )
    if missing:
        raise AnswerIsNoError("not all were measured: " + "; ".join(f"{row.name}: {row.reason}" for row in missing))
    for row in results:
        if row.num_unreadable:
            raise AnswerIsNoError(f"{row.num_unreadable} images could not be read; see: boxwright doctor --data")
