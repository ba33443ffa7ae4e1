"""The result of a detector on one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import FloatArray, xyxy_to_xywh
from boxwright.core.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """Boxes found in an image, best first.

    Attributes:
        boxes_xyxy: (N, 4) float32 in pixels of the original image.
        scores: (N,) float32, descending.
        class_ids: (N,) int32.
    """

    boxes_xyxy: FloatArray
    scores: FloatArray
    class_ids: NDArray[np.int32]

    def __post_init__(self) -> None:
        count = len(self.scores) if isinstance(self.scores, np.ndarray) and self.scores.ndim == 1 else -1
        _check("boxes_xyxy", self.boxes_xyxy, np.float32, (count, 4))
        _check("scores", self.scores, np.float32, (count,))
        _check("class_ids", self.class_ids, np.int32, (count,))
        if not np.isfinite(self.boxes_xyxy).all() or not np.isfinite(self.scores).all():
            raise InputError("Detections", expected="finite numbers", got="NaN or infinity", fix="drop those rows")
        if (self.scores[1:] > self.scores[:-1]).any():
            raise InputError(
                "Detections.scores", expected="descending order", got="another", fix="sort, or use Detections.sorted"
            )

    @classmethod
    def sorted(cls, boxes_xyxy: FloatArray, scores: FloatArray, class_ids: NDArray[np.int32]) -> Detections:
        """Detections from rows in any order; rows of equal score keep theirs."""
        order = np.argsort(-scores, kind="stable")
        return cls(boxes_xyxy=boxes_xyxy[order], scores=scores[order], class_ids=class_ids[order])

    @classmethod
    def unchecked(cls, boxes_xyxy: FloatArray, scores: FloatArray, class_ids: NDArray[np.int32]) -> Detections:
        """Detections from arrays that are known to be valid, e.g. of DecodeNMS: checking costs as much as decoding."""
        detections = cls.__new__(cls)
        detections.__dict__.update(boxes_xyxy=boxes_xyxy, scores=scores, class_ids=class_ids)
        return detections

    @classmethod
    def empty(cls) -> Detections:
        """No detections."""
        return cls(
            boxes_xyxy=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32), class_ids=np.zeros(0, np.int32)
        )

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score_threshold: float) -> Detections:
        """The detections with a score > `score_threshold`."""
        count = int((self.scores > np.float32(score_threshold)).sum())
        return Detections(
            boxes_xyxy=self.boxes_xyxy[:count], scores=self.scores[:count], class_ids=self.class_ids[:count]
        )

    def to_coco(self, image_id: int, category_ids: tuple[int, ...] | None = None) -> list[dict[str, Any]]:
        """Result rows of the COCO format.

        Args:
            image_id: of the image.
            category_ids: the category of each class index; the index itself where None.
        """
        boxes_xywh = xyxy_to_xywh(self.boxes_xyxy)
        return [
            {
                "image_id": image_id,
                "category_id": int(class_id) if category_ids is None else category_ids[class_id],
                "bbox": [float(number) for number in box],
                "score": float(score),
            }
            for box, score, class_id in zip(boxes_xywh, self.scores, self.class_ids, strict=True)
        ]

    def to_jsonable(self, class_names: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
        """One JSON object a detection: `box_xyxy`, `score`, `class_id` and, where names are given, `class_name`."""
        rows: list[dict[str, Any]] = []
        for box, score, class_id in zip(self.boxes_xyxy, self.scores, self.class_ids, strict=True):
            row: dict[str, Any] = {
                "box_xyxy": [round(float(number), 3) for number in box],
                "score": round(float(score), 6),
                "class_id": int(class_id),
            }
            if class_names is not None:
                row["class_name"] = class_names[int(class_id)]
            rows.append(row)
        return rows

    def to_supervision(self) -> supervision.Detections:
        """The same as a `supervision.Detections`.

        Raises:
            MissingDependencyError: where the extra `viz` is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MissingDependencyError("supervision", extra="viz", needed_for="Detections.to_supervision") from error
        return supervision.Detections(
            xyxy=self.boxes_xyxy.copy(), confidence=self.scores.copy(), class_id=self.class_ids.astype(np.int64)
        )


def _check(name: str, array: object, dtype: type, shape: tuple[int, ...]) -> None:
    if isinstance(array, np.ndarray) and array.dtype == dtype and array.shape == shape:
        return
    got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
    wanted = ", ".join("N" if size == -1 else str(size) for size in shape)
    raise InputError(
        f"Detections.{name}", expected=f"{np.dtype(dtype).name} ({wanted})", got=got, fix="convert or reshape it"
    )
