"""Holds `boxwright calibrate --max-drop` to its promise on images that it has not seen.

    python benchmarks/int8_budget.py [--bccd CHECKPOINT] [--engines openvino,onnxruntime] [--tools nncf,trt-cache]
        [--json]

Each detector is exported, calibrated to a budget of 0.5 points with 80 images of its train split alone, and measured
on another split: YOLOX-nano and Yolo-Fastest-1.1-xl on coco-tiny val, YOLOX-nano fine-tuned on blood cells (a
checkpoint of `benchmarks/train_bccd.py --out DIR`) on BCCD's test list. Times are the search's own, taken in turns; the
peak of memory is that of the calibrating process alone. Where TensorRT is not installed, its calibrator cache is
measured as ONNX Runtime emulates it, every layer in INT8, and without times.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

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
    tools = [name.strip() for name in arguments.tools.split(",") if name.strip()]
    for name in tools:
        if name not in TOOLS:
            parser.error(f"--tools: expected names among {', '.join(TOOLS)}, got {name!r}")
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
        if tool == "trt-cache" and not has_tensorrt():
            rows.append(emulate_cache(case, folder, model))
            continue
        for engine in ("tensorrt",) if tool == "trt-cache" else engines.split(","):
            rows.append(run_tool(case, folder, model, tool, engine, common))
    return rows


def has_tensorrt() -> bool:
    """Whether something here can execute a calibrator's cache."""
    from boxwright.runtimes.backend import backend_module

    return backend_module("tensorrt").available() is None


def emulate_cache(case: Case, folder: Path, model: Path) -> dict[str, Any]:
    """The cache's scales before every layer, on ONNX Runtime: what they cost, not how fast TensorRT is."""
    from dataclasses import replace

    from boxwright.calibration.float_model import load_float_model
    from boxwright.calibration.images import choose_images, network_inputs
    from boxwright.calibration.methods import MethodInputs, trt_cache
    from boxwright.calibration.writing import write_model
    from boxwright.data import load_dataset

    started = time.monotonic()
    float_model = load_float_model(model)
    samples = choose_images(load_dataset(case.data, "train"), NUM_IMAGES).dataset.samples
    made = trt_cache.run(
        MethodInputs(
            model=float_model,
            batches=lambda: network_inputs(float_model.manifest, samples, float_model.proto),
            num_images=len(samples),
            engine="tensorrt",
            on_progress=lambda done: None,
        )
    )
    minutes = (time.monotonic() - started) / 60
    assert made.emulation is not None
    path = folder / "m_trt_cache_emulated.onnx"
    write_model(made.emulation, replace(float_model.manifest, precision="int8"), path)
    before, after = measure(model, "onnxruntime", "fp32", case), measure(path, "onnxruntime", "fp32", case)
    row = dict.fromkeys(COLUMNS, "")
    return row | {
        "detector": case.name,
        "engine": "emulated on onnxruntime",
        "form": "trt-cache",
        "map_before": round(before, 4),
        "map_after": round(after, 4),
        "lost": round(100 * (before - after), 2),
        "minutes": round(minutes, 1),
    }


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
        "int8_share": int8_share(path, model, engine, case),
        "ms": round(own_ms, 2),
        "fp32_ms": round(float_ms, 2),
        "minutes": round(minutes, 1),
        "peak_gb": "",
    }


def int8_share(path: Path, model: Path, engine: str, case: Case) -> str:
    """Of the multiplications up to the raw heads, what the engine executes in INT8; "" where it does not show that."""
    from boxwright.calibration.executed import executed_layers
    from boxwright.calibration.float_model import load_float_model
    from boxwright.calibration.images import network_inputs
    from boxwright.calibration.statistics import collect_statistics
    from boxwright.data import load_dataset

    if engine == "tensorrt":
        return ""
    float_model = load_float_model(model)
    sample = load_dataset(case.data, "train").samples[:1]
    batches = ((arrays, count, 0) for arrays, count in network_inputs(float_model.manifest, sample, float_model.proto))
    statistics = collect_statistics(float_model, batches, tensors={})
    macs = {layer.name: statistics.macs(layer) for layer in float_model.layers}
    executed = executed_layers(engine, onnx.load(path), float_model, macs)
    return "" if executed is None else f"{100 * executed.int8_share:.0f} %"


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
    """Milliseconds an image of each model; up to the raw heads, as the search counts, except of TensorRT's engines."""
    from boxwright.calibration.float_model import load_float_model
    from boxwright.calibration.stopwatch import measure_in_turns
    from boxwright.core.images import read_image
    from boxwright.data import load_dataset
    from boxwright.runtimes.backend import open_backend
    from boxwright.runtimes.detector import Detector

    image = read_image(load_dataset(case.data, case.measured_on).samples[0].image_path)
    with Detector(models[0], backend="onnxruntime") as detector:
        images = detector.preprocess([image]).images
    heads = [value.name for value in load_float_model(models[0]).raw_proto.graph.output]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        backends = []
        for index, model in enumerate(models):
            path = model
            if model.suffix == ".onnx" and engine != "tensorrt":
                path = Path(folder) / f"{index}.onnx"
                onnx.utils.extract_model(str(model), str(path), ["images"], heads)
            backends.append(stack.enter_context(open_backend(path, backend=engine, precision="fp32")))
        return measure_in_turns(backends, {"images": images}, rounds=10)


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
