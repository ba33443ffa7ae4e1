"""Times the DecodeNMS kernel against the usual PyTorch postprocessing, one thread each, and prints the ratios.

    python benchmarks/decode_nms.py [--json]

The heads are those of YOLOX-nano at 640x640 on images of coco-tiny (where the shared data is at hand) and random ones
with thousands of candidates; both sides get the same raw logits and return at most 300 boxes. The PyTorch side is
sigmoid, threshold, box decoding of the survivors, `torchvision.ops.batched_nms` and a cut at 300.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray

from boxwright.core import kernels
from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.core.decode_spec import GridLevel
from boxwright.core.images import read_image

SIZE = 640
NUM_CLASSES = 80
NUM_IMAGES = 16
REPETITIONS = 4
MAX_DETECTIONS = 300
SHARED = Path(os.environ.get("BOXWRIGHT_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@dataclasses.dataclass(frozen=True)
class Heads:
    """Raw heads of one image; `objectness` is None where the scores are those of the classes alone."""

    box_regression: NDArray[np.float32]  # (1, N, 4)
    class_logits: NDArray[np.float32]  # (1, N, C)
    objectness: NDArray[np.float32] | None  # (1, N)
    priors: NDArray[np.float32]  # (N, 4)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One line of the result."""

    name: str
    score_threshold: float
    iou_threshold: float
    multi_label: bool
    wanted_ratio: float
    heads: list[Heads]


def yolox_priors() -> NDArray[np.float32]:
    levels = [GridLevel(grid_hw=(SIZE // stride, SIZE // stride), stride=stride) for stride in (8, 16, 32)]
    return np.concatenate([level.priors() for level in levels])


def trained_heads() -> list[Heads]:
    from boxwright.models import load_model

    loaded = load_model(
        SHARED / "weights" / "yolox_nano_coco.pth",
        model="yolox-nano",
        class_names="coco",
        preprocess="yolox-legacy",
        size_hw=(SIZE, SIZE),
    )
    heads = []
    for path in sorted((SHARED / "data" / "coco-tiny" / "val2017").glob("*.jpg"))[:NUM_IMAGES]:
        pixels, _ = loaded.preprocess.apply(read_image(path))
        with torch.inference_mode():
            raw = {name: tensor.numpy() for name, tensor in loaded.module(torch.from_numpy(pixels[None])).items()}
        heads.append(Heads(raw["box_regression"], raw["class_logits"], raw["objectness"], yolox_priors()))
    return heads


def random_heads(mean: float, spread: float) -> list[Heads]:
    random = np.random.default_rng(7)
    priors = yolox_priors()
    num_anchors = len(priors)
    return [
        Heads(
            random.normal(0, 0.7, (1, num_anchors, 4)).astype(np.float32),
            random.normal(mean, spread, (1, num_anchors, NUM_CLASSES)).astype(np.float32),
            None,
            priors,
        )
        for _ in range(4)
    ]


def kernel_of(setting: Setting, instruction_set: str | None = None) -> Callable[[Heads], Any]:
    attributes = DecodeNmsAttributes(
        box_coding="yolox",
        score_combination="none" if setting.heads[0].objectness is None else "multiply",
        multi_label=setting.multi_label,
        max_detections=MAX_DETECTIONS,
    )

    def run(heads: Heads) -> Any:
        return kernels.decode_nms(
            heads.box_regression,
            heads.class_logits,
            attributes=attributes,
            score_threshold=setting.score_threshold,
            iou_threshold=setting.iou_threshold,
            objectness=heads.objectness,
            priors=heads.priors,
            instruction_set=instruction_set,
        )

    return run


def pytorch_of(setting: Setting) -> Callable[[Heads], Any]:
    def run(heads: Heads) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scores = torch.from_numpy(heads.class_logits[0]).sigmoid()
        if heads.objectness is not None:
            scores = scores * torch.from_numpy(heads.objectness[0]).sigmoid()[:, None]
        if setting.multi_label:
            anchors, class_ids = (scores > setting.score_threshold).nonzero(as_tuple=True)
            scores = scores[anchors, class_ids]
        else:
            best, class_ids = scores.max(dim=1)
            (anchors,) = (best > setting.score_threshold).nonzero(as_tuple=True)
            scores, class_ids = best[anchors], class_ids[anchors]
        raw, priors = torch.from_numpy(heads.box_regression[0])[anchors], torch.from_numpy(heads.priors)[anchors]
        centres, half_sizes = priors[:, :2] + raw[:, :2] * priors[:, 2:], raw[:, 2:].exp() * priors[:, 2:] / 2
        boxes = torch.cat([centres - half_sizes, centres + half_sizes], dim=1)
        kept = torchvision.ops.batched_nms(boxes, scores, class_ids, setting.iou_threshold)[:MAX_DETECTIONS]
        return boxes[kept], scores[kept], class_ids[kept]

    return run


def num_candidates(setting: Setting) -> float:
    counts = []
    for heads in setting.heads:
        scores = 1 / (1 + np.exp(-heads.class_logits[0]))
        if heads.objectness is not None:
            scores = scores / (1 + np.exp(-heads.objectness[0]))[:, None]
        counts.append(
            np.count_nonzero((scores if setting.multi_label else scores.max(axis=1)) > setting.score_threshold)
        )
    return statistics.mean(counts)


def time_all(run: Callable[[Heads], Any], heads: list[Heads]) -> float:
    """Milliseconds an image. Each is decoded a few times running: heads that an engine has just written are near."""
    start = time.perf_counter()
    for one in heads:
        for _ in range(REPETITIONS):
            run(one)
    return (time.perf_counter() - start) * 1e3 / len(heads) / REPETITIONS


def measure(setting: Setting, rounds: int, instruction_set: str | None) -> dict[str, Any]:
    """Both sides in turn, so that a busy machine slows both; the medians."""
    kernel, pytorch = kernel_of(setting, instruction_set), pytorch_of(setting)
    for heads in setting.heads:
        ours, (_, scores, _) = kernel(heads), pytorch(heads)
        count = int(ours.num_detections[0, 0])
        if count != len(scores) or not np.allclose(np.sort(ours.scores[0, :count]), np.sort(scores.numpy()), atol=1e-5):
            sys.exit(f"{setting.name}: the two sides found {count} and {len(scores)} boxes, or other scores")
    kernel_ms, pytorch_ms = [], []
    for _ in range(rounds):
        kernel_ms.append(time_all(kernel, setting.heads))
        pytorch_ms.append(time_all(pytorch, setting.heads))
    kernel_median, pytorch_median = statistics.median(kernel_ms), statistics.median(pytorch_ms)
    return {
        "setting": setting.name,
        "score_threshold": setting.score_threshold,
        "candidates": round(num_candidates(setting)),
        "kernel_ms": round(kernel_median, 4),
        "pytorch_ms": round(pytorch_median, 4),
        "ratio": round(pytorch_median / kernel_median, 1),
        "wanted_ratio": setting.wanted_ratio,
    }


def settings() -> list[Setting]:
    result = []
    if (SHARED / "weights" / "yolox_nano_coco.pth").is_file():
        heads = trained_heads()
        # A row for each class, as PyTorch's convolutions leave them, and one for each anchor, as exported graphs do.
        by_anchor = [dataclasses.replace(one, class_logits=np.ascontiguousarray(one.class_logits)) for one in heads]
        for layout, laid_out in (("by class", heads), ("by anchor", by_anchor)):
            result.append(Setting(f"YOLOX-nano {layout}, one label", 0.25, 0.65, False, 6, laid_out))
            result.append(Setting(f"YOLOX-nano {layout}, many labels", 0.001, 0.65, True, 10, laid_out))
    else:
        print(f"no trained weights in {SHARED}: random heads alone", file=sys.stderr)
    result.append(Setting("dense random, one label", 0.25, 0.65, False, 10, random_heads(-4.0, 1.3)))
    result.append(Setting("dense random, many labels", 0.001, 0.65, True, 15, random_heads(-12.0, 2.0)))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--rounds", type=int, default=15, help="times that each side goes over the heads")
    parser.add_argument("--instruction-set", help="of the kernel; the best of this processor unless given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not kernels.instruction_sets():
        sys.exit("the compiled kernels are not built: pip install . with a C++ compiler at hand")
    instruction_set = arguments.instruction_set or kernels.instruction_sets()[0]
    results = [measure(setting, arguments.rounds, instruction_set) for setting in settings()]
    if arguments.json:
        print(json.dumps({"instruction_set": instruction_set, "results": results}, indent=2))
        return
    print(f"instruction set: {instruction_set}; one thread each; medians of {arguments.rounds} rounds")
    for row in results:
        print(
            f"{row['setting']:34} conf {row['score_threshold']:<6} {row['candidates']:6} candidates  "
            f"kernel {row['kernel_ms']:.3f} ms  PyTorch {row['pytorch_ms']:.3f} ms  "
            f"{row['ratio']:.1f} times as fast (wanted {row['wanted_ratio']})"
        )


if __name__ == "__main__":
    main()
