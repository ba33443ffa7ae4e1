"""Fine-tunes YOLOX-nano from its COCO weights on the blood cells of BCCD, and measures it on the test list.

    python benchmarks/train_bccd.py [--out runs/bccd] [--json]

Twelve epochs of the train list or fifteen minutes, whichever come first. The weights that are measured were chosen by
their mAP on the val list; the test list is looked at once, at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("BOXWRIGHT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
DATA = SHARED / "data" / "bccd"
WEIGHTS = SHARED / "weights" / "yolox_nano_coco.pth"
EPOCHS, MAX_MINUTES, BATCH = 12, 15.0, 8
WANTED_AP50 = 0.80
SCORE_THRESHOLD, IOU_THRESHOLD = 0.001, 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the run; a temporary one by default")
    parser.add_argument("--json", action="store_true", dest="as_json")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"{DATA} is absent; set BOXWRIGHT_SHARED to the folder of real data")
    with tempfile.TemporaryDirectory() as folder:
        report = run(arguments.out or Path(folder) / "run")
    if arguments.as_json:
        print(json.dumps(report, indent=2))
        return
    print(f"machine: {report['machine']}")
    print(f"trained {report['epochs']} epochs in {report['minutes']:.1f} minutes")
    print(f"val:  AP {report['val_map']:.4f}")
    print(f"test: AP {report['test_map']:.4f}, AP50 {report['test_map50']:.4f} (wanted: at least {WANTED_AP50})")
    for name, map50 in report["test_map50_by_class"].items():
        print(f"  {name}: AP50 {map50:.4f}")


def run(out: Path) -> dict[str, Any]:
    """Train and measure."""
    from boxwright.core.machine import describe_machine
    from boxwright.training import TrainConfig, train

    result = train(
        TrainConfig(
            data=DATA,
            model="yolox-nano",
            weights=WEIGHTS,
            preprocess="yolox-legacy",
            out=out,
            epochs=EPOCHS,
            max_minutes=MAX_MINUTES,
            batch=BATCH,
        )
    )
    machine = describe_machine()
    accuracy = measure(result.best)
    return {
        "machine": f"{machine.cpu_name}, {machine.num_cores} cores",
        "epochs": result.epochs_done,
        "minutes": result.seconds / 60,
        "val_map": result.best_map,
        "test_map": accuracy.map,
        "test_map50": accuracy.map50,
        "test_map50_by_class": {entry.name: entry.map50 for entry in accuracy.per_class},
    }


def measure(checkpoint: Path) -> Any:
    """Accuracy of a checkpoint on the test list."""
    from boxwright.bench.accuracy import evaluate
    from boxwright.data import load_dataset
    from boxwright.models import load_model
    from boxwright.runtimes.detector import Detector
    from boxwright.runtimes.torch import TorchBackend

    loaded = load_model(checkpoint)
    manifest = loaded.manifest()
    backend = TorchBackend.from_module(loaded.module, manifest)
    detector = Detector.from_backend(backend, manifest, conf=SCORE_THRESHOLD, iou=IOU_THRESHOLD)
    return evaluate(detector, load_dataset(DATA, "test", class_names=loaded.class_names))


if __name__ == "__main__":
    main()
