"""`boxwright bench`, its comparison and its scenarios from the command line."""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from rich.console import Console

from bench_reports import report_of, result_of
from boxwright.bench.candidate import is_quantized
from boxwright.bench.results_file import load_report, save_report
from boxwright.cli._bench_display import results_table
from boxwright.cli._bench_parsing import parse_cores, parse_points, parse_precisions, parse_share
from boxwright.cli.main import main
from boxwright.core.errors import InputError
from colour_data import write_colour_data
from models_for_tests import colour_cells_manifest, colour_cells_onnx, save_colour_cells

QUICK = ["--launches", "1", "--rounds", "1", "--num-threads", "1", "--no-throughput"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colour_data(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_json_and_report(tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = save_colour_cells(tmp_path / "m.onnx", "raw")
    out = tmp_path / "report"
    arguments = ["bench", str(model), "--data", str(data), "--split", "val", "--out", str(out), "--json", *QUICK]
    assert main([*arguments, "--backends", "onnxruntime,openvino", "--precisions", "fp32,bf16"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report == json.loads((out / "results.json").read_text())
    rows = {(row["backend"], row["precision"]): row for row in report["results"]}
    assert rows["onnxruntime", "bf16"]["status"] == "unsupported"
    for key in (("onnxruntime", "fp32"), ("openvino", "fp32")):
        row = rows[key]
        assert row["status"] == "measured"
        assert row["map"] == pytest.approx(1.0, abs=0.02)
        assert {"p50", "p90", "p95", "p99"} <= row["latency_ms"].keys()
        assert {"preprocess", "infer", "postprocess"} <= row["stages_ms"].keys()
        assert min(row[key] for key in ("fps", "raw_engine_ms", "peak_rss_mb", "size_mb", "load_s")) > 0
        assert (row["model"], row["num_threads"]) == (str(model), 1)
    assert report["machine"]["cpu_name"]
    assert {point["name"] for point in report["pareto"]} <= {row["name"] for row in report["results"]}
    assert {path.name for path in out.iterdir()} == {"results.json", "report.md", "pareto.png", "report.html"}


def test_some_of_the_classes(tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A model that knows green alone, and its report says that it was measured on that."""
    manifest = colour_cells_manifest(class_names=("violet", "green", "orange"))
    model, out = str(save_colour_cells(tmp_path / "m.onnx", "raw", manifest=manifest)), tmp_path / "report"
    arguments = ["bench", model, "--data", str(data), "--out", str(out), "--classes", "green", "--json", *QUICK]
    assert main(arguments) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["results"][0]["map"] == pytest.approx(1.0, abs=0.02)
    assert (report["data"]["chosen_classes"], report["data"]["num_classes"]) == (["green"], 1)
    sentence = f"6 images, {report['data']['num_boxes']} boxes of green alone)"
    assert sentence in (out / "report.md").read_text() and sentence in (out / "report.html").read_text()
    del report["data"]["chosen_classes"]  # as documents had it before
    (tmp_path / "old.json").write_text(json.dumps(report))
    assert load_report(tmp_path / "old.json").data.chosen_classes == ()


def test_an_int8_file_is_measured_in_int8_alone(tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    int8 = colour_cells_manifest("raw", precision="int8")
    for name in ("m.onnx", "m_openvino_model"):
        path = save_colour_cells(tmp_path / name, "raw", manifest=int8)
        assert is_quantized(path)
        assert not is_quantized(save_colour_cells(tmp_path / f"plain_{name}", "raw"))
    arguments = ["bench", str(tmp_path / "m.onnx"), "--data", str(data), "--precisions", "fp32,bf16", "--no-accuracy"]
    assert main([*arguments, "--json", *QUICK]) == 0
    (row,) = json.loads(capfd.readouterr().out)["results"]
    assert (row["precision"], row["status"], row["map"]) == ("int8", "measured", None)


def test_pinned_processes_have_a_thread_for_each_core(
    tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = save_colour_cells(tmp_path / "m.onnx", "raw")
    core = str(min(os.sched_getaffinity(0)))
    arguments = [
        "bench",
        str(model),
        "--data",
        str(data),
        "--cores",
        core,
        "--no-accuracy",
        "--no-throughput",
        "--json",
    ]
    assert main([*arguments, "--launches", "1", "--rounds", "1"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["settings"]["cores"] == [int(core)]
    assert report["results"][0]["num_threads"] == 1


def test_what_fails_beside_what_works_gives_status_3(
    tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = save_colour_cells(tmp_path / "good.onnx", "raw")
    cut_off = tmp_path / "cut_off.onnx"
    cut_off.write_bytes(good.read_bytes()[:500])
    arguments = ["bench", str(good), str(cut_off), "--data", str(data), "--no-accuracy", *QUICK]
    assert main([*arguments, "--json"]) == 3
    captured = capfd.readouterr()
    statuses = [row["status"] for row in json.loads(captured.out)["results"]]
    assert statuses == ["measured", "failed"]
    assert captured.err.strip().splitlines()[-1].startswith("boxwright: not all were measured: cut_off.onnx: ")


def test_nothing_measured_gives_status_2(tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cut_off = tmp_path / "cut_off.onnx"
    cut_off.write_bytes(colour_cells_onnx().SerializeToString()[:500])
    assert main(["bench", str(cut_off), "--data", str(data), *QUICK]) == 2
    captured = capfd.readouterr()
    assert captured.err.count("expected an intact ONNX file") == 1  # and no table of what there is not
    assert captured.err.strip().splitlines()[-1].startswith("boxwright: candidates: expected at least one")
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.onnx", "--data", "{data}"], "got a path that does not exist"),
        (["{model}"], "--data: expected a data set"),
        (["{model}", "--data", "{data}", "--precisions", "fp31"], "'fp31'"),
        (["{model}", "--data", "{data}", "--cores", "77"], "--cores: expected some of"),
        (["{model}", "--data", "{data}", "--streams", "two"], "--streams"),
        (["{model}", "--data", "{data}", "--out", "{model}/report"], "expected a path that can be written"),
        (["{model}", "--data", "{data}", "--scenario", "sideways"], "single-stream, multi-stream, offline, server"),
        (["compare", "{model}"], "two results files"),
        (["compare", "{model}", "{model}"], "the JSON of 'boxwright bench'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    model = save_colour_cells(tmp_path / "m.onnx", "raw")
    filled = [argument.format(model=model, data=data) for argument in arguments]
    assert main(["bench", *filled]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert message in captured.err and captured.err.strip().count("\n") == 0


def test_sizes_of_an_exported_file_are_fixed(tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = save_colour_cells(tmp_path / "m.onnx", "raw")
    arguments = ["bench", str(model), "--data", str(data), "--imgsz", "48x64,320", "--no-accuracy", "--json", *QUICK]
    assert main(arguments) == 0
    rows = json.loads(capfd.readouterr().out)["results"]
    assert [(row["name"], row["status"]) for row in rows] == [
        ("m.onnx 48x64", "measured"),
        ("m.onnx 320x320", "unsupported"),
    ]
    assert "the input size that the file was exported for" in rows[1]["reason"]


def test_a_foreign_file_stands_beside_ours(tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A YOLOv8-like output: boxes as centre and size in pixels, scores after the sigmoid, (1, 4 + C, N)."""
    foreign = tmp_path / "theirs.onnx"
    onnx.save(yolov8_like(), foreign)
    ours = save_colour_cells(tmp_path / "ours.onnx", "raw")
    arguments = ["bench", str(ours), str(foreign), "--data", str(data), "--json", *QUICK]
    labels = ["--head", "yolov8", "--labels", "blue,green,red", "--preprocess", "stretch"]
    assert main([*arguments, *labels]) == 0
    rows = {Path(row["model"]).name: row for row in json.loads(capfd.readouterr().out)["results"]}
    assert rows["theirs.onnx"]["status"] == "measured", rows["theirs.onnx"]["reason"]
    assert rows["theirs.onnx"]["map"] == pytest.approx(rows["ours.onnx"]["map"], abs=0.02)


def yolov8_like() -> onnx.ModelProto:
    """The colour cells in the layout of Ultralytics' exports."""
    import numpy as np

    from models_for_tests import COLUMNS, HEIGHT, NUM_CELLS, ROWS, STRIDE, WIDTH

    raw = colour_cells_onnx("raw", manifest="")
    rows, columns = np.meshgrid(np.arange(ROWS), np.arange(COLUMNS), indexing="ij")
    centres = (np.stack([columns.ravel(), rows.ravel()]) + 0.5) * STRIDE  # (2, N)
    boxes = np.concatenate([centres, np.full((2, NUM_CELLS), 2.0 * STRIDE)])[None].astype(np.float32)  # (1, 4, N)
    graph = raw.graph
    # Theirs take RGB, the colour cells BGR.
    swap = onnx.helper.make_node("Gather", ["images", "bgr"], ["bgr_images"], axis=1)
    for node in graph.node:
        node.input[:] = ["bgr_images" if name == "images" else name for name in node.input]
    graph.node.insert(0, swap)
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 1, 0]), "bgr"))
    graph.initializer.append(onnx.numpy_helper.from_array(boxes, "their_boxes"))
    graph.node.append(onnx.helper.make_node("Sigmoid", ["logits_by_class"], ["their_scores"]))
    graph.node.append(onnx.helper.make_node("Concat", ["their_boxes", "their_scores"], ["output0"], axis=1))
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info("output0", onnx.TensorProto.FLOAT, [1, 7, NUM_CELLS]))
    metadata = {"names": "{0: 'blue', 1: 'green', 2: 'red'}", "imgsz": f"[{HEIGHT}, {WIDTH}]", "task": "detect"}
    onnx.helper.set_model_props(raw, metadata)
    return raw


@pytest.mark.parametrize("form", ["folder", "onnx"])
def test_what_ultralytics_exports_stands_beside_ours(
    tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str], form: str
) -> None:
    model = yolov8_like()
    path = tmp_path / "theirs.onnx"
    onnx.save(model, path)
    if form == "folder":
        import openvino

        folder = tmp_path / "theirs_openvino_model"
        folder.mkdir()
        openvino.save_model(openvino.Core().read_model(path), folder / "theirs.xml", compress_to_fp16=False)
        names = {0: "blue", 1: "green", 2: "red"}
        lines = [
            "task: detect",
            "imgsz:",
            "- 48",
            "- 64",
            "names:",
            *(f"  {key}: {name}" for key, name in names.items()),
        ]
        (folder / "metadata.yaml").write_text("\n".join(lines) + "\n")
        path = folder
    assert main(["bench", str(path), "--data", str(data), "--json", *QUICK]) == 0
    (row,) = json.loads(capfd.readouterr().out)["results"]
    assert row["model"] == str(path)
    assert row["map"] == pytest.approx(1.0, abs=0.02)
    assert row["imgsz"] == [48, 64]


def test_a_file_of_ultralytics_that_does_not_detect_is_unsupported(
    tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "theirs_openvino_model"
    folder.mkdir()
    (folder / "metadata.yaml").write_text("task: segment\nimgsz: 64\nnames: [blue, green, red]\n")
    assert main(["bench", str(folder), "--data", str(data), *QUICK]) == 2
    assert "got the task 'segment'" in capfd.readouterr().err


def test_compare_exits_with_3_on_a_regression(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    old, same, worse = tmp_path / "old.json", tmp_path / "same.json", tmp_path / "worse.json"
    row = result_of("m", p50_ms=10.0, map_=0.300)
    save_report(report_of(row), old)
    save_report(report_of(replace(row, name="renamed")), same)
    save_report(report_of(result_of("m", p50_ms=12.0, map_=0.290, seed=1)), worse)
    limits = ["--max-slowdown", "5%", "--max-drop", "0.3"]
    assert main(["bench", "compare", str(old), str(same), *limits]) == 0
    assert "no regression" in capfd.readouterr().out
    assert main(["bench", "compare", str(old), str(worse), *limits, "--json"]) == 3
    captured = capfd.readouterr()
    document = json.loads(captured.out)
    assert document["regressions"] == ["m"]
    assert document["movements"][0]["changes"] == ["slower", "less_accurate"]
    assert "m: 19.9% slower, " in captured.err and "1.00 points of AP less" in captured.err
    assert main(["bench", "compare", str(old), str(worse), "--max-slowdown", "0.5", "--max-drop", "2"]) == 0
    text = capfd.readouterr().out
    assert "+19.9%" in text and "-1.00" in text


@pytest.mark.parametrize("scenario", ["single-stream", "multi-stream", "offline", "server"])
def test_scenarios_of_loadgen(tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str], scenario: str) -> None:
    model = save_colour_cells(tmp_path / "m.onnx", "raw")
    out = tmp_path / "logs"
    accuracy = "--accuracy" if scenario == "offline" else "--no-accuracy"
    arguments = ["bench", str(model), "--scenario", scenario, "--data", str(data), "--out", str(out), accuracy]
    targets = ["--duration", "0.2", "--streams", "2", "--target-qps", "2000", "--target-latency", "1000"]
    assert main([*arguments, *targets, "--num-threads", "1", "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)["scenarios"]
    assert row["result"] in ("VALID", "INVALID")
    assert row["is_valid"] == (row["result"] == "VALID")
    summary = (out / "m.onnx" / "performance" / "mlperf_log_summary.txt").read_text()
    assert f"Result is : {row['result']}" in summary
    assert row["metric"] > 0
    if scenario == "offline":
        assert row["map"] == pytest.approx(1.0, abs=0.02)
        assert (out / "m.onnx" / "accuracy" / "mlperf_log_accuracy.json").stat().st_size > 10


def test_parsing() -> None:
    assert parse_share("--max-slowdown", "5%") == pytest.approx(0.05)
    assert parse_share("--max-slowdown", "0.07") == pytest.approx(0.07)
    assert parse_points("--max-drop", "0.3") == 0.3
    assert parse_precisions("fp32, int8") == ("fp32", "int8")
    assert parse_cores(None) == ()
    assert parse_cores("0") == (0,)
    for text in ("", "x", "-1", "5%%", "nan", "inf%"):
        with pytest.raises(InputError, match="--max-slowdown"):
            parse_share("--max-slowdown", text)
    for text in ("", "0-", "a", "0,,1"):
        with pytest.raises(InputError, match="--cores"):
            parse_cores(text)


def test_a_row_that_is_hardly_known_fits_80_columns() -> None:
    row = result_of("model", p50_ms=12.34, map_=0.4567)
    assert row.latency_ms is not None
    unsure = replace(row, latency_ms=replace(row.latency_ms, p50_high=12.34 * 60))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results_table([row, unsure]))
    text = console.export_text()
    assert "12.34 ±>99%" in text and re.search(r"12\.34 ±\d%", text) and "MB" in text
    assert sum("model.onnx" in line or "0.4567" in line for line in text.splitlines()) == 2
