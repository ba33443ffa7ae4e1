"""Measures on an NVIDIA GPU what engines of TensorRT are to reach there, and says whether they do.

    python benchmarks/gpu.py prepare FOLDER            # on any machine: the ONNX files, which need torch
    python benchmarks/gpu.py measure FOLDER [--json]   # on the GPU's: builds the engines in FOLDER

The goals:
- DecodeNMS on heads (1, 8400, 80), in an FP16 engine of YOLOX-nano at 640x640 on photographs of coco-tiny at a score
  threshold of 0.25: below 100 microseconds on an H100, below 5 % of the time of an FP16 engine of YOLOX-m (random
  weights), and not slower than EfficientNMS_TRT with what it needs of sigmoids and box decoding, in the same engine.
- End to end at batch 1: `Detector` on an image in memory takes at most 1.15 times what the bare engine takes on inputs
  made ahead, both with their copies to the GPU and back; the GPU's time alone is printed beside it.
- mAP of YOLOX-nano at 416x416 on coco-tiny: FP16 within 0.3 points of FP32, INT8 within 0.5.
Exit status 3 where a goal is missed. None of this has run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gpu_models import DATA, build_engines, write_models
from numpy.typing import NDArray

from boxwright.core.images import read_image

MOST_PLUGIN_US, MOST_SHARE, MOST_RATIO = 100.0, 0.05, 1.15
MOST_DROP = {"fp16": 0.003, "int8": 0.005}
NUM_IMAGES, ROUNDS, LAUNCHES = 16, 5, 100
Image = NDArray[np.uint8]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("prepare", "measure"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--heavy", default="yolox-m", help="variant that DecodeNMS's share is of (prepare)")
    parser.add_argument("--json", action="store_true", dest="as_json")
    arguments = parser.parse_args()
    if arguments.step == "prepare":
        write_models(arguments.folder, arguments.heavy)
        print(f"now, where the GPU is: python benchmarks/gpu.py measure {arguments.folder}")
        return 0
    report = measure(arguments.folder)
    print(json.dumps(report, indent=2) if arguments.as_json else text_of(report))
    return 0 if all(goal["reached"] for goal in report["goals"]) else 3


class TimedEngine:
    """An engine with one input image, whose work alone is timed on the GPU, without copies."""

    def __init__(self, path: Path) -> None:
        from boxwright.runtimes.cuda_buffers import DeviceMemory, pinned_array
        from boxwright.runtimes.tensorrt_engine import num_bytes, open_engine

        opened = open_engine(path, "cuda")
        self.gpu_name = opened.device.name
        self._trt, self._cuda = opened.trt, opened.cuda
        self._engine, self._context = opened.engine, opened.engine.create_execution_context()
        self._stream = opened.cuda.create_stream()
        specs = {**opened.inputs, **opened.outputs}
        sizes = {name: num_bytes(tuple(size or 1 for size in spec.shape), spec) for name, spec in specs.items()}
        self._memories = {name: DeviceMemory(opened.cuda, size) for name, size in sizes.items()}
        for name, memory in self._memories.items():
            self._context.set_tensor_address(name, memory.address)
        images = opened.inputs["images"]
        shape = tuple(size or 1 for size in images.shape)
        self._host = pinned_array(opened.cuda, shape, images.dtype, is_shared=False)

    def feed(self, images: NDArray[np.float32]) -> None:
        self._host[...] = images
        self._cuda.copy_to_device(
            self._memories["images"].address, self._host.ctypes.data, self._host.nbytes, self._stream
        )
        self._run()

    def time_us(self) -> float:
        """Of one run among many in a row, as a CUDA graph."""
        self._cuda.begin_capture(self._stream)
        self._context.execute_async_v3(self._stream)
        graph = self._cuda.end_capture(self._stream)
        rounds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            for _ in range(LAUNCHES):
                self._cuda.launch_graph(graph, self._stream)
            self._cuda.synchronize(self._stream)
            rounds.append((time.perf_counter() - start) / LAUNCHES * 1e6)
        self._cuda.destroy_graph(graph)
        return min(rounds)

    def layer_times_us(self, name_part: str) -> float:
        """Of the layers whose names contain this, by TensorRT's profiler; the median of some runs."""
        totals: list[float] = []

        class Profiler(self._trt.IProfiler):  # type: ignore[misc, name-defined]
            def __init__(self, trt: Any) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                if name_part in layer_name:
                    totals[-1] += ms * 1e3

        context = self._engine.create_execution_context()
        for name, memory in self._memories.items():
            context.set_tensor_address(name, memory.address)
        profiler = Profiler(self._trt)
        context.profiler = profiler
        for _ in range(10 + LAUNCHES):
            totals.append(0.0)
            context.execute_async_v3(self._stream)
            self._cuda.synchronize(self._stream)
        return statistics.median(totals[10:])

    def _run(self) -> None:
        self._context.execute_async_v3(self._stream)
        self._cuda.synchronize(self._stream)


# ---- what is measured ----


def measure(folder: Path) -> dict[str, Any]:
    """Times, accuracy and goals."""
    engines = build_engines(folder)
    paths = sorted((DATA / "val2017").glob("*.jpg"))[:NUM_IMAGES]
    images = [read_image(path) for path in paths]
    plugin_us, gpu_name = layers_of(engines["nano_plugin"], images, "decode_nms")
    efficientnms_us, _ = layers_of(engines["nano_efficientnms"], images, "efficientnms")
    heavy_us = gpu_time_us(engines["heavy_plugin"], images[:1])
    report: dict[str, Any] = {
        "gpu": gpu_name,
        "plugin_us": plugin_us,
        "efficientnms_us": efficientnms_us,
        "engine_us": {
            **{name: gpu_time_us(engines[name], images) for name in ("nano_none", "nano_plugin", "nano_efficientnms")},
            "heavy_none": gpu_time_us(engines["heavy_none"], images[:1]),
            "heavy_plugin": heavy_us,
        },
        "end_to_end": end_to_end(engines["heavy_plugin"], engines["heavy_none"], images),
        "map": {precision: map_of(engines[precision]) for precision in ("fp32", "fp16", "int8")},
    }
    report["goals"] = goals_of(report)
    return report


def goals_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal, what was measured and whether it is reached."""
    plugin_us, heavy_us, accuracy = report["plugin_us"], report["engine_us"]["heavy_plugin"], report["map"]
    rows = [
        ("DecodeNMS on (1, 8400, 80), microseconds (on an H100)", plugin_us, MOST_PLUGIN_US),
        ("its share of the heavy FP16 engine", plugin_us / heavy_us, MOST_SHARE),
        ("DecodeNMS against EfficientNMS_TRT", plugin_us / report["efficientnms_us"], 1.0),
        ("end to end against the bare engine", report["end_to_end"]["ratio"], MOST_RATIO),
        *(
            (f"mAP that {name} costs, 0 to 1", accuracy["fp32"] - accuracy[name], drop)
            for name, drop in MOST_DROP.items()
        ),
    ]
    return [{"goal": text, "got": got, "at_most": most, "reached": got <= most} for text, got, most in rows]


def preprocessed(engine: Path, images: Sequence[Image]) -> list[NDArray[np.float32]]:
    from boxwright.runtimes.engine_sidecar import read_sidecar

    preprocess = read_sidecar(engine).manifest.preprocess
    return [preprocess.apply(image)[0][None] for image in images]


def layers_of(engine: Path, images: Sequence[Image], name_part: str) -> tuple[float, str]:
    """The median over the images of what layers take, and the GPU's name."""
    timed = TimedEngine(engine)
    times = []
    for tensor in preprocessed(engine, images):
        timed.feed(tensor)
        times.append(timed.layer_times_us(name_part))
    if not all(times):
        sys.exit(f"{engine}: the profiler saw no layer with {name_part!r} in its name")
    return statistics.median(times), timed.gpu_name


def gpu_time_us(engine: Path, images: Sequence[Image]) -> float:
    timed = TimedEngine(engine)
    times = []
    for tensor in preprocessed(engine, images):
        timed.feed(tensor)
        times.append(timed.time_us())
    return statistics.median(times)


def end_to_end(detecting: Path, bare: Path, images: Sequence[Image]) -> dict[str, float]:
    """Detector on images against the engine up to the raw heads on tensors, in turn."""
    from boxwright.runtimes.backend import open_backend
    from boxwright.runtimes.detector import Detector

    tensors = preprocessed(bare, images)
    with Detector(detecting) as detector, open_backend(bare) as backend:
        sides: dict[str, list[float]] = {"detector_ms": [], "bare_engine_ms": []}
        for _ in range(ROUNDS):
            for image, tensor in zip(images, tensors, strict=True):
                for name, run in (
                    ("detector_ms", lambda image=image: detector(image)),
                    ("bare_engine_ms", lambda tensor=tensor: backend.run({"images": tensor})),
                ):
                    start = time.perf_counter()
                    run()
                    sides[name].append((time.perf_counter() - start) * 1e3)
    medians = {name: statistics.median(times) for name, times in sides.items()}
    return {**medians, "ratio": medians["detector_ms"] / medians["bare_engine_ms"]}


def map_of(engine: Path) -> float:
    from boxwright.bench.accuracy import evaluate
    from boxwright.data import load_dataset
    from boxwright.runtimes.detector import Detector

    with Detector(engine, conf=0.001) as detector:
        accuracy = evaluate(detector, load_dataset(DATA, "val"))
    assert accuracy.map is not None
    return accuracy.map


def text_of(report: dict[str, Any]) -> str:
    lines = [
        report["gpu"],
        f"DecodeNMS {report['plugin_us']:.1f} us, EfficientNMS_TRT {report['efficientnms_us']:.1f} us",
    ]
    lines += [f"{name}: {value:.1f} us on the GPU" for name, value in report["engine_us"].items()]
    lines.append("end to end {detector_ms:.3f} ms, bare engine {bare_engine_ms:.3f} ms".format(**report["end_to_end"]))
    lines += [f"mAP {name}: {value:.4f}" for name, value in report["map"].items()]
    for goal in report["goals"]:
        mark = "reached" if goal["reached"] else "MISSED"
        lines.append(f"{mark}: {goal['goal']}: {goal['got']:.4g}, at most {goal['at_most']:g}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
