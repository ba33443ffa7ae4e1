"""The report of a search: JSON for programs, a picture for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxwright.calibration.budget import feared_drop
from boxwright.core.errors import OutputError
from boxwright.core.files import atomic_file, check_writable, write_text

if TYPE_CHECKING:
    from boxwright.calibration.budget_calibration import BudgetResult
    from boxwright.calibration.search_result import SearchResult, Trial


REPORT_FILE, PICTURE_FILE = "report.json", "search.png"


def check_report_writable(folder: Path, models: Sequence[Path] = ()) -> None:
    """Raise `OutputError` now where a report could not be written to that folder beside these models later."""
    if folder.resolve() in [path.resolve() for path in models]:
        raise OutputError(str(folder), expected="a folder", got="the name of a model", fix="pass another --report")
    for name in (REPORT_FILE, PICTURE_FILE):
        if (folder / name).is_dir():
            raise OutputError(
                str(folder / name), expected="a file, or none yet", got="a folder", fix="pass another --report"
            )
        check_writable(folder / name, leaves_folder=False)


def write_report(result: BudgetResult, folder: Path) -> None:
    """Write `report.json` and `search.png`, each whole or not at all; what else the folder holds stays.

    Args:
        result: of a search.
        folder: made where it is not there.

    Raises:
        OutputError: where a file cannot be written.
        MissingDependencyError: where the extra `bench` is not installed; `report.json` is there all the same.
    """
    from boxwright.calibration.report_plot import draw_search

    write_text(folder / REPORT_FILE, json.dumps(report_document(result), indent=2, ensure_ascii=False))
    with atomic_file(folder / PICTURE_FILE) as temporary:
        draw_search(result, temporary)


def report_document(result: BudgetResult) -> dict[str, Any]:
    """The report in JSON's types; mAP is 0 to 1, drops and the budget are points of 100."""
    return {
        "max_drop": result.max_drop,
        "holds": result.holds,
        "seconds": round(result.seconds, 1),
        "files": [
            {
                "path": str(file.path),
                "engines": list(file.engines),
                "variant": file.trial.variant.name,
                "precision_of_the_rest": file.trial.variant.precision,
                "int8_share": {engine: round(share, 4) for engine, share in file.int8_share.items()},
                "method": file.manifest.calibration.method if file.manifest.calibration else None,
                "layers_in_float": list(file.manifest.calibration.layers_in_float if file.manifest.calibration else ()),
                **_measured(file.trial),
            }
            for file in result.files
        ],
        "advice": list(result.advice),
        "searches": [_search(search) for search in result.searches],
        "warnings": list(result.warnings),
        "unreadable": list(result.unreadable),
    }


def _search(search: SearchResult) -> dict[str, Any]:
    chosen, recommended = search.chosen(), search.recommended()
    return {
        "engine": search.engine,
        "chosen": None if chosen is None else chosen.variant.name,
        "recommended": None if recommended is None else recommended.variant.name,
        "time_is_up": search.time_is_up,
        "candidates": [
            {
                "name": trial.variant.name,
                "precision_of_the_rest": trial.variant.precision,
                "holds": trial.holds,
                "is_chosen": trial is chosen,
                "is_recommended": trial is recommended,
                "int8_share": round(trial.int8_share, 4),
                "timed_in_turns": bool(trial.blocks_ms),
                **_measured(trial),
            }
            for trial in search.trials
        ],
        "sensitivity": [
            {
                "layer": entry.layer,
                "kind": entry.kind,
                "damage": round(entry.damage, 5),
                "noise": entry.noise,
                "box_change": round(entry.box_change, 5),
                "score_change": round(entry.score_change, 5),
                "macs": entry.macs,
            }
            for entry in search.sensitivities
        ],
        "steps": [
            {
                "what": step.what,
                "tried": step.tried,
                "agreement_before": round(step.agreement_before, 5),
                "agreement_after": round(step.agreement_after, 5),
                "kept": step.kept,
                "seconds": round(step.seconds, 2),
            }
            for step in search.steps
        ],
    }


def _measured(trial: Trial) -> dict[str, Any]:
    difference = trial.evaluation.difference
    assert difference is not None
    return {
        "map_before": round(difference.map_before, 5),
        "map_after": round(difference.map_after, 5),
        "drop": round(100 * difference.drop, 3),
        "feared_drop": round(feared_drop(1 - trial.evaluation.agreement.value), 3),
        "drop_interval": [round(100 * difference.low, 3), round(100 * difference.high, 3)],
        "num_images": difference.num_images,
        "agreement": round(trial.evaluation.agreement.value, 5),
        "latency_ms": round(trial.latency_ms, 4),
    }
