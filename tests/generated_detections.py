"""Annotations and detections made up for tests of the evaluators: no image, no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from boxwright.core.boxes import box_areas, clip_boxes
from boxwright.core.detections import Detections
from boxwright.data.dataset import Dataset, Sample

SIZE_HW = (375, 500)  # odd and not square


def sample_of(
    boxes_xyxy: Sequence[Sequence[float]],
    class_ids: Sequence[int],
    *,
    is_crowd: Sequence[bool] | None = None,
    image_id: int = 1,
    image_path: Path = Path("image.jpg"),
) -> Sample:
    boxes = np.array(boxes_xyxy, dtype=np.float32).reshape(-1, 4)
    return Sample(
        image_path=image_path,
        image_id=image_id,
        size_hw=SIZE_HW,
        boxes_xyxy=boxes,
        class_ids=np.array(class_ids, dtype=np.int64),
        is_crowd=np.zeros(len(boxes), dtype=bool) if is_crowd is None else np.array(is_crowd, dtype=bool),
        areas=box_areas(boxes),
    )


def detections_of(
    boxes_xyxy: Sequence[Sequence[float]], scores: Sequence[float], class_ids: Sequence[int]
) -> Detections:
    return Detections.sorted(
        np.array(boxes_xyxy, dtype=np.float32).reshape(-1, 4),
        np.array(scores, dtype=np.float32),
        np.array(class_ids, dtype=np.int32),
    )


def dataset_of(samples: Sequence[Sample], class_names: Sequence[str], root: Path = Path("made_up")) -> Dataset:
    return Dataset(
        name=root.name,
        root=root,
        split="val",
        layout="coco",
        class_names=tuple(class_names),
        category_ids=tuple(range(1, len(class_names) + 1)),
        samples=tuple(samples),
    )


def generate(
    *, num_images: int, num_classes: int, detections_per_image: int, seed: int = 0, crowd_fraction: float = 0.1
) -> tuple[list[Sample], list[Detections]]:
    """Images with boxes of all sizes and detections about them: jittered, doubled, of wrong classes, and of nothing.

    Some images have no box, some no detection, and scores tie.
    """
    rng = np.random.default_rng(seed)
    samples, detections = [], []
    for image_id in range(1, num_images + 1):
        count = int(rng.poisson(7)) if image_id % 11 else 0
        boxes = _random_boxes(rng, count)
        class_ids = rng.integers(0, num_classes, count)
        samples.append(
            sample_of(boxes.tolist(), class_ids.tolist(), is_crowd=(rng.random(count) < crowd_fraction).tolist(),
                      image_id=image_id)
        )  # fmt: skip
        detections.append(_generate_detections(rng, boxes, class_ids, num_classes, detections_per_image))
        if image_id % 7 == 0:
            detections[-1] = Detections.empty()
    return samples, detections


def _random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    sizes = np.exp(rng.normal(4.0, 1.0, (count, 2))).clip(2, 300)
    corners = rng.uniform(0, 1, (count, 2)) * (np.array(SIZE_HW[::-1]) - sizes)
    return clip_boxes(np.concatenate([corners, corners + sizes], axis=1).astype(np.float32), SIZE_HW)


def _generate_detections(
    rng: np.random.Generator, boxes: np.ndarray, class_ids: np.ndarray, num_classes: int, count: int
) -> Detections:
    copies = rng.integers(0, len(boxes), min(count // 2, 3 * len(boxes))) if len(boxes) else np.zeros(0, np.int64)
    sizes = np.tile(boxes[copies, 2:] - boxes[copies, :2], (1, 2))
    near = boxes[copies] + rng.normal(0, 0.08, sizes.shape) * sizes
    near_classes = np.where(rng.random(len(copies)) < 0.8, class_ids[copies], rng.integers(0, num_classes, len(copies)))
    far = _random_boxes(rng, count - len(copies))
    all_boxes = clip_boxes(np.concatenate([near, far]).astype(np.float32), SIZE_HW)
    scores = np.round(rng.random(count) ** 2, 2) + 0.001  # rounded, so that scores tie
    all_classes = np.concatenate([near_classes, rng.integers(0, num_classes, len(far))])
    return detections_of(all_boxes.tolist(), scores.tolist(), all_classes.tolist())
