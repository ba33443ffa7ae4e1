"""Boxwright beside LibreYOLO and Ultralytics: the same weights on the same engine with as many threads, in one run.

    python benchmarks/peers.py [--num-threads 1] [--launches 5] [--yolov8n yolov8n.pt] [--out build/peers/report]

Each peer is installed by pip into an environment of its own below build/peers, without the dependencies that this
environment has too: it sees these behind its own, so that all run the very same ONNX Runtime, NumPy, OpenCV
and PyTorch. What is timed is their own prediction, from a decoded image to boxes, called as their documentation says.

- YOLOX-nano: the shared weights, the normalisation of their release folded into the first convolution, since LibreYOLO
  feeds raw pixels. LibreYOLO exports them to ONNX and runs that; Boxwright exports the same weights.
- YOLOv8n: Ultralytics' own model, exported by itself; Boxwright adopts that very file (`--head yolov8`). Without
  --yolov8n its weights are random: time means something then (few boxes pass the threshold), and AP does not.

All score thresholds are those of `boxwright bench`: 0.25 for the time, 0.001 for AP; IoU 0.65.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

from boxwright.bench.candidate import Candidate
from boxwright.bench.report import write_report
from boxwright.bench.report_markdown import to_markdown
from boxwright.bench.results import Settings
from boxwright.bench.run import run_benchmark
from boxwright.cli._bench_artifacts import ArtifactCache, SourceOptions
from boxwright.core.labels import load_labels
from boxwright.data import load_dataset

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("BOXWRIGHT_SHARED", ROOT.parent / "shared"))
WORK = ROOT / "build" / "peers"
# Each peer, with what it needs and this environment lacks.
PEERS = {
    "libreyolo": ("libreyolo==1.6.0", "mss"),
    "ultralytics": (
        "ultralytics==8.4.190",
        *("ultralytics-thop", "ultralytics-platform", "polars", "polars-runtime-32", "nvidia-ml-py"),
    ),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEM = "backbone.backbone.stem.conv"


def make_environment(peer: str) -> str:
    """The interpreter of a peer's environment, installed once."""
    python = WORK / peer / "bin" / "python"
    marker = WORK / peer / "installed"
    if not marker.exists():
        print(f"installing {PEERS[peer][0]} into {WORK / peer}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--clear", str(WORK / peer)], check=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = WORK / peer / "lib" / version / "site-packages"
        (packages / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, *PEERS[peer], "onnxslim"], check=True)
        marker.touch()
    return str(python)


def fold_normalisation(source: Path, target: Path) -> None:
    """Write YOLOX weights that take raw BGR pixels in the place of normalised RGB.

    (x / 255 - mean) / std, then a convolution, is a convolution of x: weights over 255 std, and a bias less
    the sum of weights times mean / std. The channels of the stem are four pixels of three colours each.
    """
    state = torch.load(source, weights_only=True)["model"]
    weight = state[f"{STEM}.conv.weight"].clone()  # (16, 12, 3, 3)
    std = torch.tensor(STD * 4).view(1, 12, 1, 1)
    mean = torch.tensor(MEAN * 4).view(1, 12, 1, 1)
    scale = state[f"{STEM}.bn.weight"] / torch.sqrt(state[f"{STEM}.bn.running_var"] + 1e-3)
    state[f"{STEM}.bn.bias"] = state[f"{STEM}.bn.bias"] - scale * (weight * mean / std).sum(dim=(1, 2, 3))
    to_bgr = [3 * pixel + colour for pixel in range(4) for colour in (2, 1, 0)]
    state[f"{STEM}.conv.weight"] = (weight / (255 * std))[:, to_bgr]
    torch.save({"model": state}, target)


def run_peer(python: str, script: str, *arguments: object) -> None:
    """Run a script in the peers' environment."""
    command = [python, "-c", script, *map(str, arguments)]
    # Ultralytics keeps its settings where this says, and not in the user's home.
    environment = {**os.environ, "YOLO_CONFIG_DIR": str(WORK), "YOLO_AUTOINSTALL": "false"}
    subprocess.run(command, check=True, cwd=WORK, stdout=sys.stderr, env=environment)


EXPORT_LIBREYOLO = """
import sys
from libreyolo import LibreYOLOX
model = LibreYOLOX(sys.argv[1], size="n", device="cpu")
model.export(format="onnx", imgsz=416, output_path=sys.argv[2], opset=17, simplify=True)
"""
EXPORT_ULTRALYTICS = """
import pathlib, shutil, sys, torch
from ultralytics import YOLO
torch.manual_seed(0)
model = YOLO(sys.argv[1])
if sys.argv[1].endswith(".yaml"):  # untrained models call their classes 0, 1, 2 ...
    model.model.names = dict(enumerate(sys.argv[3].split(",")))
exported = model.export(format="onnx", imgsz=640, opset=17, simplify=True)
shutil.move(exported, sys.argv[2])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--launches", type=int, default=5)
    parser.add_argument("--yolov8n", default="yolov8n.yaml", help="weights of Ultralytics; random ones if not given")
    parser.add_argument("--out", type=Path, help="folder for the report")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    candidates = prepare(options.num_threads, options.yolov8n)
    folder = str(Path(__file__).resolve().parent)  # where the candidates' processes find the openers
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
    os.environ["YOLO_CONFIG_DIR"] = str(WORK)
    settings = Settings(
        num_threads=options.num_threads,
        min_launches=options.launches,
        max_launches=options.launches,
        iou=0.65,
        with_throughput=False,
    )
    command = shlex.join(["python", "benchmarks/peers.py", *sys.argv[1:]])
    dataset = load_dataset(SHARED / "data" / "coco-tiny", "val")
    run = run_benchmark(candidates, dataset, settings=settings, command=command)
    if options.out is not None:
        write_report(run, options.out)
    print(to_markdown(run.report))


def prepare(num_threads: int, yolov8n: str) -> list[Candidate]:
    """Export all that is to be measured."""
    libreyolo, ultralytics = make_environment("libreyolo"), make_environment("ultralytics")
    cache = ArtifactCache(
        WORK / "artifacts", SHARED / "data" / "coco-tiny", on_note=lambda text: print(text, file=sys.stderr)
    )
    folded, libre_onnx, ultra_onnx = (
        WORK / "yolox_nano.pth",
        WORK / "yolox_nano_libreyolo.onnx",
        WORK / f"{Path(yolov8n).name}.onnx",
    )
    fold_normalisation(SHARED / "weights" / "yolox_nano_coco.pth", folded)
    if not libre_onnx.exists():
        run_peer(libreyolo, EXPORT_LIBREYOLO, folded, libre_onnx)
    if not ultra_onnx.exists():
        run_peer(ultralytics, EXPORT_ULTRALYTICS, yolov8n, ultra_onnx, ",".join(load_labels("coco")))
    of_yolox = SourceOptions(variant="yolox-nano", labels="coco", preprocess="yolox")
    ours_yolox = cache.onnx(folded, of_yolox, (416, 416))
    ours_yolov8 = cache.ultralytics(ultra_onnx)

    def ours(name: str, model: Path) -> Candidate:
        return Candidate(model=str(model), name=f"{name} Boxwright", backend="onnxruntime", num_threads=num_threads)

    def theirs(name: str, model: Path, opener: str, python: str) -> Candidate:
        return Candidate(
            model=str(model), name=name, num_threads=num_threads, opener=f"peers_openers:{opener}", python=python
        )

    return [
        ours("YOLOX-nano", ours_yolox),
        theirs("YOLOX-nano LibreYOLO", libre_onnx, "open_libreyolo", libreyolo),
        ours("YOLOv8n", ours_yolov8),
        theirs("YOLOv8n Ultralytics", ultra_onnx, "open_ultralytics", ultralytics),
    ]


if __name__ == "__main__":
    main()
