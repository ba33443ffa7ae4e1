"""What training for INT8 (`boxwright train --qat`) wins over training on alone, and over not training on at all.

    python benchmarks/int8_training.py CHECKPOINT [--epochs N] [--lr RATE] [--out DIR] [--json]

The checkpoint is YOLOX-nano fine-tuned on blood cells (`benchmarks/train_bccd.py --out DIR`). It is trained on for some
epochs without the rounding, and with that of each engine; each network is then exported, quantized with the defaults of
`boxwright calibrate` for the engine, and measured there on the test list, which nothing was trained or chosen with.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from int8_budget import DATA as ALL_DATA
from int8_budget import NUM_IMAGES, Case, measure

DATA = ALL_DATA / "bccd"
CASE = Case("yolox-nano bccd", (), DATA, "test")
ENGINES = ("openvino", "onnxruntime")
BATCH = 8
COLUMNS = ("network", "engine", "AP float", "AP INT8", "points lost", "minutes of training")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--out", type=Path, help="folder for runs and models; a temporary one by default")
    parser.add_argument("--json", action="store_true", dest="as_json")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"{DATA} is absent; set BOXWRIGHT_SHARED to the folder of real data")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows += measure_forms("as it is", arguments.checkpoint, folder / "as_it_is", ENGINES, minutes=0.0)
        for engine in (None, *ENGINES):
            run = folder / f"for_{engine or 'none'}"
            checkpoint, minutes = train_on(arguments.checkpoint, run, arguments.epochs, arguments.lr, engine=engine)
            name = "trained on" if engine is None else f"trained on, --qat --qat-engine {engine}"
            rows += measure_forms(name, checkpoint, run, ENGINES if engine is None else (engine,), minutes=minutes)
    if arguments.as_json:
        print(json.dumps(rows, indent=2))
        return
    print(f"| {' | '.join(COLUMNS)} |")
    print("| --- " * len(COLUMNS) + "|")
    for row in rows:
        print("| " + " | ".join(str(row[column]) for column in COLUMNS) + " |")


def train_on(
    checkpoint: Path, out: Path, epochs: int, learning_rate: float, *, engine: str | None
) -> tuple[Path, float]:
    """Train some epochs more; the last weights, so that the val list chooses for no run, and the minutes."""
    from boxwright.training import TrainConfig, train

    result = train(
        TrainConfig(
            data=DATA,
            model="yolox-nano",
            weights=checkpoint,
            out=out,
            epochs=epochs,
            learning_rate=learning_rate,
            batch=BATCH,
            qat=engine is not None,
            qat_engine=engine or "openvino",
            val_every=0,
        )
    )
    return result.best, result.seconds / 60


def measure_forms(
    name: str, checkpoint: Path, folder: Path, engines: tuple[str, ...], *, minutes: float
) -> list[dict[str, Any]]:
    """Export, quantize for each engine, and measure before and after on it."""
    from boxwright.calibration import calibrate
    from boxwright.export import export

    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "m.onnx"
    export(checkpoint, model)
    rows = []
    for engine in engines:
        quantized = folder / f"m_{engine}.onnx"
        calibrate(model, DATA, quantized, num_images=NUM_IMAGES, engine=engine, measure=False)
        before, after = (measure(form, engine, "fp32", CASE) for form in (model, quantized))
        values = (f"{before:.4f}", f"{after:.4f}", f"{100 * (before - after):.2f}", f"{minutes:.1f}")
        rows.append(dict(zip(COLUMNS, (name, engine, *values), strict=True)))
        print(rows[-1], file=sys.stderr)
    return rows


if __name__ == "__main__":
    main()
