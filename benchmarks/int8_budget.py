"""Holds `boxwright calibrate --max-drop` to its promise on images that it has not seen.

    python benchmarks/int8_budget.py [--bccd CHECKPOINT] [--engines openvino,onnxruntime] [--tools nncf,trt-cache]
        [--json]

Each detector is exported, calibrated to a budget of 0.5 points with 80 images of its train split alone, and measured
on another split: YOLOX-nano and Yolo-Fastest-1.1-xl on coco-tiny val, YOLOX-nano fine-tuned on blood cells (a
checkpoint of `benchmarks/train_bccd.py --out DIR`) on BCCD's test list. Times are the search's own, taken in turns; the
peak of memory is that of the calibrating process alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("BOXWRIGHT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
WEIGHTS, DATA = SHARED / "weights", SHARED / "data"
MAX_DROP, NUM_IMAGES = 0.5, 80
SCORE_THRESHOLD, IOU_THRESHOLD = 0.001, 0.65
TOOLS = ("nncf", "trt-cache")
# A small process between: a child of this large one would begin with this one's peak in its own account.
RUN_AND_NOTE_PEAK = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status)
"""


@dataclass(frozen=True)
class Case:
    """A detector, how it is exported, and its data."""

    name: str
    export: tuple[str, ...]
    data: Path
    measured_on: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bccd", type=Path, help="checkpoint fine-tuned on BCCD; without it that case is left out")
    parser.add_argument("--engines", default="openvino,onnxruntime")
    parser.add_argument("--tools", default="", help="nncf, trt-cache or both, to be measured beside")
    parser.add_argument("--time-limit", type=float, default=15.0, help="minutes for each detector")
    parser.add_argument("--only", help="name of one case")
    parser.add_argument("--out", type=Path, help="folder to keep the files in")
    parser.add_argument("--json", action="store_true", dest="as_json")
    arguments = parser.parse_args()
    tools = usable_tools(parser, arguments.tools)
    if not DATA.is_dir():
        sys.exit(f"{DATA} is absent; set BOXWRIGHT_SHARED to the folder of real data")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary)
        for case in cases(arguments.bccd):
            if arguments.only in (None, case.name):
                own = folder / case.name.replace(" ", "_")
                own.mkdir(parents=True, exist_ok=True)
                rows += run(case, own, arguments.engines, tools, arguments.time_limit)
    if arguments.as_json:
        print(json.dumps(rows, indent=2))
        return
    print("| detector | engine | form | AP float | AP | points lost | INT8 share | ms | FP32 ms | minutes | peak GB |")
    print("| --- " * 11 + "|")
    for row in rows:
        print("| " + " | ".join(str(row[key]) for key in COLUMNS) + " |")


COLUMNS = (
    "detector", "engine", "form", "map_before", "map_after", "lost", "int8_share", "ms", "fp32_ms", "minutes",
    "peak_gb",
)  # fmt: skip


def usable_tools(parser: argparse.ArgumentParser, names: str) -> list[str]:
    """The tools asked for, less those that nothing here can execute, of which it says so."""
    from boxwright.runtimes.backend import backend_module

    tools = [name.strip() for name in names.split(",") if name.strip()]
    for name in tools:
        if name not in TOOLS:
            parser.error(f"--tools: expected names among {', '.join(TOOLS)}, got {name!r}")
    missing = backend_module("tensorrt").available()
    if "trt-cache" in tools and missing is not None:
        print(f"trt-cache is left out: only TensorRT (8 to 10) executes its cache, and {missing}", file=sys.stderr)
        tools.remove("trt-cache")
    return tools


def cases(bccd: Path | None) -> list[Case]:
    """The detectors that there are weights of."""
    found = [
        Case(
            "yolox-nano",
            (str(WEIGHTS / "yolox_nano_coco.pth"), "--model", "yolox-nano", "--labels", "coco", "--preprocess",
             "yolox-legacy"),
            DATA / "coco-tiny",
            "val",
        ),
        Case(
            "yolo-fastest-1.1-xl",
            (str(WEIGHTS / "yolo-fastest-1.1-xl.weights"), "--labels", "coco"),
            DATA / "coco-tiny",
            "val",
        ),
    ]  # fmt: skip
    if bccd is not None:
        found.append(Case("yolox-nano bccd", (str(bccd),), DATA / "bccd", "test"))
    return found


def run(case: Case, folder: Path, engines: str, tools: list[str], time_limit: float) -> list[dict[str, Any]]:
    """Export, calibrate in a process of its own, and measure every file on each of its engines."""
    model = folder / "m.onnx"
    boxwright("export", *case.export, "--out", str(model))
    started = time.monotonic()
    common = (str(model), "--data", str(case.data), "--split", "train", "--num-images", str(NUM_IMAGES), "--json")
    wishes = ("--max-drop", str(MAX_DROP), "--engines", engines, "--time-limit", str(time_limit), "--allow-worse")
    peak_file = folder / "peak_kb"
    out = ("--out", str(folder / "m_int8.onnx"))
    document = json.loads(boxwright("calibrate", *common, *wishes, *out, may_fail=True, peak_file=peak_file))
    minutes = (time.monotonic() - started) / 60
    peak_gb = int(peak_file.read_text()) / 1e6
    rows = []
    for file in document["files"]:
        for engine in file["engines"]:
            search = next(entry for entry in document["searches"] if entry["engine"] == engine)
            own = next(entry for entry in search["candidates"] if entry["name"] == file["variant"])
            before = measure(model, engine, "fp32", case)
            after = measure(Path(file["path"]), engine, file["precision_of_the_rest"], case)
            rows.append(
                {
                    "detector": case.name,
                    "engine": engine,
                    "form": file["variant"],
                    "map_before": round(before, 4),
                    "map_after": round(after, 4),
                    "lost": round(100 * (before - after), 2),
                    "int8_share": f"{100 * file['int8_share'].get(engine, float('nan')):.0f} %",
                    "ms": round(own["latency_ms"], 2),
                    "fp32_ms": round(search["candidates"][0]["latency_ms"], 2),
                    "minutes": round(minutes, 1),
                    "peak_gb": round(peak_gb, 2),
                    "advice": document["advice"],
                }
            )
    for tool in tools:
        for engine in ("tensorrt",) if tool == "trt-cache" else engines.split(","):
            rows.append(run_tool(case, folder, model, tool, engine, common))
    return rows


def run_tool(case: Case, folder: Path, model: Path, tool: str, engine: str, common: tuple[str, ...]) -> dict[str, Any]:
    """Another tool's form, measured alike."""
    path = folder / f"m_{tool}_{engine}.onnx"
    started = time.monotonic()
    boxwright("calibrate", *common, "--method", tool, "--engine", engine, "--no-measure", "--out", str(path))
    if tool == "trt-cache":  # what was written is a cache, of which TensorRT makes an engine
        cache, path = ("--calibration-cache", str(path.with_suffix(".calib"))), path.with_suffix(".engine")
        wishes = ("--format", "tensorrt", "--precision", "int8", *cache, "--out", str(path))
        boxwright("export", str(model), *wishes)
    minutes = (time.monotonic() - started) / 60
    before, after = measure(model, engine, "fp32", case), measure(path, engine, "fp32", case)
    float_ms, own_ms = time_in_turns((model, path), engine, case)
    return {
        "detector": case.name,
        "engine": engine,
        "form": tool,
        "map_before": round(before, 4),
        "map_after": round(after, 4),
        "lost": round(100 * (before - after), 2),
        "int8_share": "",
        "ms": round(own_ms, 2),
        "fp32_ms": round(float_ms, 2),
        "minutes": round(minutes, 1),
        "peak_gb": "",
    }


def measure(model: Path, engine: str, precision: str, case: Case) -> float:
    """AP on images that no form was made or chosen with."""
    from boxwright.bench.accuracy import evaluate
    from boxwright.data import load_dataset
    from boxwright.runtimes.detector import Detector

    dataset = load_dataset(case.data, case.measured_on)
    with Detector(model, backend=engine, precision=precision, conf=SCORE_THRESHOLD, iou=IOU_THRESHOLD) as detector:
        result = evaluate(detector, dataset).map
    assert result is not None
    return result


def time_in_turns(models: tuple[Path, ...], engine: str, case: Case) -> list[float]:
    """Milliseconds an image of each model, with decoding and NMS."""
    from boxwright.calibration.stopwatch import measure_in_turns
    from boxwright.core.images import read_image
    from boxwright.data import load_dataset
    from boxwright.runtimes.detector import Detector

    image = read_image(load_dataset(case.data, case.measured_on).samples[0].image_path)
    detectors = [Detector(model, backend=engine) for model in models]
    inputs = {"images": detectors[0].preprocess([image]).images}
    return measure_in_turns([detector.backend for detector in detectors], inputs, rounds=10)


def boxwright(*arguments: str, may_fail: bool = False, peak_file: Path | None = None) -> str:
    """Run the command line; what it prints. Its peak of memory in KiB goes into the file where one is given."""
    command = [sys.executable, "-m", "boxwright", *arguments]
    if peak_file is not None:
        command = [sys.executable, "-c", RUN_AND_NOTE_PEAK, str(peak_file), *command]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in ((0, 3) if may_fail else (0,)):
        sys.exit(f"boxwright {' '.join(arguments)} ended with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
