"""Average precision and recall as COCO defines them, computed by faster-coco-eval."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import xyxy_to_xywh
from boxwright.core.detections import Detections
from boxwright.core.errors import MissingDependencyError
from boxwright.data.dataset import Sample

DoubleArray = NDArray[np.float64]
# COCO's areas, in the order of the evaluator's axis: all, small (< 32^2), medium, large (> 96^2).
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
_IOU_50, _IOU_75 = 0, 5  # of the thresholds 0.50, 0.55 ... 0.95
_UNDEFINED = -1.0  # the evaluator's mark where a class or size has no box


@dataclass(frozen=True, kw_only=True)
class CocoMetrics:
    """COCO's twelve numbers, 0 to 1, None where there is no box to measure on; and what they are made of.

    Attributes:
        map: mean of AP at IoU 0.50 to 0.95, 100 detections a class and image.
        map50: at IoU 0.50.
        map75: at IoU 0.75.
        map_small: of boxes of less than 32^2 square pixels.
        map_medium: of boxes between.
        map_large: of boxes of more than 96^2 square pixels.
        ar_1: mean recall at IoU 0.50 to 0.95 with one detection a class and image.
        ar_10: with ten.
        ar_100: with a hundred.
        ar_small: as ar_100, of small boxes.
        ar_medium: of medium boxes.
        ar_large: of large boxes.
        class_map: AP of each class, NaN where it has no box.
        class_map50: at IoU 0.50, likewise.
        class_precisions: (C, 101) precision at IoU 0.50 at recall 0, 0.01 ... 1; NaN likewise.
    """

    map: float | None
    map50: float | None
    map75: float | None
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    ar_1: float | None
    ar_10: float | None
    ar_100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    class_map: DoubleArray
    class_map50: DoubleArray
    class_precisions: DoubleArray


def compute_coco_metrics(
    samples: Sequence[Sample], detections: Sequence[Detections], *, num_classes: int
) -> CocoMetrics:
    """Compare detections with annotations.

    Crowds count neither for nor against, and take any number of detections that lie in them.

    Args:
        samples: the images with their annotated boxes.
        detections: of each of those images; class ids below `num_classes`.
        num_classes: of the data set.

    Raises:
        MissingDependencyError: where the extra `bench` is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise MissingDependencyError("faster-coco-eval", extra="bench", needed_for="measuring mAP") from error
    with _garbage_collection_paused():
        header = {
            "images": [{"id": index} for index in range(len(samples))],
            "categories": [{"id": index, "name": str(index)} for index in range(num_classes)],
        }
        evaluator = COCOeval_faster(
            _index(COCO(), {**header, "annotations": _annotation_rows(samples)}),
            _index(COCO(), {**header, "annotations": _detection_rows(detections)}),
            iouType="bbox",
        )
        evaluator.evaluate()
        evaluator.accumulate()
    # Precisions (T IoUs, R recalls, K classes, A areas, M maximums) and recalls (T, K, A, M).
    return _summarise(np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"]))


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Millions of small rows are made and none is garbage; the collector would walk over them again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _index(coco: Any, document: dict[str, Any]) -> Any:
    coco.dataset = document
    coco.createIndex()
    return coco


def _annotation_rows(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    # The evaluator takes id 0 for "unmatched", so ids begin at 1.
    rows: list[dict[str, Any]] = []
    for image_id, sample in enumerate(samples):
        boxes = xyxy_to_xywh(sample.boxes_xyxy).astype(np.float64).tolist()
        columns = (boxes, sample.class_ids.tolist(), sample.is_crowd.tolist(), sample.areas.tolist())
        for box, class_id, is_crowd, area in zip(*columns, strict=True):
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": image_id,
                    "category_id": class_id,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(is_crowd),
                }
            )
    return rows


def _detection_rows(detections: Sequence[Detections]) -> list[dict[str, Any]]:
    if not detections:
        return []
    counts = [len(found) for found in detections]
    boxes = xyxy_to_xywh(np.concatenate([found.boxes_xyxy for found in detections])).astype(np.float64)
    columns = (
        range(1, len(boxes) + 1),
        np.repeat(np.arange(len(detections)), counts).tolist(),
        np.concatenate([found.class_ids for found in detections]).tolist(),
        np.concatenate([found.scores for found in detections]).astype(np.float64).tolist(),
        (boxes[:, 2] * boxes[:, 3]).tolist(),
        boxes.tolist(),
    )
    return [
        {
            "id": row_id,
            "image_id": image_id,
            "category_id": class_id,
            "score": score,
            "area": area,
            "bbox": box,
            "iscrowd": 0,
        }
        for row_id, image_id, class_id, score, area, box in zip(*columns, strict=True)
    ]


def _summarise(precision: DoubleArray, recall: DoubleArray) -> CocoMetrics:
    best = precision[..., -1]  # (T, R, K, A) with 100 detections
    return CocoMetrics(
        map=_mean(best[:, :, :, _ALL]),
        map50=_mean(best[_IOU_50, :, :, _ALL]),
        map75=_mean(best[_IOU_75, :, :, _ALL]),
        map_small=_mean(best[:, :, :, _SMALL]),
        map_medium=_mean(best[:, :, :, _MEDIUM]),
        map_large=_mean(best[:, :, :, _LARGE]),
        ar_1=_mean(recall[:, :, _ALL, 0]),
        ar_10=_mean(recall[:, :, _ALL, 1]),
        ar_100=_mean(recall[:, :, _ALL, 2]),
        ar_small=_mean(recall[:, :, _SMALL, 2]),
        ar_medium=_mean(recall[:, :, _MEDIUM, 2]),
        ar_large=_mean(recall[:, :, _LARGE, 2]),
        class_map=_class_means(best[:, :, :, _ALL]),
        class_map50=_class_means(best[_IOU_50 : _IOU_50 + 1, :, :, _ALL]),
        class_precisions=np.where(best[_IOU_50, :, :, _ALL] > _UNDEFINED, best[_IOU_50, :, :, _ALL], np.nan).T,
    )


def _mean(values: DoubleArray) -> float | None:
    defined = values[values > _UNDEFINED]
    return float(defined.mean()) if defined.size else None


def _class_means(precision: DoubleArray) -> DoubleArray:
    """Means over IoU and recall of precisions (T, R, K), NaN for classes without a box, (K,)."""
    means: DoubleArray = precision.mean(axis=(0, 1))
    return np.where(precision.min(axis=(0, 1)) > _UNDEFINED, means, np.nan)
