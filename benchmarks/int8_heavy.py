"""Speed of heavy networks in INT8 against FP32 and BF16, on ONNX Runtime and OpenVINO, and what of them runs in INT8.

    python benchmarks/int8_heavy.py [--variants retinanet-r50,yolox-m] [--imgsz 640] [--rounds N] [--out DIR] [--json]

The networks have random weights, which cost as much time as trained ones, and are calibrated on generated images;
nothing is said of accuracy here. Placement is what `boxwright calibrate` writes for each engine, the layers that
predict included. Timed is the bare engine up to the raw heads at batch 1, all forms of a network in turn in one
process; ratios are those of the rounds. With --out what was made is kept and found again; --rounds 0 makes it alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from boxwright.calibration.candidate import Quantizer, observed_tensors
from boxwright.calibration.executed import executed_layers
from boxwright.calibration.float_model import FloatModel, load_float_model
from boxwright.calibration.images import network_inputs
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.sessions import Tensors
from boxwright.calibration.statistics import Statistics, collect_statistics
from boxwright.core.errors import UnsupportedError
from boxwright.core.machine import describe_machine
from boxwright.core.manifest import METADATA_KEY
from boxwright.core.placement import rules_for
from boxwright.core.timing import let_threads_sleep
from boxwright.runtimes.backend import open_backend

NUM_IMAGES = 2
WANTED = {"onnxruntime": 1.8, "openvino": 2.5}
# A network and an engine: the forms that are timed.
FORMS = {"onnxruntime": ("fp32", "int8"), "openvino": ("fp32", "bf16", "int8")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="retinanet-r50,yolox-m")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--num-threads", type=int, default=0, help="of the engines; 0 leaves it to them")
    parser.add_argument("--out", type=Path, help="folder for the networks; a temporary one by default")
    parser.add_argument("--json", action="store_true", dest="as_json")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"machine": describe_machine().to_jsonable(), "imgsz": arguments.imgsz, "networks": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for variant in arguments.variants.split(","):
            folder = (arguments.out or Path(temporary)) / f"{variant}-{arguments.imgsz}"
            if not (folder / "made.json").exists():
                make_forms(variant, arguments.imgsz, folder)
            if arguments.rounds > 0:
                report["networks"][variant] = measure(folder, arguments.rounds, arguments.num_threads)
    if arguments.rounds == 0:
        return
    print(json.dumps(report, indent=2) if arguments.as_json else "\n".join(table(report)))


def make_forms(variant: str, side: int, folder: Path) -> None:
    """Write the network up to its raw heads in FP32, and in INT8 for each engine."""
    from boxwright.data import load_dataset
    from boxwright.data.shapes import generate_shapes

    folder.mkdir(parents=True, exist_ok=True)
    export_random(variant, side, folder / "fp32.onnx")
    model = load_float_model(folder / "fp32.onnx")
    samples = load_dataset(generate_shapes(folder / "shapes"), "train").samples[:NUM_IMAGES]

    def batches() -> Iterator[tuple[Tensors, int, int]]:
        for inputs, count in network_inputs(model.manifest, samples, model.proto):
            yield inputs, count, 0

    tensors = observed_tensors(model, fused=True, predictions=True)
    statistics = collect_statistics(model, batches(), tensors=tensors)
    shares = {}
    for engine in FORMS:
        recipe = Recipe(rules=rules_for(engine), quantizes_predictions=True)
        shares[engine] = write_int8(model, statistics, recipe, folder / f"int8_{engine}.onnx")
        print(f"{variant} for {engine}: {shares[engine]:.1%} of the multiplications in INT8", file=sys.stderr)
    (folder / "made.json").write_text(json.dumps({"int8_share": shares, "gmacs": gmacs(model, statistics)}))


def export_random(variant: str, side: int, path: Path) -> None:
    """Trace the network with random weights."""
    import torch

    from boxwright.export.onnx_files import set_manifest, write_onnx
    from boxwright.export.passes import run_passes
    from boxwright.export.trace import trace
    from boxwright.models import LoadedModel, build_model

    torch.manual_seed(0)
    size_hw = (side, side)
    module = build_model(variant, num_classes=80, size_hw=size_hw).eval()
    loaded = LoadedModel(
        module=module,
        family=module.family,
        variant=variant,
        class_names=tuple(f"class {index}" for index in range(80)),
        preprocess=module.default_preprocess(size_hw),
        size_hw=size_hw,
    )
    graph = ir.from_proto(trace(module, size_hw))
    run_passes(graph)
    set_manifest(graph, loaded.manifest())
    write_onnx(graph, path)


def write_int8(model: FloatModel, statistics: Statistics, recipe: Recipe, path: Path) -> float:
    """Write a quantized form; returns the part of the multiplications that the engine runs on integers."""
    proto = Quantizer(model, statistics).build(recipe, raw=True)
    macs = {layer.name: statistics.macs(layer) for layer in model.layers}
    executed = executed_layers(recipe.rules.engine, proto, model, macs)
    assert executed is not None
    proto.metadata_props.add(key=METADATA_KEY, value=model.manifest.to_json())
    onnx.save(proto, path)
    return executed.int8_share


def gmacs(model: FloatModel, statistics: Statistics) -> float:
    return sum(statistics.macs(layer) for layer in model.layers) / 1e9


def measure(folder: Path, rounds: int, num_threads: int) -> dict[str, Any]:
    """Milliseconds of every form in every round."""
    inputs = None
    backends = {}
    refused: dict[str, str] = {}
    for engine, precisions in FORMS.items():
        for precision in precisions:
            path = folder / (f"int8_{engine}.onnx" if precision == "int8" else "fp32.onnx")
            asked = "fp32" if precision == "int8" else precision
            try:
                backend = open_backend(path, backend=engine, precision=asked, num_threads=num_threads)
            except UnsupportedError as error:
                refused[f"{engine} {precision}"] = error.got
                continue
            backends[f"{engine} {precision}"] = backend
            shape = [1 if side is None else side for side in backend.inputs["images"].shape]
            inputs = {"images": np.random.default_rng(0).random(shape, dtype=np.float32)}
    assert inputs is not None
    times: dict[str, list[float]] = {name: [] for name in backends}
    names = list(backends)
    for turn in range(rounds + 1):  # the first warms up
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            let_threads_sleep()
            backends[name].run(inputs)  # the caches still hold what ran before
            started = time.perf_counter()
            backends[name].run(inputs)
            if turn > 0:
                times[name].append((time.perf_counter() - started) * 1e3)
    for backend in backends.values():
        backend.close()
    return {**json.loads((folder / "made.json").read_text()), "ms": times, "refused": refused}


def table(report: dict[str, Any]) -> Iterator[str]:
    """Markdown."""
    yield "| network | GMACs | engine | precision | ms | times as fast as FP32 (rounds) | wanted | in INT8 |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for variant, network in report["networks"].items():
        for name, times in network["ms"].items():
            engine, precision = name.split()
            ratios = np.array(network["ms"][f"{engine} fp32"]) / np.array(times)
            ratio = (
                "1" if precision == "fp32" else f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
            )
            wanted, share = (
                (WANTED[engine], f"{network['int8_share'][engine]:.1%}") if precision == "int8" else ("", "")
            )
            yield (
                f"| {variant} | {network['gmacs']:.1f} | {engine} | {precision} | {np.median(times):.0f} | {ratio} | "
                f"{wanted} | {share} |"
            )
        fastest = min(network["ms"], key=lambda name: float(np.median(network["ms"][name])))
        yield f"| {variant} | | fastest: {fastest} | | | | | |"


if __name__ == "__main__":
    main()
