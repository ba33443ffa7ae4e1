"""`boxwright quickstart`: the whole way on data that it generates itself, and the commands to go it with one's own."""

from __future__ import annotations

import importlib.util
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boxwright.cli._options import JsonOption
from boxwright.cli._output import print_json, stderr_console, stdout_console
from boxwright.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from boxwright.bench.run import BenchRun
    from boxwright.training import TrainResult

MODEL = "yolox-pico"
NUM_TRAIN, NUM_VAL = 1600, 200
EPOCHS = 20
NUM_PICTURES = 3
_NEEDED = ("faster_coco_eval", "lightning", "onnx", "onnxruntime", "openvino")
_PICTURE_SCALE = 3  # shapes are small images; boxes and letters are drawn on larger ones


def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("quickstart"),
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the training images.")] = EPOCHS,
    max_minutes: Annotated[
        float, typer.Option("--max-minutes", min=0.1, help="Training is shortened to about this.")
    ] = 3.5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the data and the training.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Generate data, train, export, quantize and benchmark a small detector in a few minutes."""
    for package in _NEEDED:  # asked for now and not after minutes of training
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, extra="all", needed_for="boxwright quickstart")
    from boxwright.core.files import check_writable

    check_writable(out / "README.md")
    started = time.monotonic()
    data = _generate(out, seed)
    trained = _train(out, data, epochs, max_minutes, seed)
    models = _export(out, data, trained)
    run = _bench(out, data, models)
    pictures = _draw(out, data, models[0])
    minutes = (time.monotonic() - started) / 60
    page = _write_page(out, run, trained, pictures, minutes)
    if as_json:
        print_json(_document(out, run, trained, pictures, minutes))
    else:
        _print(run, page, out, pictures, trained, minutes)


@contextmanager
def _step(text: str) -> Iterator[None]:
    console = stderr_console()
    console.print(f"[bold]{text}[/bold]", highlight=False)
    started = time.monotonic()
    yield
    console.print(f"  done in {time.monotonic() - started:.0f} s", style="dim", highlight=False)


def _generate(out: Path, seed: int) -> Path:
    from boxwright.data.shapes import generate_shapes

    with _step(f"1/5 Generating {NUM_TRAIN + NUM_VAL} images of shapes"):
        return generate_shapes(out / "shapes", num_train=NUM_TRAIN, num_val=NUM_VAL, seed=seed)


def _train(out: Path, data: Path, epochs: int, max_minutes: float, seed: int) -> TrainResult:
    from boxwright.training import TrainConfig, train

    with _step(f"2/5 Training {MODEL}, {epochs} epochs, at most {max_minutes:g} minutes"):
        return train(
            TrainConfig(
                data=data,
                model=MODEL,
                out=out / "run",
                epochs=epochs,
                max_minutes=max_minutes,
                val_every=max(1, epochs // 4),
                seed=seed,
                resume=(out / "run" / "last.pt").exists(),
            )
        )


def _export(out: Path, data: Path, trained: TrainResult) -> list[Path]:
    from boxwright.calibration import calibrate
    from boxwright.export import ExportOptions, export

    onnx_path, openvino_path, int8_path = out / "model.onnx", out / "model_openvino_model", out / "model_int8.onnx"
    with _step("3/5 Exporting to ONNX and OpenVINO, each compared with PyTorch at the detections"):
        export(trained.best, onnx_path, data=data)
        export(onnx_path, openvino_path, data=data, options=ExportOptions(format="openvino"))
    with _step("4/5 Quantizing to INT8"):
        calibrate(onnx_path, data, int8_path, split="train", num_images=64)
    return [onnx_path, openvino_path, int8_path]


def _bench(out: Path, data: Path, models: list[Path]) -> BenchRun:
    from boxwright.bench.candidate import Candidate
    from boxwright.bench.report import write_report
    from boxwright.bench.results import Settings
    from boxwright.bench.run import run_benchmark
    from boxwright.cli._bench_display import BenchDisplay
    from boxwright.data import load_dataset

    onnx_path, openvino_path, int8_path = map(str, models)
    candidates = [
        Candidate(model=onnx_path, backend="onnxruntime"),
        Candidate(model=int8_path, backend="onnxruntime", precision="int8"),
        Candidate(model=openvino_path, backend="openvino"),
        Candidate(model=openvino_path, backend="openvino", precision="bf16"),
        Candidate(model=int8_path, backend="openvino", precision="int8"),
    ]
    with _step("5/5 Measuring speed and mAP on ONNX Runtime and OpenVINO"), BenchDisplay() as display:
        settings = Settings(min_launches=3, max_launches=3, rounds=3, block_s=0.2)
        run = run_benchmark(
            candidates, load_dataset(data, "val"), settings=settings, observer=display, command=_bench_command(out)
        )
    write_report(run, out / "report")
    return run


def _bench_command(out: Path) -> str:
    paths = [out / "model.onnx", out / "model_openvino_model", out / "model_int8.onnx"]
    return shlex.join(
        ["boxwright", "bench", *map(str, paths), "--data", str(out / "shapes"), "--out", str(out / "report")]
    )


def _draw(out: Path, data: Path, model: Path) -> list[Path]:
    """Annotated images with several objects, enlarged so that the labels can be read."""
    import cv2
    import numpy as np

    from boxwright.core.detections import Detections
    from boxwright.core.draw import draw_detections
    from boxwright.core.files import atomic_file
    from boxwright.core.images import read_image
    from boxwright.data import load_dataset
    from boxwright.runtimes.detector import Detector

    samples = [sample for sample in load_dataset(data, "val").samples if len(sample) >= 4][:NUM_PICTURES]
    pictures = []
    with Detector(model, conf=0.5, iou=0.5) as detector:
        for sample in samples:
            image = read_image(sample.image_path)
            found = detector(image)
            large = np.asarray(
                cv2.resize(image, None, fx=_PICTURE_SCALE, fy=_PICTURE_SCALE, interpolation=cv2.INTER_CUBIC),
                dtype=np.uint8,
            )
            scaled = Detections(
                boxes_xyxy=found.boxes_xyxy * _PICTURE_SCALE, scores=found.scores, class_ids=found.class_ids
            )
            target = out / "pictures" / f"{sample.image_path.stem}.png"
            _, content = cv2.imencode(".png", draw_detections(large, scaled, detector.manifest.class_names))
            with atomic_file(target) as temporary:
                temporary.write_bytes(content.tobytes())
            pictures.append(target)
    return pictures


def _own_data_commands() -> str:
    return """\
boxwright doctor --data DATA                                   # what is wrong with your images and boxes
boxwright train --model yolox-nano --data DATA --epochs 100 --out runs/mine
boxwright export runs/mine/best.pt --data DATA --out m.onnx
boxwright export m.onnx --format openvino --data DATA --out m_openvino_model
boxwright calibrate m.onnx --data DATA --split train --out m_int8.onnx
boxwright bench m.onnx m_openvino_model m_int8.onnx --data DATA --split val --out report
boxwright predict m.onnx photo.jpg --save out/
"""


def _write_page(out: Path, run: BenchRun, trained: TrainResult, pictures: list[Path], minutes: float) -> Path:
    from boxwright.bench.report_markdown import to_markdown
    from boxwright.core.files import write_text

    images = "\n".join(f"![{path.stem}]({path.relative_to(out)})" for path in pictures)
    training = f"{trained.epochs_done} epochs ({trained.seconds / 60:.1f} minutes)"
    accuracy = f"mAP {trained.best_map or 0:.3f}, mAP50 {trained.best_map50 or 0:.3f}"
    text = f"""# Boxwright quickstart

{MODEL} was trained on {NUM_TRAIN} generated images for {training} and reached {accuracy} on {NUM_VAL} held-out ones.
It was exported, quantized and measured on this machine; everything together took {minutes:.1f} minutes.

## The same with your own data

`DATA` is a folder in COCO or VOC layout, or a YOLO `data.yaml`.

```
{_own_data_commands()}```

## What is in this folder

| Path | What it is |
| --- | --- |
| `shapes/` | the generated data set, in COCO layout |
| `run/best.pt` | the trained checkpoint |
| `model.onnx` | exported, with decoding and NMS inside |
| `model_openvino_model/` | the same for OpenVINO |
| `model_int8.onnx` | quantized |
| `report/` | the table below, its numbers as JSON, the plot and a page to open in a browser |
| `pictures/` | what the detector finds |

{images}

{to_markdown(run.report, plot_file="report/pareto.png")}"""
    write_text(out / "README.md", text)
    return out / "README.md"


def _document(
    out: Path, run: BenchRun, trained: TrainResult, pictures: list[Path], minutes: float
) -> dict[str, object]:
    from boxwright.core.codec import to_jsonable

    return {
        "out": out,
        "minutes": minutes,
        "map": trained.best_map,
        "map50": trained.best_map50,
        "epochs_done": trained.epochs_done,
        "checkpoint": trained.best,
        "pictures": pictures,
        "report": to_jsonable(run.report),
    }


def _print(run: BenchRun, page: Path, out: Path, pictures: list[Path], trained: TrainResult, minutes: float) -> None:
    from boxwright.cli._bench_display import results_table

    console = stdout_console()
    console.print(results_table(run.report.results))
    for row in run.report.results:
        if row.status != "measured":
            console.print(f"{row.name}: {row.status}: {row.reason}", highlight=False, markup=False)
    accuracy = f"mAP50 {trained.best_map50 or 0:.3f} on held-out images after {trained.epochs_done} epochs"
    lines = [
        f"{accuracy}; {minutes:.1f} minutes in all",
        f"read this first  {page}",
        f"checkpoint       {trained.best}",
        f"models           {out / 'model.onnx'}, {out / 'model_openvino_model'}, {out / 'model_int8.onnx'}",
        f"table and plot   {out / 'report'}",
        f"pictures         {', '.join(str(path) for path in pictures)}",
        "",
        "The same with your own data:",
        _own_data_commands().rstrip(),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
