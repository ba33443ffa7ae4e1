"""How the raw heads of each kind of detector become boxes and scores.

A `DecodeSpec` is one of `AnchorDeltas`, `Grid`, `Distances`, `Peaks`, `Queries` and `Boxes`. Each gives the attributes
and the priors of the operator DecodeNMS for the input size that it was made for, so everything after it (numpy, ONNX,
C++, CUDA) knows one operator and no detector.

Raw heads are tensors named as the operator's inputs: `box_regression`, `class_logits` and, where the head has them,
`objectness`; a graph that computes `priors` or `image_size_hw` itself puts these out too. Anchors are ordered by
level, row, column and then anchor of the cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from boxwright.core.boxes import FloatArray
from boxwright.core.decode_nms_attributes import (
    BoxCoding,
    DecodeNmsAttributes,
    ObjectnessActivation,
    Overlap,
    ScoreActivation,
    ScoreCombination,
    TopKScope,
)
from boxwright.core.errors import InputError

GridCoding = Literal["yolov1", "yolov2", "yolov4", "yolov5", "yolox"]
BoxFormat = Literal["xyxy", "cxcywh"]
RAW_HEAD_NAMES = ("box_regression", "class_logits", "objectness", "priors", "image_size_hw")


@dataclass(frozen=True, kw_only=True)
class NmsSpec:
    """What happens between the candidates and the detections; fields as in `DecodeNmsAttributes`."""

    class_agnostic: bool = False
    overlap: Overlap = "iou"
    pre_nms_top_k: int = 1000
    top_k_scope: TopKScope = "image"
    min_size: float = 0.0


@dataclass(frozen=True, kw_only=True)
class AnchorLevel:
    """Corner-coded anchors on one pyramid level.

    Attributes:
        grid_hw: rows and columns.
        stride_hw: pixels from one cell to the next.
        cell_boxes_xyxy: the anchors of a cell about its reference point, in pixels.
        offset: of the reference point in the cell, in cells (0: corner, 0.5: centre).
    """

    grid_hw: tuple[int, int]
    stride_hw: tuple[float, float]
    cell_boxes_xyxy: tuple[tuple[float, float, float, float], ...]
    offset: float = 0.0

    @property
    def size(self) -> int:
        return self.grid_hw[0] * self.grid_hw[1] * len(self.cell_boxes_xyxy)

    def priors(self) -> FloatArray:
        """Anchors (rows * columns * A, 4) xyxy in pixels."""
        points = _cell_points(self.grid_hw, self.stride_hw, self.offset)  # (cells, 2)
        boxes = np.array(self.cell_boxes_xyxy, dtype=np.float32)  # (A, 4)
        return (np.concatenate([points, points], axis=1)[:, None, :] + boxes[None]).reshape(-1, 4)


@dataclass(frozen=True, kw_only=True)
class GridLevel:
    """Reference points and scales on one pyramid level.

    Attributes:
        grid_hw: rows and columns.
        stride: pixels a cell.
        anchors_wh: width and height in pixels of each anchor of a cell; empty means one of stride by stride.
        offset: of the reference point in the cell, in cells (0: corner, 0.5: centre).
        scale_xy: YOLOv4's stretch of the offset about the cell's middle.
        step_hw: pixels from one reference point to the next, for heads that lay them otherwise than by the stride.
    """

    grid_hw: tuple[int, int]
    stride: float
    anchors_wh: tuple[tuple[float, float], ...] = ()
    offset: float = 0.0
    scale_xy: float = 1.0
    step_hw: tuple[float, float] | None = None

    @property
    def size(self) -> int:
        return self.grid_hw[0] * self.grid_hw[1] * max(1, len(self.anchors_wh))

    def priors(self) -> FloatArray:
        """Reference point x, y and scale w, h of each anchor, (rows * columns * A, 4) in pixels."""
        step_hw = (self.stride, self.stride) if self.step_hw is None else self.step_hw
        points = _cell_points(self.grid_hw, step_hw, self.offset)  # (cells, 2)
        scales = np.array(self.anchors_wh or ((self.stride, self.stride),), dtype=np.float32)  # (A, 2)
        cells, anchors = len(points), len(scales)
        result = np.empty((cells, anchors, 4), dtype=np.float32)
        result[..., :2] = points[:, None]
        result[..., 2:] = scales[None]
        return result.reshape(-1, 4)


def _cell_points(grid_hw: tuple[int, int], stride_hw: tuple[float, float], offset: float) -> FloatArray:
    """Reference points x, y of a grid's cells in row order, (rows * columns, 2)."""
    rows = (np.arange(grid_hw[0], dtype=np.float32) + np.float32(offset)) * np.float32(stride_hw[0])
    columns = (np.arange(grid_hw[1], dtype=np.float32) + np.float32(offset)) * np.float32(stride_hw[1])
    y, x = np.meshgrid(rows, columns, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1)


@dataclass(frozen=True, kw_only=True)
class _ScoredHead:
    """What all kinds of head share: how logits become scores, and how many detections come out.

    Attributes:
        num_classes: without the background.
        multi_label: whether one anchor may give several classes.
        max_detections: at most so many an image.
        nms: None for heads that need none.
        clip_to_image: whether boxes are clipped to the network's input before NMS.
    """

    num_classes: int
    score_activation: ScoreActivation = "sigmoid"
    objectness_activation: ObjectnessActivation = "sigmoid"
    score_combination: ScoreCombination = "none"
    background_class: int = -1
    multi_label: bool = False
    max_detections: int = 300
    nms: NmsSpec | None = None
    clip_to_image: bool = False

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise InputError(
                "DecodeSpec.num_classes", expected="at least 1", got=str(self.num_classes), fix="correct the value"
            )
        self.attributes()  # validates the rest

    @property
    def num_logits(self) -> int:
        """Width of `class_logits`: the classes and the background, where there is one."""
        return self.num_classes + int(self.background_class >= 0)

    @property
    def has_objectness(self) -> bool:
        """Whether the head has an objectness or centerness output."""
        return bool(self.score_combination != "none")

    def attributes(self) -> DecodeNmsAttributes:
        """The attributes of DecodeNMS for this head."""
        raise NotImplementedError

    def priors(self) -> FloatArray | None:
        """The priors (N, 4) of DecodeNMS, or None where the graph gives them or the coding needs none."""
        return None

    def _attributes(
        self,
        box_coding: BoxCoding,
        *,
        level_sizes: tuple[int, ...] = (),
        level_strides: tuple[float, ...] = (),
        level_scale_xy: tuple[float, ...] = (),
        box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
        delta_clip: float = 0.0,
        class_specific_boxes: bool = False,
    ) -> DecodeNmsAttributes:
        nms = self.nms or NmsSpec(pre_nms_top_k=self.max_detections)
        return DecodeNmsAttributes(
            box_coding=box_coding,
            box_weights=box_weights,
            delta_clip=delta_clip,
            level_sizes=level_sizes,
            level_strides=level_strides,
            level_scale_xy=level_scale_xy,
            score_activation=self.score_activation,
            objectness_activation=self.objectness_activation,
            score_combination=self.score_combination,
            background_class=self.background_class,
            class_specific_boxes=class_specific_boxes,
            multi_label=self.multi_label,
            with_nms=self.nms is not None,
            class_agnostic=nms.class_agnostic,
            overlap=nms.overlap,
            pre_nms_top_k=nms.pre_nms_top_k,
            top_k_scope=nms.top_k_scope,
            clip_to_image=self.clip_to_image,
            min_size=nms.min_size,
            max_detections=self.max_detections,
        )


@dataclass(frozen=True, kw_only=True)
class AnchorDeltas(_ScoredHead):
    """Deltas to corner-coded anchors: SSD, RetinaNet, EfficientDet, RPN, and the box heads of R-CNN.

    Attributes:
        levels: of the anchors; empty where the graph gives the priors (second stages).
        box_weights: divisors of the deltas.
        delta_clip: upper bound of the width and height deltas; 0 for none.
        class_specific_boxes: whether each class has its own box.
    """

    kind: ClassVar[str] = "anchor_deltas"
    levels: tuple[AnchorLevel, ...] = ()
    box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    delta_clip: float = 0.0
    class_specific_boxes: bool = False

    def attributes(self) -> DecodeNmsAttributes:
        return self._attributes(
            "anchor_delta",
            level_sizes=tuple(level.size for level in self.levels),
            box_weights=self.box_weights,
            delta_clip=self.delta_clip,
            class_specific_boxes=self.class_specific_boxes,
        )

    def priors(self) -> FloatArray | None:
        return np.concatenate([level.priors() for level in self.levels]) if self.levels else None


@dataclass(frozen=True, kw_only=True)
class Grid(_ScoredHead):
    """Boxes relative to grid cells: YOLO v1 to v5, YOLOX.."""

    kind: ClassVar[str] = "grid"
    box_coding: GridCoding
    levels: tuple[GridLevel, ...]

    def attributes(self) -> DecodeNmsAttributes:
        return self._attributes(
            self.box_coding,
            level_sizes=tuple(level.size for level in self.levels),
            level_strides=tuple(level.stride for level in self.levels),
            level_scale_xy=tuple(level.scale_xy for level in self.levels),
        )

    def priors(self) -> FloatArray | None:
        return np.concatenate([level.priors() for level in self.levels])


@dataclass(frozen=True, kw_only=True)
class Distances(_ScoredHead):
    """Distances to the four sides from a point, in units of the stride: FCOS."""

    kind: ClassVar[str] = "distances"
    levels: tuple[GridLevel, ...]

    def attributes(self) -> DecodeNmsAttributes:
        return self._attributes("distances", level_sizes=tuple(level.size for level in self.levels))

    def priors(self) -> FloatArray | None:
        return np.concatenate([level.priors() for level in self.levels])


@dataclass(frozen=True, kw_only=True)
class Peaks(_ScoredHead):
    """Centre offset and size in units of the stride at the peaks of a heat map: CenterNet.

    The max-pool that leaves the peaks alone belongs to the raw graph.
    """

    kind: ClassVar[str] = "peaks"
    levels: tuple[GridLevel, ...]

    def attributes(self) -> DecodeNmsAttributes:
        return self._attributes("cxcywh", level_sizes=tuple(level.size for level in self.levels))

    def priors(self) -> FloatArray | None:
        return np.concatenate([level.priors() for level in self.levels])


@dataclass(frozen=True, kw_only=True)
class Queries(_ScoredHead):
    """One box a query, relative to the input: DETR.

    Attributes:
        num_queries: N.
        box_format: of the regression.
        scale_wh: the pixels that 1.0 stands for; None where the graph gives the priors.
    """

    kind: ClassVar[str] = "queries"
    num_queries: int
    box_format: BoxFormat = "cxcywh"
    scale_wh: tuple[float, float] | None = None

    def attributes(self) -> DecodeNmsAttributes:
        return self._attributes(self.box_format)

    def priors(self) -> FloatArray | None:
        if self.scale_wh is None:
            return None
        return np.tile(np.array([0.0, 0.0, *self.scale_wh], dtype=np.float32), (self.num_queries, 1))


@dataclass(frozen=True, kw_only=True)
class Boxes(_ScoredHead):
    """Boxes in pixels of the input that the graph has decoded already (stage `boxes`)."""

    kind: ClassVar[str] = "boxes"
    box_format: BoxFormat = "xyxy"

    def attributes(self) -> DecodeNmsAttributes:
        return self._attributes(self.box_format)


DecodeSpec = AnchorDeltas | Grid | Distances | Peaks | Queries | Boxes
