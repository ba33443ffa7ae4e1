"""Measurements that outlive a process."""

from __future__ import annotations

from pathlib import Path

from boxwright.calibration.agreement import Agreement
from boxwright.calibration.evaluation import Evaluation
from boxwright.calibration.evaluation_store import EvaluationStore
from boxwright.calibration.paired_map import PairedDifference

FULL = Evaluation(
    agreement=Agreement(value=0.9, box_change=0.01, score_change=-0.02),
    difference=PairedDifference(
        map_before=0.3, map_after=0.29, drop=0.01, standard_error=0.003, low=0.0, high=0.02, num_images=8
    ),
    latency_ms=3.5,
    int8_share=0.75,
)
QUICK = Evaluation(agreement=Agreement(value=0.8, box_change=0.0, score_change=0.0))


def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    store = EvaluationStore(tmp_path, {"model": "a"})
    store.put({"variant": 1}, FULL)
    store.put({"variant": 2}, QUICK)
    again = EvaluationStore(tmp_path, {"model": "a"})
    assert (again.get({"variant": 1}), again.get({"variant": 2})) == (FULL, QUICK)
    assert again.get({"variant": 3}) is None
    assert again.num_found == 2


def test_another_subject_knows_nothing_of_it(tmp_path: Path) -> None:
    EvaluationStore(tmp_path, {"model": "a"}).put({"variant": 1}, FULL)
    assert EvaluationStore(tmp_path, {"model": "b"}).get({"variant": 1}) is None


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    store = EvaluationStore(tmp_path, {"model": "a"})
    store.put({"variant": 1}, FULL)
    (file,) = tmp_path.iterdir()
    with open(file, "a", encoding="utf-8") as stream:
        stream.write('{"key": "abc", "evaluation": {"agreem')
    assert len(EvaluationStore(tmp_path, {"model": "a"})) == 1


def test_forgetting_and_keeping_nothing(tmp_path: Path) -> None:
    store = EvaluationStore(tmp_path, {"model": "a"})
    store.put({"variant": 1}, FULL)
    store.forget()
    assert store.get({"variant": 1}) is None
    assert list(tmp_path.iterdir()) == []
    in_memory = EvaluationStore(None, {})
    in_memory.put({"variant": 1}, QUICK)
    assert in_memory.get({"variant": 1}) == QUICK
