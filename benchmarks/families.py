"""Trains every detector family for the same short time, and measures what comes out as FP32 and INT8 on each engine.

    python benchmarks/families.py [--minutes 4] [--jobs 2] [--data shapes,bccd] [--variants a,b] [--out DIR] [--json]

Each family stands with its smallest variant, and each further line of detectors in a family's file with its own,
trained from random weights (of the backbone too) on one thread for so many minutes of processor time (4 on shapes, 2 on
blood cells), `--jobs` of them side by side, and measured afterwards, one at a time: AP and AP50 on images that were not
trained on, images a second end to end at batch 1, and the size of the file. `shapes` is the generated data set at
160x160, `bccd` the blood cells at 256x256; a family whose input size is fixed keeps its own. `eight` are eight
generated images, always shown as they are and measured on as well: overfitting, which shows that a family learns at all
(DETR needs far more than minutes for the rest). What cannot be exported (Fast R-CNN and R-CNN, whose regions come from
selective search) is measured in PyTorch, and R-CNN's SVMs are fitted after its minutes. With the given --out a run that
was interrupted goes on where it stopped. Minutes on two cores say which family learns at all and what it costs to run,
not which one is the better detector after days on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("BOXWRIGHT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SIZES_HW = {"shapes": (160, 160), "bccd": (256, 256), "eight": (160, 160)}
# Blood cells are larger and more, and take twice as long an image.
MINUTES = {"shapes": 4.0, "bccd": 2.0, "eight": 4.0}
SPLITS = {"shapes": "val", "bccd": "test", "eight": "train"}
FORMS = (("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("openvino", "fp32"), ("openvino", "int8"))
TORCH_FORM = ("torch", "fp32")
CHECKPOINT_OPENER = "boxwright.cli._opening:open_candidate"
# Beside the smallest variant of each family.
FURTHER_LINES = ("cascadercnn-pico", "fastrcnn-pico", "rcnn-pico")
BATCH = 16
# What each detector is to reach on shapes; the command fails where one does not.
WANTED_MAP50 = 0.5
# More than fit into the time; of eight images an epoch is a step.
HEART_LEARNING_RATE = 2e-3
MANY_EPOCHS = {"shapes": 100, "bccd": 100, "eight": 10000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="of training, each, on one thread's processor time")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at the same time, one thread each")
    parser.add_argument("--data", default="shapes,bccd")
    parser.add_argument("--variants", help="instead of every family's smallest, separated by commas")
    parser.add_argument("--out", type=Path, help="folder for the runs; a temporary one by default")
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--train-one", nargs=2, metavar=("VARIANT", "DATA"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        if arguments.train_one:
            train_one(*arguments.train_one, out, arguments.minutes)
            return
        names = arguments.data.split(",")
        minutes = {name: arguments.minutes or MINUTES[name] for name in names}
        rows = run(out, minutes, arguments.variants, jobs=arguments.jobs)
    if arguments.as_json:
        print(json.dumps(rows, indent=2))
    else:
        for name in names:
            print(f"\n{name}, {minutes[name]:g} minutes of processor time for the training of each\n")
            print("\n".join(table([row for row in rows if row["data"] == name])))
    behind = [row["variant"] for row in rows if row["data"] == "shapes" and lowest_map50(row) < WANTED_MAP50]
    if behind:
        sys.exit(f"below the wanted AP50 of {WANTED_MAP50} on shapes: {', '.join(behind)}")


def run(out: Path, minutes: dict[str, float], variants: str | None, *, jobs: int) -> list[dict[str, Any]]:
    """Train all, then measure all."""
    chosen = variants.split(",") if variants else smallest_variants()
    pairs = [(variant, name) for name in minutes for variant in chosen]
    for name in minutes:
        data_folder(name, out)
    with ThreadPoolExecutor(jobs) as pool:
        for variant, name, problem in pool.map(lambda pair: train_apart(*pair, out, minutes[pair[1]]), pairs):
            print(f"trained {variant} on {name}" + (f": {problem}" if problem else ""), file=sys.stderr)
    rows = []
    for variant, name in pairs:
        rows.append(measure(variant, name, out))
        print(f"measured {variant} on {name}", file=sys.stderr)
    return rows


def smallest_variants() -> list[str]:
    """Of each family the one with the fewest parameters that can be exported, and those of further lines."""
    from boxwright.models import list_models

    smallest: dict[str, tuple[int, str]] = {}
    for info in (info for info in list_models() if info.is_exportable):
        entry = (info.num_parameters, info.variant)
        smallest[info.family] = min(entry, smallest.get(info.family, entry))
    return [*(variant for _, variant in smallest.values()), *FURTHER_LINES]


def data_folder(name: str, out: Path) -> Path:
    """Where the data set lies; shapes are generated."""
    if name == "bccd":
        folder = SHARED / "data" / "bccd"
        if not folder.is_dir():
            sys.exit(f"{folder} is absent; set BOXWRIGHT_SHARED to the folder of real data, or pass --data shapes")
        return folder
    from boxwright.data.shapes import generate_shapes

    folder = out / name
    if folder.is_dir():
        return folder
    return generate_shapes(folder, num_train=8, num_val=8) if name == "eight" else generate_shapes(folder)


def train_apart(variant: str, data_name: str, out: Path, minutes: float) -> tuple[str, str, str]:
    """Train in a process of one thread; returns the reason where that failed."""
    if (run_folder(variant, data_name, out) / "done").exists():
        return variant, data_name, ""
    command = [sys.executable, __file__, "--out", str(out), "--minutes", str(minutes)]
    done = subprocess.run(
        [*command, "--train-one", variant, data_name],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = done.stderr.strip().splitlines()
    return variant, data_name, "" if done.returncode == 0 else (lines[-1] if lines else f"status {done.returncode}")


def run_folder(variant: str, data_name: str, out: Path) -> Path:
    return out / f"{variant}-{data_name}"


def train_one(variant: str, data_name: str, out: Path, minutes: float) -> None:
    """Train, and export and calibrate what can be exported."""
    import torch

    from boxwright.calibration import calibrate
    from boxwright.export import export
    from boxwright.training import TrainConfig, train
    from boxwright.training.config import Augmentation

    torch.set_num_threads(1)
    as_they_are = Augmentation(
        mosaic=0, mixup=0, ssd_crop=0, flip=0, scale_range=(1, 1), translate=0, hue=0, saturation=0, brightness=0
    )
    folder, data = run_folder(variant, data_name, out), data_folder(data_name, out)
    result = train(
        TrainConfig(
            data=data,
            model=variant,
            out=folder,
            size_hw=fitting_size_hw(variant, SIZES_HW[data_name]),
            epochs=MANY_EPOCHS[data_name],
            max_minutes=minutes,
            batch=BATCH,
            # What is to be learned by heart is not varied, and a small network can take long steps for it.
            augmentation=as_they_are if data_name == "eight" else Augmentation(),
            learning_rate=HEART_LEARNING_RATE if data_name == "eight" else None,
            workers=0,
            val_every=0,
            resume=(folder / "last.pt").exists(),
        ),
        now=time.process_time,
    )
    if is_exportable(variant):
        export(result.best, folder / "m.onnx", data=data)
        calibrate(folder / "m.onnx", data, folder / "m_int8.onnx", split="train", num_images=64, measure=False)
    (folder / "done").write_text(json.dumps({"epochs": result.epochs_done, "seconds": result.seconds}))


def is_exportable(variant: str) -> bool:
    """Whether engines can run it."""
    from boxwright.models import build_model

    return build_model(variant, num_classes=1).is_exportable


def fitting_size_hw(variant: str, wanted_hw: tuple[int, int]) -> tuple[int, int] | None:
    """The wanted input size where the detector takes it, else None for its own."""
    from boxwright.core.errors import InputError
    from boxwright.models import build_model

    try:
        build_model(variant, num_classes=1).decode_spec(wanted_hw)
    except InputError:
        return None
    return wanted_hw


def measure(variant: str, data_name: str, out: Path) -> dict[str, Any]:
    """AP, speed and size in every form; kept beside the run."""
    from boxwright.bench.candidate import FILE_OPENER, Candidate
    from boxwright.bench.results import Settings
    from boxwright.bench.run import run_benchmark
    from boxwright.data import load_dataset
    from boxwright.models import build_model

    folder = run_folder(variant, data_name, out)
    kept = folder / "measured.json"
    if kept.exists():
        row: dict[str, Any] = json.loads(kept.read_text())
        return row
    row = {"variant": variant, "data": data_name, "forms": {}}
    if not (folder / "done").exists():
        return {**row, "problem": "not trained"}
    forms = FORMS if is_exportable(variant) else (TORCH_FORM,)
    candidates = [
        Candidate(
            model=str(file_of(folder, form)),
            backend=form[0],
            precision=form[1],
            opener=CHECKPOINT_OPENER if form == TORCH_FORM else FILE_OPENER,
        )
        for form in forms
    ]
    iou = build_model(variant, num_classes=1).nms_iou_threshold  # the family's own
    settings = Settings(iou=iou, min_launches=1, max_launches=1, rounds=6, block_s=0.2, with_raw_engine=False)
    measured = run_benchmark(
        candidates, load_dataset(data_folder(data_name, out), SPLITS[data_name]), settings=settings
    )
    row |= json.loads((folder / "done").read_text())
    row["imgsz"] = measured.report.results[0].imgsz
    for form, result in zip(forms, measured.report.results, strict=True):
        row["forms"][" ".join(form)] = {
            "map": result.map,
            "map50": result.map50,
            "fps": result.fps,
            "size_mb": file_of(folder, form).stat().st_size / 1e6,
            "reason": result.reason,
        }
    kept.write_text(json.dumps(row))
    return row


def file_of(folder: Path, form: tuple[str, str]) -> Path:
    """What a form is run from."""
    if form == TORCH_FORM:
        return folder / "best.pt"
    return folder / ("m.onnx" if form[1] == "fp32" else "m_int8.onnx")


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown."""
    yield "| detector | input | epochs | " + " | ".join(f"{' '.join(form)}: AP, AP50, FPS, MB" for form in FORMS) + " |"
    yield "| --- | --- | --- | " + " | ".join("---" for _ in FORMS) + " |"
    for row in rows:
        if "problem" in row:
            yield f"| {row['variant']} | | {row['problem']} | | | | |"
            continue
        cells = [describe(row["forms"][" ".join(form)]) if " ".join(form) in row["forms"] else "" for form in FORMS]
        if " ".join(TORCH_FORM) in row["forms"]:
            cells[0] = "PyTorch: " + describe(row["forms"][" ".join(TORCH_FORM)])
        height, width = row["imgsz"]
        yield f"| {row['variant']} | {height}x{width} | {row['epochs']} | " + " | ".join(cells) + " |"


def lowest_map50(row: dict[str, Any]) -> float:
    """The lowest AP50 in FP32; 0 where nothing was measured."""
    found = [form["map50"] for name, form in row["forms"].items() if name.endswith("fp32")]
    return min((value or 0.0 for value in found), default=0.0)


def describe(form: dict[str, Any]) -> str:
    if form["map"] is None:
        return form["reason"] or "not measured"
    fps = "" if form["fps"] is None else f"{form['fps']:.0f}"
    return f"{form['map']:.3f}, {form['map50']:.3f}, {fps}, {form['size_mb']:.1f}"


if __name__ == "__main__":
    main()
