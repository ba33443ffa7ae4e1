"""YOLOv1: a coarse grid, B boxes and one set of classes a cell, and a loss of squared errors alone.

Two things differ from the paper: the last layers are convolutions instead of fully connected, so that the grid grows
with the input, and objectness and classes pass through a sigmoid, so that scores are probabilities.

Source: Redmon et al., You Only Look Once, CVPR 2016.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import timm
import torch
from torch import Tensor, nn

from boxwright.core.decode_spec import Grid, GridLevel, NmsSpec
from boxwright.core.errors import CheckpointError
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import preset
from boxwright.models.common import small_backbone
from boxwright.models.common.boxes import cxcywh_to_xyxy, pairwise_iou
from boxwright.models.common.checkpoint import StateDict
from boxwright.models.common.class_targets import sigmoid_class_targets
from boxwright.models.common.detector import DetectionModel
from boxwright.models.common.iou_losses import overlap_loss
from boxwright.models.common.layers import ConvBnAct
from boxwright.models.common.loss_options import LossOptions
from boxwright.models.common.registry import ImportedWeights
from boxwright.models.common.stage_widths import stage_widths
from boxwright.models.common.targets import Targets

IMPORTS = "nothing but checkpoints of boxwright train"
BOX_NUMBERS = 5  # x, y, root of w, root of h and the objectness
BOX_WEIGHT, NO_OBJECT_WEIGHT = 5.0, 0.5
LEAKY_SLOPE = 0.1
# A box that an untrained head predicts: in the middle of its cell, a quarter of the image wide and high.
_FIRST_OFFSET, _FIRST_ROOT = 0.5, 0.5
# Lower, the squared error of a sigmoid would hardly have a gradient.
_PRIOR_PROBABILITY = 0.1
_AS_PUBLISHED = LossOptions()
_PRIOR_LOGIT = math.log(_PRIOR_PROBABILITY / (1 - _PRIOR_PROBABILITY))


@dataclass(frozen=True, kw_only=True)
class Yolov1Config:
    """A variant.

    Attributes:
        backbone: name in timm.
        backbone_stride: of the feature map that is taken.
        stride: of the grid: the backbone's or twice that.
        channels: of the head's convolutions.
        depth: of these convolutions.
        boxes_per_cell: B.
        dropout: before the last convolution.
        learning_rate: see `DetectionModel.suggested_learning_rate`.
        size_hw: the usual input size.
    """

    backbone: str
    backbone_stride: int
    stride: int
    channels: int
    depth: int = 4
    boxes_per_cell: int = 2
    dropout: float = 0.5
    learning_rate: float | None = None
    size_hw: tuple[int, int] = (448, 448)


VARIANTS: dict[str, Yolov1Config] = {
    # Not the authors': a finer grid for small inputs, for tests and first steps on a CPU.
    "yolov1-pico": Yolov1Config(
        backbone=small_backbone.NAME,
        backbone_stride=16,
        stride=16,
        channels=128,
        depth=2,
        dropout=0.0,
        learning_rate=0.003,
        size_hw=(112, 112),
    ),
    # The paper's 7 x 7 cells of 64 pixels at 448 x 448.
    "yolov1-r18": Yolov1Config(backbone="resnet18", backbone_stride=32, stride=64, channels=512),
    "yolov1-r50": Yolov1Config(backbone="resnet50", backbone_stride=32, stride=64, channels=1024),
}


def _leaky() -> nn.Module:
    return nn.LeakyReLU(LEAKY_SLOPE, inplace=True)


class _Head(nn.Sequential):
    """3x3 convolutions, the second of stride 2 where the grid is coarser than the backbone; then the predictions."""

    def __init__(self, config: Yolov1Config, in_channels: int, num_outputs: int) -> None:
        layers: list[nn.Module] = []
        for index in range(config.depth):
            stride = config.stride // config.backbone_stride if index == 1 else 1
            width = in_channels if index == 0 else config.channels
            layers.append(ConvBnAct(width, config.channels, 3, stride=stride, activation=_leaky()))
        super().__init__(*layers, nn.Dropout2d(config.dropout), nn.Conv2d(config.channels, num_outputs, 1))


class Yolov1(DetectionModel):
    """The detector."""

    family: ClassVar[str] = "yolov1"
    suggested_augmentation: ClassVar[Mapping[str, float]] = {"mosaic": 0.0, "mixup": 0.0}
    supported_loss_options: ClassVar[frozenset[str]] = frozenset({"box_loss", "label_smoothing"})

    def __init__(self, *, variant: str, num_classes: int) -> None:
        super().__init__(variant=variant, num_classes=num_classes)
        self.config = VARIANTS[variant]
        self.suggested_learning_rate = self.config.learning_rate
        index = int(math.log2(self.config.backbone_stride)) - 1
        self.backbone = timm.create_model(
            self.config.backbone, features_only=True, out_indices=(index,), pretrained=False
        )
        num_outputs = self.config.boxes_per_cell * BOX_NUMBERS + num_classes
        self.head = _Head(self.config, stage_widths(self.backbone)[-1], num_outputs)
        prediction = self.head[-1]
        assert isinstance(prediction, nn.Conv2d) and prediction.bias is not None
        with torch.no_grad():
            first = [_FIRST_OFFSET, _FIRST_OFFSET, _FIRST_ROOT, _FIRST_ROOT, _PRIOR_LOGIT]
            boxes = torch.tensor(first * self.config.boxes_per_cell)
            prediction.bias.copy_(torch.cat([boxes, torch.zeros(num_classes)]))

    @property
    def size_divisor(self) -> int:  # type: ignore[override]
        """The side of a cell."""
        return self.config.stride

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        output = self.head(self.backbone(images)[-1])
        batch, _, rows, columns = output.shape
        count = self.config.boxes_per_cell
        cells = output.permute(0, 2, 3, 1)  # (B, H, W, count * 5 + C)
        boxes = cells[..., : count * BOX_NUMBERS].reshape(batch, rows * columns * count, BOX_NUMBERS)
        classes = cells[..., None, count * BOX_NUMBERS :]  # (B, H, W, 1, C)
        # The boxes of a cell share its classes.
        shared = classes.expand(-1, -1, -1, count, -1).reshape(batch, rows * columns * count, self.num_classes)
        heads = {"box_regression": boxes[..., :4], "class_logits": shared, "objectness": boxes[..., 4]}
        if self.training:
            heads["_grid_hw"] = torch.tensor([rows, columns])
        return heads

    def loss(self, heads: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        rows, columns = heads["_grid_hw"].tolist()
        terms = []
        for index, (boxes, class_ids) in enumerate(zip(targets.boxes_xyxy, targets.class_ids, strict=True)):
            terms.append(
                yolov1_loss(
                    heads["box_regression"][index].float(),
                    heads["class_logits"][index].float(),
                    heads["objectness"][index].float(),
                    boxes.to(heads["objectness"].device),
                    class_ids.to(heads["objectness"].device),
                    grid_hw=(rows, columns),
                    stride=self.config.stride,
                    options=self.loss_options,
                )
            )
        parts = {name: torch.stack([term[name] for term in terms]).mean() for name in terms[0]}
        return {**parts, "loss": torch.stack(list(parts.values())).sum()}

    def decode_spec(self, size_hw: tuple[int, int]) -> Grid:
        self.check_size(size_hw)
        stride = self.config.stride
        level = GridLevel(
            grid_hw=(size_hw[0] // stride, size_hw[1] // stride),
            stride=float(stride),
            # Sizes are predicted relative to the image.
            anchors_wh=((float(size_hw[1]), float(size_hw[0])),) * self.config.boxes_per_cell,
        )
        return Grid(
            num_classes=self.num_classes,
            box_coding="yolov1",
            levels=(level,),
            score_combination="multiply",
            multi_label=True,
            nms=NmsSpec(),
        )

    def default_preprocess(self, size_hw: tuple[int, int]) -> Preprocess:
        return preset("imagenet-stretch", size_hw)


def yolov1_loss(
    raw_boxes: Tensor,
    class_logits: Tensor,
    objectness: Tensor,
    boxes_xyxy: Tensor,
    class_ids: Tensor,
    *,
    grid_hw: tuple[int, int],
    stride: float,
    options: LossOptions = _AS_PUBLISHED,
) -> dict[str, Tensor]:
    """The weighted sums of squared errors of one image.

    Args:
        raw_boxes: (rows * columns * B, 4) x and y in the cell, square roots of width and height relative to the image.
        class_logits: (rows * columns * B, C), the same for the boxes of a cell.
        objectness: (rows * columns * B,) logits.
        boxes_xyxy: (M, 4) objects in pixels.
        class_ids: (M,).
        grid_hw: rows and columns.
        stride: pixels a cell.
        options: what a run changes; a box loss takes the place of the squared errors of the boxes.

    Returns:
        `box` (times 5), `object`, `no_object` (times 0.5) and `class`.

    Source: the paper, eq. 3.
    """
    rows, columns = grid_hw
    per_cell = len(objectness) // (rows * columns)
    image_wh = objectness.new_tensor([columns * stride, rows * stride])
    cells, objects = _responsible_cells(boxes_xyxy, grid_hw, stride)  # (P,) each
    own = cells[:, None] * per_cell + torch.arange(per_cell, device=cells.device)  # (P, B)
    cells_xy = torch.stack([cells % columns, cells // columns], dim=1)  # (P, 2)
    # What a box is to be: its place in the cell and the roots of its size.
    centres = (boxes_xyxy[objects, :2] + boxes_xyxy[objects, 2:]) / 2
    roots = ((boxes_xyxy[objects, 2:] - boxes_xyxy[objects, :2]).clamp(min=0) / image_wh).sqrt()
    wanted = torch.cat([centres / stride - cells_xy, roots], dim=1)  # (P, 4)
    predicted = raw_boxes.detach()[own]  # (P, B, 4)
    overlaps = _overlaps(predicted, boxes_xyxy[objects], cells_xy, image_wh, stride)  # (P, B)
    # Responsible is the box that overlaps the object best or, where none touches it, the nearest by its numbers.
    distances = (predicted - wanted[:, None]).square().sum(dim=2)
    touches = overlaps.amax(dim=1, keepdim=True) > 0
    best = torch.where(touches, overlaps, -distances).argmax(dim=1, keepdim=True)  # (P, 1)
    best_overlap = overlaps.gather(1, best)[:, 0]
    learner = own.gather(1, best)[:, 0]  # (P,)
    probability = objectness.sigmoid()
    is_learner = torch.zeros_like(objectness, dtype=torch.bool)
    is_learner[learner] = True
    classes = sigmoid_class_targets(class_ids[objects], class_logits.shape[1], smoothing=options.label_smoothing)
    if options.box_loss is None:
        box_loss = (raw_boxes[learner] - wanted).square().sum()
    else:
        boxes = _decode(raw_boxes[learner], cells_xy, image_wh, stride)
        box_loss = overlap_loss(boxes, boxes_xyxy[objects], kind=options.box_loss).sum()
    return {
        "box": BOX_WEIGHT * box_loss,
        "object": (probability[learner] - best_overlap).square().sum(),
        "no_object": NO_OBJECT_WEIGHT * probability[~is_learner].square().sum(),
        "class": (class_logits[learner].sigmoid() - classes).square().sum(),
    }


def _responsible_cells(boxes_xyxy: Tensor, grid_hw: tuple[int, int], stride: float) -> tuple[Tensor, Tensor]:
    """Cells (P,) that hold the centre of an object, and its row (P,); of several in a cell the largest alone."""
    centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2 / stride
    column = centres[:, 0].floor().long().clamp(0, grid_hw[1] - 1)
    row = centres[:, 1].floor().long().clamp(0, grid_hw[0] - 1)
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(dim=1)
    chosen: dict[int, int] = {}
    for index in areas.argsort(descending=True, stable=True).tolist():
        chosen.setdefault(int(row[index] * grid_hw[1] + column[index]), index)
    device = boxes_xyxy.device
    cells = torch.tensor(list(chosen), dtype=torch.int64, device=device)
    return cells, torch.tensor(list(chosen.values()), dtype=torch.int64, device=device)


def _overlaps(raw: Tensor, objects: Tensor, cells_xy: Tensor, image_wh: Tensor, stride: float) -> Tensor:
    """IoU (P, B) of the boxes that a cell predicts (P, B, 4) with its object (P, 4)."""
    return pairwise_iou(_decode(raw, cells_xy[:, None], image_wh, stride), objects[:, None])[..., 0]


def _decode(raw: Tensor, cells_xy: Tensor, image_wh: Tensor, stride: float) -> Tensor:
    """Boxes (..., 4) xyxy in pixels of what the cells (..., 2) predict (..., 4)."""
    centres = (raw[..., :2] + cells_xy) * stride
    return cxcywh_to_xyxy(torch.cat([centres, raw[..., 2:].square() * image_wh], dim=-1))


def build(variant: str, num_classes: int) -> Yolov1:
    """A YOLOv1 of that variant with random weights."""
    return Yolov1(variant=variant, num_classes=num_classes)


def import_checkpoint(state: StateDict, variant: str) -> ImportedWeights:
    """Refuse: there are no public checkpoints with these backbones."""
    raise CheckpointError(
        "checkpoint",
        expected=f"a checkpoint of {variant} that boxwright train wrote",
        got="another, with " + ", ".join(list(state)[:3]),
        fix="train one with boxwright train --model " + variant,
    )
