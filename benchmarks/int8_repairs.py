"""What each repair of `boxwright calibrate` wins in mAP, one taken away or added at a time.

    python benchmarks/int8_repairs.py m.onnx --data DIR [--split train] [--val-split val] [--engine openvino] [--json]

The model is a float file. Ranges come from the one split, everything is measured on the other, which no form was made
or chosen with: agreement with the float model's detections, and the points of mAP lost with their standard error over
resampled images. Layers that predict stay in float, and in the forms named so depthwise layers do.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from boxwright.calibration.budget_images import SearchImages, batches_without, fold_batches, read_images
from boxwright.calibration.candidate import Quantizer, observed_tensors
from boxwright.calibration.choice import prepare_choice
from boxwright.calibration.equalization import equalize
from boxwright.calibration.evaluation import Evaluator
from boxwright.calibration.float_model import FloatModel, load_float_model
from boxwright.calibration.ranges import RangeMethod
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.statistics import Statistics, collect_statistics
from boxwright.calibration.variant import Variant
from boxwright.core.placement import rules_for

COLUMNS = ("form", "agreement", "points lost", "standard error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--val-split", default="val")
    parser.add_argument("--num-images", type=int, default=80)
    parser.add_argument("--engine", default="openvino", choices=("openvino", "onnxruntime"))
    parser.add_argument("--ranges", default="percentile", choices=("minmax", "percentile", "entropy", "mse"))
    parser.add_argument("--json", action="store_true", dest="as_json")
    arguments = parser.parse_args()
    model = load_float_model(arguments.model)
    images = read_images(arguments.data, arguments.split, arguments.data, arguments.val_split, arguments.num_images)
    rows = measure(model, images, arguments.engine, RangeMethod(kind=arguments.ranges))
    if arguments.as_json:
        print(json.dumps(list(rows), indent=2))
        return
    print(f"| {' | '.join(COLUMNS)} |\n" + "| --- " * len(COLUMNS) + "|")
    for row in rows:
        print("| " + " | ".join(str(row[column]) for column in COLUMNS) + " |", flush=True)


def measure(model: FloatModel, images: SearchImages, engine: str, method: RangeMethod) -> Iterator[dict[str, Any]]:
    """One row a form."""
    statistics = collect(model, images, engine)
    equalized = equalize(model, batches_without(model, images, None))
    quantizer = Quantizer(
        model,
        statistics,
        lambda leave_out: batches_without(model, images, leave_out),
        equalized=None if equalized is None else Quantizer(equalized, collect(equalized, images, engine)),
    )
    macs = {layer.name: statistics.macs(layer) for layer in model.layers}
    evaluator = Evaluator(model, quantizer, macs=macs)
    with tempfile.TemporaryDirectory() as folder:
        choice = prepare_choice(images.choice, None, model.manifest, model.proto, Path(folder))
        for name, recipe in forms(model, engine, method, can_equalize=equalized is not None).items():
            found = evaluator.evaluate(Variant(engine=engine, recipe=recipe), choice, with_map=True)
            assert found.difference is not None
            values = (
                name,
                f"{found.agreement.value:.3f}",
                f"{100 * found.difference.drop:.2f}",
                f"{100 * found.difference.standard_error:.2f}",
            )
            yield dict(zip(COLUMNS, values, strict=True))


def forms(model: FloatModel, engine: str, method: RangeMethod, *, can_equalize: bool) -> dict[str, Recipe]:
    """What is compared, by name; only what there is anything to do for in this model and on this engine."""
    rules = rules_for(engine)
    kinds = {layer.kind for layer in model.layers}
    plain = Recipe(rules=rules, method=method)
    found = {"as usual": plain, "biases not corrected": replace(plain, corrects_bias=False)}
    if rules.rescales_channels or (rules.rescales_products and "matmul" in kinds):
        found["magnitudes not migrated"] = replace(plain, migration=None)
    if rules.style == "fused" and can_equalize:
        found["equalised across layers"] = replace(plain, equalizes=True)
    found["learned rounding"] = replace(plain, repairs=("learned_rounding",))
    if "depthwise" in kinds:
        depthwise = frozenset(layer.name for layer in model.layers if layer.kind == "depthwise")
        less = replace(plain, float_layers=depthwise)
        found |= {"depthwise layers in float": less}
        found["the same, learned rounding"] = replace(less, repairs=("learned_rounding",))
    return found


def collect(model: FloatModel, images: SearchImages, engine: str) -> Statistics:
    tensors = observed_tensors(model, fused=rules_for(engine).style == "fused")
    return collect_statistics(model, fold_batches(model, images), tensors=tensors)


if __name__ == "__main__":
    main()
