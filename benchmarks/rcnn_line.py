"""Times R-CNN, Fast R-CNN and Faster R-CNN stage by stage on the same photographs and prints the ratios of the papers.

    python benchmarks/rcnn_line.py [--images 8] [--size pico|r18] [--regions 300] [--json]

All three have random weights and inputs of 512x512, in PyTorch on the CPU. The first two take the same regions of
selective search, at most so many, which is run once for both. `r18` is a ResNet-18 in all of them; `pico` are the small
networks of the tests, R-CNN's crops of 64 pixels. R-CNN's features and both heads cost the same for each region, so the
papers' ratio, which is of 2000 regions, is also worked out for as many.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boxwright.core import kernels
from boxwright.core.images import read_image
from boxwright.models import build_model
from boxwright.models.common.crop_rcnn import CropRcnn
from boxwright.models.common.fast_rcnn import FastRcnn, SelectiveSearchSource, outside_proposals
from boxwright.models.common.proposals import Proposals, as_rois, canvas_size_hw
from boxwright.models.rcnn import FasterRcnn

SHARED = Path(os.environ.get("BOXWRIGHT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SIZE_HW = (512, 512)
NUM_CLASSES = 20
LINE = ("rcnn", "fastrcnn", "fasterrcnn")
STAGES = ("proposals", "features", "heads", "nms")
PAPER_REGIONS = 2000
# Seconds an image with VGG16 on a GPU. R-CNN and Fast R-CNN without proposals: Girshick, Fast R-CNN, 2015, table 4.
# With them Fast R-CNN, and Faster R-CNN: Ren et al., Faster R-CNN, 2015, table 5.
WITHOUT_PROPOSALS = "R-CNN / Fast R-CNN, without proposals"
PAPER = {WITHOUT_PROPOSALS: 47.0 / 0.32, "Fast R-CNN / Faster R-CNN": 1.83 / 0.198}

Seconds = dict[str, float]


class Stopwatch:
    """Seconds of one image, by stage."""

    def __init__(self) -> None:
        self.seconds: Seconds = {}

    def run(self, stage: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
        return result


class SearchedOnce:
    """Selective search whose regions, and whose time, are those of the first time for each image."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.known: dict[int, tuple[list[Tensor], float]] = {}

    def search(self, number: int, images: Tensor) -> tuple[list[Tensor], float]:
        """The regions of an image, and the seconds that they took."""
        if number not in self.known:
            start = time.perf_counter()
            boxes = [part[: self.most] for part in SelectiveSearchSource()(images)]
            self.known[number] = boxes, time.perf_counter() - start
        return self.known[number]


def detect(model: Any, images: Tensor, watch: Stopwatch, source: SearchedOnce, number: int) -> int:
    """Run a model stage by stage on an image of that number; returns the number of its proposals."""
    size_hw = canvas_size_hw(images, None)
    if isinstance(model, FasterRcnn):
        maps = watch.run("features", lambda: model.backbone(images))
        proposals = watch.run("proposals", lambda: model.rpn.propose(model.rpn(maps, SIZE_HW), size_hw))
        heads = watch.run("heads", lambda: model.detect_in(maps, proposals.boxes_xyxy, size_hw))
    else:
        boxes, watch.seconds["proposals"] = source.search(number, images)
        proposals = outside_proposals(lambda images: boxes, images, size_hw, model.variant)
        heads = _detect_given(model, images, proposals, size_hw, watch)
    arrays = {name: head.numpy() for name, head in heads.items()}
    watch.run(
        "nms",
        lambda: kernels.decode_nms(
            arrays["box_regression"],
            arrays["class_logits"],
            attributes=model.decode_spec(SIZE_HW).attributes(),
            score_threshold=0.05,
            iou_threshold=0.3,
            priors=arrays["priors"],
            image_size_hw=size_hw.numpy(),
        ),
    )
    return int(proposals.counts.sum())


def _detect_given(
    model: FastRcnn | CropRcnn, images: Tensor, proposals: Proposals, size_hw: Tensor, watch: Stopwatch
) -> dict[str, Tensor]:
    boxes = proposals.boxes_xyxy
    if isinstance(model, FastRcnn):
        maps = watch.run("features", lambda: model.backbone(images))
        return watch.run("heads", lambda: model.detect_in(maps, boxes, size_hw))
    features = watch.run("features", lambda: model.features(images, as_rois(boxes)))
    logits = watch.run("heads", lambda: model.svms(features)[None])
    deltas = watch.run("heads", lambda: model.box_regressors(features)[None])
    return {"box_regression": deltas, "class_logits": logits, "priors": boxes}


@torch.inference_mode()
def measure(num_images: int, size: str, num_regions: int) -> dict[str, Seconds]:
    """Median seconds an image of each variant, by stage, and the number of proposals."""
    paths = sorted((SHARED / "data" / "coco-tiny" / "val2017").glob("*.jpg"))[:num_images]
    results = {}
    source = SearchedOnce(num_regions)
    for variant in (f"{name}-{size}" for name in LINE):
        model = build_model(variant, num_classes=NUM_CLASSES).eval()
        preprocess = model.default_preprocess(SIZE_HW)
        rows = []
        warm = torch.zeros(1, 3, *SIZE_HW)
        model.backbone(warm if not isinstance(model, CropRcnn) else warm[:, :, :64, :64])
        for number, path in enumerate(paths):
            images = torch.from_numpy(preprocess.apply(read_image(path))[0])[None]
            watch = Stopwatch()
            count = detect(model, images, watch, source, number)
            rows.append({**watch.seconds, "total": sum(watch.seconds.values()), "regions": float(count)})
        results[variant] = {
            name: statistics.median(row[name] for row in rows) for name in (*STAGES, "total", "regions")
        }
    return results


def _without_proposals(row: Seconds, by_region: tuple[str, ...]) -> float:
    """Seconds for as many regions as the papers', where some stages cost the same for each."""
    factor = PAPER_REGIONS / row["regions"]
    return sum(row[stage] * (factor if stage in by_region else 1) for stage in ("features", "heads", "nms"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", choices=("pico", "r18"), default="pico")
    parser.add_argument("--regions", type=int, default=300, help="of selective search, at most")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = measure(arguments.images, arguments.size, arguments.regions)
    rcnn, fast, faster = results.values()
    ratios = {
        WITHOUT_PROPOSALS: (rcnn["total"] - rcnn["proposals"]) / (fast["total"] - fast["proposals"]),
        f"{WITHOUT_PROPOSALS}, {PAPER_REGIONS} regions": _without_proposals(rcnn, ("features", "heads"))
        / _without_proposals(fast, ("heads",)),
        "Fast R-CNN / Faster R-CNN": fast["total"] / faster["total"],
    }
    if arguments.json:
        print(json.dumps({"seconds": results, "ratios": ratios, "paper": PAPER}))
        return
    print("| model | regions | " + " | ".join(f"{stage} s" for stage in STAGES) + " | total s |")
    print("| --- " * (len(STAGES) + 3) + "|")
    for variant, row in results.items():
        cells = [f"{row[stage]:.3f}" for stage in (*STAGES, "total")]
        print(f"| {variant} | {row['regions']:.0f} | " + " | ".join(cells) + " |")
    for name, ratio in ratios.items():
        paper = PAPER.get(name, PAPER[WITHOUT_PROPOSALS])
        print(f"{name}: {ratio:.1f} (paper: {paper:.1f})")
    assert np.isfinite(list(ratios.values())).all()


if __name__ == "__main__":
    main()
