"""Prints what the library costs before it does anything: the time of an import, and the memory of a predicting process.

    python benchmarks/footprint.py [--json]

The import is timed in fresh processes, the start of Python itself subtracted. The predicting process opens YOLOX-nano
and detects in every image of coco-tiny; its peak resident memory is what the kernel says at its end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("BOXWRIGHT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
ENGINES = ("onnxruntime", "openvino")
NUM_STARTS = 11
IMPORT_LIMIT_S = 0.3
MEMORY_LIMIT_MB = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--predict", nargs=2, metavar=("MODEL", "ENGINE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.predict:
        predict_everything(*arguments.predict)
        return
    report: dict[str, Any] = {"import_s": time_of_import()}
    with tempfile.TemporaryDirectory() as folder:
        model = export_model(Path(folder))
        for engine in ENGINES:
            command = [sys.executable, __file__, "--predict", str(model), engine]
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
            report[f"{engine}_peak_mb"] = float(answer.stdout)
    if arguments.as_json:
        print(json.dumps(report, indent=2))
        return
    print(f"import boxwright: {report['import_s'] * 1e3:.0f} ms (wanted: below {IMPORT_LIMIT_S * 1e3:.0f})")
    print(f"predicting with ONNX Runtime: {report['onnxruntime_peak_mb']:.0f} MB (wanted: below {MEMORY_LIMIT_MB})")
    print(f"predicting with OpenVINO: {report['openvino_peak_mb']:.0f} MB")


def time_of_import() -> float:
    """Seconds that `import boxwright` adds to a process, the median of several."""
    differences = [time_of_process("import boxwright") - time_of_process("pass") for _ in range(NUM_STARTS)]
    return statistics.median(differences)


def time_of_process(program: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - started


def export_model(folder: Path) -> Path:
    """Adopt the model in a process of its own, so that exporting does not count."""
    model = folder / "m.onnx"
    source = SHARED / "weights/yolox_nano_coco.onnx"
    options = ["--head", "yolox", "--labels", "coco", "--preprocess", "yolox-legacy", "--nms", "none"]
    command = [sys.executable, "-m", "boxwright", "export", str(source), *options, "--out", str(model)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return model


def predict_everything(model: str, engine: str) -> None:
    """Detect in all images and print this process's peak memory in MB."""
    from boxwright import Detector

    with Detector(model, backend=engine) as detector:
        for item in detector.stream(SHARED / "data/coco-tiny/val2017"):
            assert item.error is None, item.error
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
