"""The images on which candidates of a benchmark disagree most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import cv2
import numpy as np

from boxwright.bench.accuracy import Predictions, shown_path
from boxwright.core.boxes import pairwise_overlaps
from boxwright.core.detections import Detections
from boxwright.core.errors import ImageError
from boxwright.core.images import Image, read_image
from boxwright.data.dataset import Dataset, Sample

_IOU_THRESHOLD = 0.5
_LONGEST_SIDE = 480
_JPEG_QUALITY = 80


class Disagreement(NamedTuple):
    """An image on which candidates differ.

    Attributes:
        sample: the image with its annotations.
        share: of the boxes of the two that differ most, how many have no partner.
        detections: of each candidate, those with a score above the threshold.
    """

    sample: Sample
    share: float
    detections: dict[str, Detections]


def find_disagreements(
    predictions: Mapping[str, Predictions], *, count: int = 8, score_threshold: float = 0.25
) -> list[Disagreement]:
    """The images on which two candidates differ most, the worst first; those on which all agree are left out.

    Args:
        predictions: of each candidate, on the same data set.
        count: at most so many.
        score_threshold: detections with a score above it take part.
    """
    if len(predictions) < 2:
        return []
    found: dict[int, dict[str, Detections]] = {}
    samples: dict[int, Sample] = {}
    for name, entry in predictions.items():
        for sample, detections in zip(entry.samples, entry.detections, strict=True):
            samples[sample.image_id] = sample
            found.setdefault(sample.image_id, {})[name] = detections.above(score_threshold)
    rows = [
        Disagreement(samples[image_id], _largest_share(list(by_name.values())), by_name)
        for image_id, by_name in found.items()
    ]
    rows = [row for row in rows if row.share > 0]
    # Of equal shares the image with more boxes shows more.
    rows.sort(key=lambda row: (-row.share, -sum(len(entry) for entry in row.detections.values())))
    return rows[:count]


def _largest_share(detections: Sequence[Detections]) -> float:
    return max((share_without_partner(one, other) for one, other in combinations(detections, 2)), default=0.0)


def share_without_partner(one: Detections, other: Detections) -> float:
    """Of the boxes of both, how many have none of their class on the other side at IoU 0.5 or more, 0 to 1."""
    total = len(one) + len(other)
    if total == 0:
        return 0.0
    overlaps = pairwise_overlaps(one.boxes_xyxy, other.boxes_xyxy)  # (A, B)
    is_close = (overlaps >= _IOU_THRESHOLD) & (one.class_ids[:, None] == other.class_ids[None, :])
    pairs = 0
    free = np.ones(len(other), dtype=bool)
    for row in range(len(one)):  # best first, each with the best partner that is left
        partners = np.where(is_close[row] & free, overlaps[row], 0)
        if partners.size and partners.max() > 0:
            free[partners.argmax()] = False
            pairs += 1
    return 1 - 2 * pairs / total


def picture_of(row: Disagreement, dataset: Dataset) -> dict[str, Any] | None:
    """What the page shows of it: the image as a small JPEG, and boxes in its pixels; None where it cannot be read."""
    try:
        image = read_image(row.sample.image_path)
    except ImageError:  # it was there a moment ago
        return None
    scale = min(1.0, _LONGEST_SIDE / max(image.shape[:2]))
    names = dataset.class_names
    return {
        "file": shown_path(row.sample, dataset),
        "width": round(image.shape[1] * scale),
        "height": round(image.shape[0] * scale),
        "image": "data:image/jpeg;base64," + _small_jpeg(image, scale),
        "share": round(row.share, 4),
        "truth": [
            [*_scaled(box, scale), names[class_id], None]
            for box, class_id in zip(row.sample.boxes_xyxy, row.sample.class_ids.tolist(), strict=True)
        ],
        "boxes": {
            name: [
                [*_scaled(box, scale), names[class_id], round(float(score), 3)]
                for box, score, class_id in zip(found.boxes_xyxy, found.scores, found.class_ids.tolist(), strict=True)
            ]
            for name, found in row.detections.items()
        },
    }


def _scaled(box: np.ndarray[Any, np.dtype[np.float32]], scale: float) -> list[float]:
    return [round(float(number) * scale, 1) for number in box]


def _small_jpeg(image: Image, scale: float) -> str:
    import base64

    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    small = image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    encoded, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert encoded
    return base64.b64encode(data.tobytes()).decode()
