"""How long mAP takes: Boxwright's evaluator against pycocotools on the same generated detections.

    python benchmarks/map_speed.py --num-images 5000 --detections 100

Boxwright is timed from `Detections` to all of its numbers (COCO's twelve, VOC's two, each class); pycocotools from its
result rows, which are made before, to COCO's twelve. Both run on one core; CPU time is compared, so that other
programs on the machine do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from boxwright.bench.accuracy import Predictions, score
from boxwright.core.boxes import xyxy_to_xywh
from boxwright.core.detections import Detections
from boxwright.core.machine import describe_machine
from boxwright.data.dataset import Sample
from generated_detections import dataset_of, generate

NUM_CLASSES = 80


def time_pycocotools(samples: list[Sample], detections: list[Detections]) -> tuple[float, Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations: list[dict[str, Any]] = []
    for image_id, sample in enumerate(samples):
        for index, box in enumerate(xyxy_to_xywh(sample.boxes_xyxy)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(sample.class_ids[index]) + 1,
                    "bbox": box.tolist(),
                    "area": float(sample.areas[index]),
                    "iscrowd": int(sample.is_crowd[index]),
                }
            )
    category_ids = tuple(range(1, NUM_CLASSES + 1))
    rows = [row for image_id, found in enumerate(detections) for row in found.to_coco(image_id, category_ids)]
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": index} for index in range(len(samples))],
        "categories": [{"id": index} for index in category_ids],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        started = time.process_time()
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return time.process_time() - started, evaluator.stats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="of each image")
    options = parser.parse_args()
    samples, detections = generate(
        num_images=options.num_images, num_classes=NUM_CLASSES, detections_per_image=options.detections
    )
    dataset = dataset_of(samples, tuple(f"class {index}" for index in range(NUM_CLASSES)))
    predictions = Predictions(samples=tuple(samples), detections=tuple(detections))
    started = time.process_time()
    result = score(predictions, dataset)
    ours_s = time.process_time() - started
    theirs_s, stats = time_pycocotools(samples, detections)
    machine = describe_machine()
    print(f"{machine.cpu_name}, {machine.num_cores} cores")
    print(
        f"{len(samples)} images, {dataset.num_boxes} boxes, {result.num_detections} detections, {NUM_CLASSES} classes"
    )
    print(f"CPU time: boxwright {ours_s:.2f} s, pycocotools {theirs_s:.2f} s: {theirs_s / ours_s:.1f} times as fast")
    assert result.map is not None
    print(f"AP {result.map:.9f} and {stats[0]:.9f}; they differ by {abs(result.map - float(np.asarray(stats)[0])):.2g}")


if __name__ == "__main__":
    main()
