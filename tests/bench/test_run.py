"""Whole benchmarks on tiny models: what is measured, what becomes of candidates that go wrong, and going on again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from boxwright.bench import run as bench_run
from boxwright.bench.candidate import Candidate, with_names
from boxwright.bench.observer import Observer
from boxwright.bench.report import write_report
from boxwright.bench.results import BenchReport, Settings
from boxwright.bench.results_file import load_report, save_report, to_json
from boxwright.bench.run import BenchRun, run_benchmark
from boxwright.bench.run_state import RunState
from boxwright.core.errors import DatasetError, InputError, OutputError
from boxwright.core.files import cache_dir
from boxwright.data import Dataset, load_dataset
from colour_data import write_colour_data
from models_for_tests import CLASS_NAMES, save_colour_cells

QUICK = Settings(
    min_launches=2, max_launches=2, rounds=2, num_latency_images=3, block_s=0.02, num_threads=1, with_throughput=False
)
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(write_colour_data(tmp_path_factory.mktemp("data") / "colours"), "val")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_colour_cells(folder / "raw.onnx", "raw")
    save_colour_cells(folder / "whole.onnx", "detections")
    save_colour_cells(folder / "raw_openvino_model", "raw")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(TESTS))  # where the processes find openers_for_tests


def candidate(models: Path, file: str, **options: object) -> Candidate:
    return Candidate(model=str(models / file), num_threads=1, **options)  # type: ignore[arg-type]


class Listener(Observer):
    """Keeps what it is told, and ends the run after so many launches."""

    def __init__(self, launches_until_interrupt: int | None = None) -> None:
        self.activities: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self._left = launches_until_interrupt
        self._latency_begun = 0

    def begin(self, phase: str, total: int) -> None:
        if phase == "latency":
            self._latency_begun += 1
            if self._left is not None and self._latency_begun > self._left:
                raise KeyboardInterrupt

    def progress(self, phase: str, name: str, activity: str, done: int) -> None:
        self.activities.append((name, activity))

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_measures_every_candidate_and_says_what_failed(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    candidates = [
        candidate(models, "raw.onnx", name="raw"),
        candidate(models, "whole.onnx", name="whole"),
        candidate(models, "raw_openvino_model", name="openvino"),
        candidate(models, "raw.onnx", name="bf16", backend="onnxruntime", precision="bf16"),
        candidate(models, "raw.onnx", name="crashing", opener="openers_for_tests:crash"),
        candidate(models, "raw.onnx", name="leaving", opener="openers_for_tests:leave"),
        candidate(models, "raw.onnx", name="stumbling", opener="openers_for_tests:stumble"),
    ]
    run = run_benchmark(candidates, dataset, settings=QUICK, command="boxwright bench ...")
    report = run.report
    rows = {row.name: row for row in report.results}
    assert {name: row.status for name, row in rows.items()} == {
        "raw": "measured",
        "whole": "measured",
        "openvino": "measured",
        "bf16": "unsupported",
        "crashing": "crashed",
        "leaving": "crashed",
        "stumbling": "failed",
    }
    assert "signal 11" in (rows["crashing"].reason or "")
    assert rows["leaving"].reason == "its process ended with exit status 7: out of spoons"
    assert rows["stumbling"].reason == "RuntimeError: engine says no"
    for name in ("raw", "whole", "openvino"):
        _check_measured_row(rows[name])
    assert (rows["raw"].backend, rows["openvino"].backend) == ("onnxruntime", "openvino")
    assert {(pair.first, pair.second) for pair in report.pairs} == {
        ("raw", "whole"), ("raw", "openvino"), ("whole", "openvino")
    }  # fmt: skip
    assert 1 <= len(report.pareto) <= 3
    assert report.is_complete
    _check_files(run, tmp_path / "report")


def _check_measured_row(row) -> None:  # type: ignore[no-untyped-def]
    assert row.map == pytest.approx(1.0, abs=0.02)  # the data set shows what the model sees
    assert (row.map, row.map50) == (row.accuracy.map, row.accuracy.map50)
    assert row.accuracy_thresholds.conf == 0.001
    assert row.latency_thresholds.conf == 0.25
    assert [len(launch) for launch in row.rounds_ms] == [2, 2]
    latency = row.latency_ms
    assert 0 < latency.p50 <= latency.p90 <= latency.p95 <= latency.p99
    assert latency.p50_low <= latency.p50 <= latency.p50_high
    assert row.fps == pytest.approx(1e3 / latency.p50)
    assert row.raw_engine_ms > 0 and row.raw_engine_note is None
    assert min(row.stages_ms.preprocess, row.stages_ms.infer, row.stages_ms.postprocess, row.stages_ms.read) > 0
    assert 10 < row.peak_rss_mb < 2000
    assert row.load_s > 0 and row.first_inference_ms > 0 and row.size_mb > 0
    assert row.imgsz == (48, 64)
    assert list(row.quantiles_ms) == sorted(row.quantiles_ms)


def _check_files(run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    files = write_report(run, folder)
    assert load_report(files.results) == run.report
    text = files.markdown.read_text()
    for row in run.report.results:
        assert row.name in text
    assert "unsupported" in text and "out of spoons" in text
    assert files.plot is not None and files.plot.read_bytes().startswith(b"\x89PNG")


def test_a_candidate_that_hangs_is_ended(models: Path, dataset: Dataset) -> None:
    hanging = candidate(models, "raw.onnx", name="hanging", opener="openers_for_tests:hang")
    run = run_benchmark([hanging], dataset, settings=replace(QUICK, time_limit_s=1.5))
    assert run.report.results[0].status == "timeout"
    assert run.report.results[0].reason == "stopped after its time limit of 1.5 s"
    assert run.report.pairs == () and run.report.pareto == ()


def test_an_interrupted_run_keeps_what_it_has_and_goes_on(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    candidates = [candidate(models, "raw.onnx", name="a"), candidate(models, "raw.onnx", name="b")]
    first = run_benchmark(candidates, dataset, settings=QUICK, observer=Listener(launches_until_interrupt=1))
    assert first.interrupted and not first.report.is_complete
    assert [row.status for row in first.report.results] == ["interrupted", "interrupted"]
    assert [len(row.rounds_ms) for row in first.report.results] == [1, 1]
    assert all(row.map is not None for row in first.report.results)

    listener = Listener()
    second = run_benchmark(candidates, dataset, settings=QUICK, observer=listener)
    assert listener.notes == ["going on with an interrupted run: measured are 1 launch, the mAP of 2 candidates"]
    assert not any(activity == "opening" for name, activity in listener.activities[:2])  # mAP is not measured again
    assert second.report.is_complete
    for before, after in zip(first.report.results, second.report.results, strict=True):
        assert after.rounds_ms[0] == before.rounds_ms[0]
        assert len(after.rounds_ms) == 2
        assert after.map == before.map
    assert list((tmp_path / "cache").rglob("state.json")) == []  # nothing is left behind


def test_what_disturbed_the_first_part_of_a_run_is_in_its_report(
    models: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = [candidate(models, "raw.onnx")]
    monkeypatch.setattr(bench_run, "find_disturbances", lambda *_, **__: ("the fan stood still: 3 rounds",))
    listener = Listener(launches_until_interrupt=1)
    first = run_benchmark(entry, dataset, settings=QUICK, observer=listener).report
    assert listener.notes == ["what is measured is kept: the same command goes on from it"]
    monkeypatch.setattr(bench_run, "find_disturbances", lambda *_, **__: ("the fan stood still: 0 rounds",))
    second = run_benchmark(entry, dataset, settings=QUICK).report
    assert first.notes[0] == second.notes[0] == "the fan stood still: 3 rounds"
    assert len(second.notes) == 1 and second.is_noisy


def test_a_run_that_ends_before_anything_is_measured_writes_no_report(models: Path, dataset: Dataset) -> None:
    delivered: list[BenchRun] = []
    listener = Listener(launches_until_interrupt=0)
    settings = replace(QUICK, with_accuracy=False)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(
            [candidate(models, "raw.onnx")], dataset, settings=settings, observer=listener, deliver=delivered.append
        )
    assert delivered == []
    assert listener.notes == ["nothing was measured yet; no report is written"]


def test_a_launch_that_is_cut_short_counts_as_far_as_it_got(models: Path, dataset: Dataset) -> None:
    class ImpatientListener(Listener):
        def progress(self, phase: str, name: str, activity: str, done: int) -> None:
            if activity == "timing" and name == "b" and done >= 12:  # both have 6 rounds
                raise KeyboardInterrupt

    candidates = [candidate(models, "raw.onnx", name="a"), candidate(models, "raw.onnx", name="b")]
    settings = replace(QUICK, with_accuracy=False, rounds=8)
    first = run_benchmark(candidates, dataset, settings=settings, observer=ImpatientListener()).report
    assert [[len(launch) for launch in row.rounds_ms] for row in first.results] == [[6], [6]]
    assert not first.is_complete and len(first.pairs) == 1
    second = run_benchmark(candidates, dataset, settings=settings).report
    assert [[len(launch) for launch in row.rounds_ms] for row in second.results] == [[6, 8], [6, 8]]
    assert second.results[0].rounds_ms[0] == first.results[0].rounds_ms[0]


def test_a_changed_file_begins_anew(dataset: Dataset, tmp_path: Path) -> None:
    path = save_colour_cells(tmp_path / "m.onnx", "raw")
    entry = [Candidate(model=str(path), num_threads=1)]
    run_benchmark(entry, dataset, settings=QUICK, observer=Listener(launches_until_interrupt=1))
    save_colour_cells(path, "detections")
    listener = Listener()
    run = run_benchmark(entry, dataset, settings=QUICK, observer=listener)
    assert listener.notes == []
    assert len(run.report.results[0].rounds_ms) == 2


def test_throughput_is_searched_where_wanted(models: Path, dataset: Dataset) -> None:
    settings = replace(QUICK, with_throughput=True, with_accuracy=False, streams=(1, 2), trial_s=0.1, rounds=1,
                       min_launches=1, max_launches=1)  # fmt: skip
    run = run_benchmark([candidate(models, "raw.onnx", name="a")], dataset, settings=settings)
    row = run.report.results[0]
    assert row.map is None
    assert row.throughput is not None
    assert row.throughput.fps > 0 and row.throughput.streams in (1, 2) and row.throughput.batch == 1


def test_images_that_cannot_be_read_are_in_the_row(models: Path, tmp_path: Path) -> None:
    root = write_colour_data(tmp_path / "data")
    (root / "val2017" / "003.png").write_bytes((root / "val2017" / "003.png").read_bytes()[:60])
    settings = replace(QUICK, min_launches=1, max_launches=1, rounds=1)
    run = run_benchmark([candidate(models, "raw.onnx")], load_dataset(root, "val"), settings=settings)
    accuracy = run.report.results[0].accuracy
    assert accuracy is not None
    assert [entry.file for entry in accuracy.unreadable] == ["val2017/003.png"]
    assert accuracy.num_images == 5


def test_bad_input_is_told_before_anything_runs(models: Path, dataset: Dataset) -> None:
    with pytest.raises(InputError, match="path that does not exist"):
        run_benchmark([candidate(models, "missing.onnx")], dataset)
    with pytest.raises(DatasetError, match="at least one image"):
        run_benchmark([candidate(models, "raw.onnx")], dataset.with_samples([]))
    with pytest.raises(InputError, match="at least one model"):
        run_benchmark([], dataset)


def test_class_names_that_do_not_match_are_an_error(models: Path, dataset: Dataset) -> None:
    renamed = replace(dataset, class_names=("cyan", *CLASS_NAMES[1:]))
    with pytest.raises(DatasetError, match="class names: expected classes that the model knows"):
        run_benchmark([candidate(models, "raw.onnx")], renamed, settings=QUICK)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([{}, {}], ["m.onnx #1", "m.onnx #2"]),
        ([{"precision": "fp32"}, {"precision": "bf16"}], ["m.onnx fp32", "m.onnx bf16"]),
        ([{"backend": "openvino"}, {"backend": None}], ["m.onnx openvino", "m.onnx auto"]),
        ([{"name": "mine"}, {}], ["mine", "m.onnx"]),
        ([{"backend": "torch"}, {"backend": "tensorrt", "device": "cuda"}], ["m.onnx torch", "m.onnx tensorrt"]),
        ([{"device": "cpu"}, {"device": "cuda"}], ["m.onnx cpu", "m.onnx cuda"]),
    ],
)
def test_names_are_as_short_as_tells_candidates_apart(options: list[dict[str, str]], names: list[str]) -> None:
    named = with_names([Candidate(model="folder/m.onnx", **entry) for entry in options])  # type: ignore[arg-type]
    assert [entry.name for entry in named] == names


def test_results_of_another_schema_are_refused(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    settings = replace(QUICK, min_launches=1, max_launches=1, rounds=1, with_accuracy=False)
    report: BenchReport = run_benchmark([candidate(models, "raw.onnx")], dataset, settings=settings).report
    path = tmp_path / "results.json"
    save_report(report, path)
    assert load_report(path) == report
    document = json.loads(to_json(report))
    cases = [
        ({**document, "schema_version": 2}, "expected schema 1 or older, got 2"),
        ({**document, "surprise": 1}, "unknown key 'surprise'"),
        ({key: value for key, value in document.items() if key != "schema_version"}, "no schema_version"),
        ([1, 2], "no schema_version"),
        ("{", "the JSON of 'boxwright bench'"),
    ]
    for content, message in cases:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(InputError, match=message):
            load_report(path)
    with pytest.raises(InputError, match="No such file"):
        load_report(tmp_path / "missing.json")


def test_a_report_that_cannot_be_written_loses_nothing(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    """The same command writes it later, from the same measurements."""

    def refuse(run: BenchRun) -> None:
        raise OutputError("report", expected="room", got="none", fix="free some space")

    entry = [candidate(models, "raw.onnx", name="a")]
    listener = Listener()
    with pytest.raises(OutputError, match="expected room"):
        run_benchmark(entry, dataset, settings=QUICK, observer=listener, deliver=refuse)
    assert listener.notes == ["what is measured is kept: the same command goes on from it"]
    delivered: list[BenchRun] = []
    listener = Listener()
    run = run_benchmark(entry, dataset, settings=QUICK, observer=listener, deliver=delivered.append)
    assert delivered == [run] and not run.interrupted
    assert not any(activity in ("opening", "timing") for _, activity in listener.activities)  # nothing is measured
    assert run.report.results[0].map == pytest.approx(1.0, abs=0.02)
    assert list((tmp_path / "cache").rglob("state.json")) == []


def test_detections_that_were_lost_are_made_again(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    entry = [candidate(models, "raw.onnx", name="a")]
    run_benchmark(entry, dataset, settings=QUICK, observer=Listener(launches_until_interrupt=1))
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    run = run_benchmark(entry, dataset, settings=QUICK)
    assert run.report.results[0].map == pytest.approx(1.0, abs=0.02)


def test_the_same_run_twice_at_a_time_is_refused(models: Path, dataset: Dataset) -> None:
    entry = [candidate(models, "raw.onnx")]
    settings = replace(QUICK, with_accuracy=False, rounds=1)

    def again(run: BenchRun) -> None:
        run_benchmark(entry, dataset, settings=settings)

    with pytest.raises(InputError, match="got another that is under way"):
        run_benchmark(entry, dataset, settings=settings, deliver=again)
    assert run_benchmark(entry, dataset, settings=settings).report.is_complete  # once it is over, it goes on


def test_measurements_that_cannot_be_kept_do_not_end_the_run(
    models: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(state: RunState) -> None:
        raise OutputError("state.json", expected="room", got="No space left on device", fix="free some space")

    monkeypatch.setattr(RunState, "save", refuse)
    listener = Listener()
    run = run_benchmark([candidate(models, "raw.onnx")], dataset, settings=QUICK, observer=listener)
    assert run.report.results[0].status == "measured"
    (note,) = listener.notes  # once, though there was much to keep
    assert "cannot be kept" in note and "No space left" in note


def test_of_several_candidates_one_with_other_classes_fails_alone(models: Path, dataset: Dataset) -> None:
    settings = replace(QUICK, min_launches=1, max_launches=1, rounds=1)
    candidates = [
        candidate(models, "raw.onnx", name="good"),
        candidate(models, "raw.onnx", name="other", opener="openers_for_tests:open_with_other_classes"),
    ]
    rows = run_benchmark(candidates, dataset, settings=settings).report.results
    assert [row.status for row in rows] == ["measured", "failed"]
    assert "class names: expected classes that the model knows" in (rows[1].reason or "")
    assert rows[1].latency_ms is None


def test_candidates_are_compared_in_the_launches_that_both_came_through(models: Path, dataset: Dataset) -> None:
    """One that failed in the first launch of an interrupted run has a launch less."""
    settings = replace(QUICK, with_accuracy=False)
    candidates = [candidate(models, "raw.onnx", name="a"), candidate(models, "raw.onnx", name="b")]
    listener = Listener(launches_until_interrupt=1)
    run_benchmark(candidates, dataset, settings=settings, observer=listener)
    state = next(RunState.resume_or_begin(path.parent) for path in cache_dir().rglob("state.json"))
    del state.launches[0]["b"]
    state.save()
    state.release()
    report = run_benchmark(candidates, dataset, settings=settings).report
    assert [len(row.rounds_ms) for row in report.results] == [2, 1]
    (pair,) = report.pairs
    assert 0.1 < pair.comparison.ratio < 10
