"""Times detection end to end against the bare engine, for the three forms of NMS on ONNX Runtime and OpenVINO in fp32.

    python benchmarks/end_to_end.py [--num-threads N] [--rounds N] [--json]

YOLOX-nano at 416x416 on the images of coco-tiny, one at a time, at a score threshold of 0.25. The decoding of the
JPEGs is left out; preprocessing, the engine, decoding and NMS count. The bare engine runs the graph up to the raw
heads on inputs made ahead, in the same precision and with the same threads. All take turns, image block by image
block, in one process, and the order of the turns rotates. "Undisturbed" takes the fastest round of each image, which
leaves out what other programs on the machine do; without such programs the two columns say the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import InputError
from boxwright.core.images import read_image
from boxwright.core.machine import describe_machine
from boxwright.core.timing import let_threads_sleep
from boxwright.export import ExportOptions, export
from boxwright.runtimes.backend import Backend
from boxwright.runtimes.detector import Detector

SHARED = Path(os.environ.get("BOXWRIGHT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
ENGINES = ("onnxruntime", "openvino")
NMS_FORMS = ("none", "graph", "plugin")
SETTLE_IMAGES = 4
TARGET_RATIO = 1.10

Image = NDArray[np.uint8]


@dataclasses.dataclass
class Contender:
    """Something that is timed.

    Attributes:
        name: of the NMS form, or "bare engine".
        run: processes the image of an index.
        rounds_ms: time of every image in every round.
    """

    name: str
    run: Callable[[int], object]
    rounds_ms: list[NDArray[np.float64]] = dataclasses.field(default_factory=list)

    def round_medians_ms(self) -> NDArray[np.float64]:
        """The median image of each round."""
        return np.median(np.array(self.rounds_ms), axis=1)

    def undisturbed_ms(self) -> float:
        """The median image, each at the fastest of its rounds, which leaves out the turns of other programs."""
        return float(np.median(np.min(np.array(self.rounds_ms), axis=0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-threads", type=int, default=0, help="of the engines; 0 leaves it to them")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", action="store_true", dest="as_json")
    arguments = parser.parse_args()
    images = [read_image(path) for path in sorted((SHARED / "data/coco-tiny/val2017").glob("*.jpg"))]
    report: dict[str, Any] = {"machine": describe_machine().to_jsonable(), "num_threads": arguments.num_threads}
    with tempfile.TemporaryDirectory() as folder:
        paths = export_forms(Path(folder))
        for engine in ENGINES:
            report[engine] = measure_engine(engine, paths, images, arguments.num_threads, arguments.rounds)
    if arguments.as_json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report)


def export_forms(folder: Path) -> dict[str, Path]:
    """The model in the three forms of NMS."""
    paths = {form: folder / f"{form}.onnx" for form in NMS_FORMS}
    for form, path in paths.items():
        export(
            SHARED / "weights/yolox_nano_coco.onnx",
            path,
            head="yolox",
            labels="coco",
            preprocess="yolox-legacy",
            data=SHARED / "data/coco-tiny",
            options=ExportOptions(nms=form),
        )
    return paths


def measure_engine(
    engine: str, paths: dict[str, Path], images: list[Image], num_threads: int, rounds: int
) -> dict[str, Any]:
    """Times in milliseconds of all contenders on one engine."""
    contenders: list[Contender] = []
    refused: dict[str, str] = {}
    stages: dict[str, dict[str, float]] = {}
    for form, path in paths.items():
        try:
            detector = Detector(path, backend=engine, precision="fp32", num_threads=num_threads, conf=0.25)
        except InputError as error:
            refused[form] = str(error).replace(str(path), form)
            continue
        if form == "none":
            inputs = [np.array(detector.preprocess([image]).images) for image in images]
            contenders.append(Contender("bare engine", bare_engine(detector.backend, inputs)))
        contenders.append(Contender(form, lambda index, detector=detector: detector(images[index])))
        stages[form] = measure_stages(detector, images)
    for turn in range(rounds):
        shift = turn % len(contenders)
        for contender in contenders[shift:] + contenders[:shift]:
            contender.rounds_ms.append(time_block(contender.run, len(images)))
    bare = contenders[0]
    report: dict[str, Any] = {}
    for contender in contenders:
        ratios = contender.round_medians_ms() / bare.round_medians_ms()
        report[contender.name] = {
            "ms": float(np.median(contender.round_medians_ms())),
            "ratio": float(np.median(ratios)),
            "ratio_of_rounds": [round(float(ratio), 4) for ratio in ratios],
            "undisturbed_ms": contender.undisturbed_ms(),
            "undisturbed_ratio": contender.undisturbed_ms() / bare.undisturbed_ms(),
            "stages_ms": stages.get(contender.name),
        }
    return report | {form: {"refused": reason} for form, reason in refused.items()}


def bare_engine(backend: Backend, inputs: list[NDArray[Any]]) -> Callable[[int], object]:
    """The shortest way to run the engine, without anything of ours around it."""
    opened: Any = backend
    if backend.name == "onnxruntime":
        session, names = opened._session, list(backend.outputs)
        return lambda index: session.run(names, {"images": inputs[index]})
    import openvino

    request = opened._compiled.create_infer_request()
    tensors = [openvino.Tensor(array, shared_memory=True) for array in inputs]

    def run(index: int) -> object:
        request.set_input_tensor(tensors[index])
        request.infer()
        return [request.get_output_tensor(output).data for output in range(len(backend.outputs))]

    return run


def time_block(run: Callable[[int], object], num_images: int) -> NDArray[np.float64]:
    """Time of each image in milliseconds, after a pause and a few that are not counted."""
    let_threads_sleep()
    for index in range(SETTLE_IMAGES):
        run(index)
    times = np.empty(num_images)
    for index in range(num_images):
        started = time.perf_counter()
        run(index)
        times[index] = time.perf_counter() - started
    return times * 1e3


def measure_stages(detector: Detector, images: list[Image]) -> dict[str, float]:
    """Median time of each stage in milliseconds."""
    times = np.empty((len(images), 3))
    for row, image in zip(times, images, strict=True):
        started = time.perf_counter()
        batch = detector.preprocess([image])
        preprocessed = time.perf_counter()
        outputs = detector.infer(batch)
        inferred = time.perf_counter()
        detector.postprocess(outputs, batch.transforms)
        row[:] = preprocessed - started, inferred - preprocessed, time.perf_counter() - inferred
    medians = np.median(times, axis=0) * 1e3
    return {
        name: round(float(value), 3)
        for name, value in zip(("preprocess", "infer", "postprocess"), medians, strict=True)
    }


def print_report(report: dict[str, Any]) -> None:
    machine = report["machine"]
    threads = report["num_threads"] or "the engine's choice of"
    print(f"{machine['cpu_name']}, {machine['num_cores']} cores; {threads} threads; fp32")
    print("engine       form          median image    undisturbed image    stages")
    for engine in ENGINES:
        for name, entry in report[engine].items():
            if "refused" in entry:
                print(f"{engine:12} {name:12} {entry['refused']}")
                continue
            usual = f"{entry['ms']:6.2f} ms x {entry['ratio']:.3f}"
            undisturbed = f"{entry['undisturbed_ms']:6.2f} ms x {entry['undisturbed_ratio']:.3f}"
            stages = ", ".join(f"{stage} {value:.2f}" for stage, value in (entry["stages_ms"] or {}).items())
            print(f"{engine:12} {name:12} {usual}  {undisturbed}  {stages}")
        forms = [entry for name, entry in report[engine].items() if name in NMS_FORMS and "ratio" in entry]
        best = min(forms, key=lambda entry: entry["ratio"])
        print(
            f"{engine:12} the fastest form takes {best['ratio']:.3f} times the bare engine, undisturbed "
            f"{best['undisturbed_ratio']:.3f} (wanted: {TARGET_RATIO:.2f})"
        )


if __name__ == "__main__":
    sys.exit(main())
