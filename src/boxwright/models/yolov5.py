"""YOLOv5 (version 6): CSP backbone, path aggregation neck, three anchors a cell, matched by the ratio of their sides.

Written from the public description of the architecture, the losses and the key names. Source: YOLOv5's documentation,
"Architecture summary".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.core.decode_spec import Grid, GridLevel, NmsSpec
from boxwright.core.errors import CheckpointError
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import preset
from boxwright.models.common.boxes import OverlapKind, cxcywh_to_xyxy, paired_overlap
from boxwright.models.common.checkpoint import StateDict
from boxwright.models.common.class_targets import sigmoid_class_targets
from boxwright.models.common.csp import CspLayer, PathAggregation, make_conv_factory
from boxwright.models.common.detector import DetectionModel
from boxwright.models.common.grid_outputs import BOX_NUMBERS, join_levels, split_by_cell
from boxwright.models.common.iou_losses import overlap_loss
from boxwright.models.common.layers import ConvBnAct
from boxwright.models.common.ratio_matching import RatioMatches, match_by_ratio
from boxwright.models.common.registry import ImportedWeights
from boxwright.models.common.targets import Targets

IMPORTS = "the authors' P5 state dicts since version 6.0: torch.save(model.state_dict()) of their .pt files"
STRIDES = (8, 16, 32)
ANCHORS_PER_CELL = 3
# Width and height in pixels, three a level; clustered on COCO at 640.
COCO_ANCHORS_WH = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
# Weights of the parts of the loss, and of the objectness of each level: the finest has the most cells without objects.
BOX_WEIGHT, OBJECT_WEIGHT, CLASS_WEIGHT = 0.05, 1.0, 0.5
LEVEL_BALANCE = (4.0, 1.0, 0.4)
# The weights above are meant for means over a batch that are multiplied by its size, at 64 images a step and 640 x 640.
NOMINAL_BATCH = 64
NOMINAL_SIDE = 640
COCO_CLASSES = 80


@dataclass(frozen=True, kw_only=True)
class Yolov5Config:
    """A variant.

    Attributes:
        depth: multiplies the number of blocks in a stage.
        width: multiplies the number of channels.
        learning_rate: see `DetectionModel.suggested_learning_rate`.
        size_hw: the usual input size.
    """

    depth: float
    width: float
    learning_rate: float | None = None
    size_hw: tuple[int, int] = (640, 640)


VARIANTS: dict[str, Yolov5Config] = {
    # Not the authors': the smallest useful one, for tests and first steps on a CPU.
    "yolov5-pico": Yolov5Config(depth=0.33, width=0.125, learning_rate=0.003, size_hw=(160, 160)),
    "yolov5n": Yolov5Config(depth=0.33, width=0.25),
    "yolov5s": Yolov5Config(depth=0.33, width=0.50),
    "yolov5m": Yolov5Config(depth=0.67, width=0.75),
    "yolov5l": Yolov5Config(depth=1.0, width=1.0),
    "yolov5x": Yolov5Config(depth=1.33, width=1.25),
}


class _Stem(ConvBnAct):
    """6x6 convolution of stride 2, padded by 2."""

    def __init__(self, out_channels: int) -> None:
        super().__init__(3, out_channels, 1)
        self.conv = nn.Conv2d(3, out_channels, 6, stride=2, padding=2, bias=False)


class _FastPyramidPooling(nn.Module):
    """A 5x5 max-pool applied up to three times, which equals 5x5, 9x9 and 13x13 beside each other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBnAct(channels, channels // 2, 1)
        self.conv2 = ConvBnAct(channels // 2 * 4, channels, 1)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)

    def forward(self, features: Tensor) -> Tensor:
        pooled = [self.conv1(features)]
        for _ in range(3):
            pooled.append(self.pool(pooled[-1]))
        merged: Tensor = self.conv2(torch.cat(pooled, dim=1))
        return merged


class _Backbone(nn.Module):
    """Features at strides 8, 16 and 32."""

    def __init__(self, config: Yolov5Config) -> None:
        super().__init__()
        make_conv = make_conv_factory()
        base = int(64 * config.width)
        self.stem = _Stem(base)
        stages = []
        for index, num_blocks in enumerate((3, 6, 9, 3)):
            channels = base * 2 ** (index + 1)
            layers = [
                make_conv(channels // 2, channels, 3, 2),
                CspLayer(
                    channels,
                    channels,
                    num_blocks=max(round(num_blocks * config.depth), 1),
                    shortcut=True,
                    make_conv=make_conv,
                ),
            ]
            if index == 3:
                layers.append(_FastPyramidPooling(channels))
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stride4 = self.stages[0](self.stem(images))
        stride8 = self.stages[1](stride4)
        stride16 = self.stages[2](stride8)
        return stride8, stride16, self.stages[3](stride16)


class _Head(nn.Module):
    """One 1x1 convolution a level; the anchors are part of its state, since they may be fitted to the data."""

    anchors: Tensor  # (levels, 3, 2) in cells

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        numbers = BOX_NUMBERS + num_classes
        self.predictions = nn.ModuleList(nn.Conv2d(width, ANCHORS_PER_CELL * numbers, 1) for width in channels)
        strides = torch.tensor(STRIDES, dtype=torch.float32).view(-1, 1, 1)
        self.register_buffer("anchors", torch.tensor(COCO_ANCHORS_WH, dtype=torch.float32) / strides)
        for layer, stride in zip(self.predictions, STRIDES, strict=True):
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            with torch.no_grad():
                bias = layer.bias.view(ANCHORS_PER_CELL, -1)
                # An untrained head should expect about 8 objects in an image of 640 x 640, of any class.
                bias[:, 4] += math.log(8 / (NOMINAL_SIDE / stride) ** 2)
                bias[:, BOX_NUMBERS:] += math.log(0.6 / (num_classes - 0.99999)) if num_classes > 1 else 0.0

    def forward(self, levels: tuple[Tensor, ...]) -> list[Tensor]:
        return [layer(features) for layer, features in zip(self.predictions, levels, strict=True)]


class Yolov5(DetectionModel):
    """The detector."""

    family: ClassVar[str] = "yolov5"
    # The authors blend images for the large variants alone.
    suggested_augmentation: ClassVar[Mapping[str, float]] = {"mixup": 0.0}
    supported_loss_options: ClassVar[frozenset[str]] = frozenset({"box_loss", "label_smoothing"})

    def __init__(self, *, variant: str, num_classes: int) -> None:
        super().__init__(variant=variant, num_classes=num_classes)
        config = VARIANTS[variant]
        self.suggested_learning_rate = config.learning_rate
        channels = tuple(int(width * config.width) for width in (256, 512, 1024))
        self.backbone = _Backbone(config)
        self.neck = PathAggregation(channels, num_blocks=max(round(3 * config.depth), 1), make_conv=make_conv_factory())
        self.head = _Head(channels, num_classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels = [split_by_cell(output, ANCHORS_PER_CELL) for output in self.head(self.neck(*self.backbone(images)))]
        heads = join_levels([level for level, _ in levels])
        if self.training:
            heads["_grids_hw"] = torch.tensor([grid_hw for _, grid_hw in levels])
        return heads

    def loss(self, heads: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        box_loss: OverlapKind = self.loss_options.box_loss or "ciou"
        device = heads["objectness"].device
        totals = {name: torch.zeros((), device=device) for name in ("box", "object", "class")}
        start = 0
        anchors = self.anchors_wh()
        for index, (rows, columns) in enumerate(heads["_grids_hw"].tolist()):
            size = rows * columns * ANCHORS_PER_CELL
            part = slice(start, start + size)
            start += size
            matches = match_by_ratio(targets, anchors[index], grid_hw=(rows, columns), stride=STRIDES[index])
            level = {name: head[:, part].float() for name, head in heads.items() if not name.startswith("_")}
            terms = level_loss(
                level,
                matches,
                anchors[index],
                stride=STRIDES[index],
                box_loss=box_loss,
                label_smoothing=self.loss_options.label_smoothing,
            )
            image_share = rows * columns * STRIDES[index] ** 2 / NOMINAL_SIDE**2
            totals["box"] = totals["box"] + BOX_WEIGHT * terms["box"]
            totals["object"] = totals["object"] + OBJECT_WEIGHT * image_share * LEVEL_BALANCE[index] * terms["object"]
            totals["class"] = totals["class"] + CLASS_WEIGHT * self.num_classes / COCO_CLASSES * terms["class"]
        parts = {name: NOMINAL_BATCH * value for name, value in totals.items()}
        return {**parts, "loss": torch.stack(list(parts.values())).sum()}

    def anchors_wh(self) -> Tensor:
        """The anchors in pixels, (levels, 3, 2)."""
        strides = torch.tensor(STRIDES, dtype=torch.float32, device=self.head.anchors.device).view(-1, 1, 1)
        return self.head.anchors.float() * strides

    @property
    def num_anchor_sizes(self) -> int:
        return len(STRIDES) * ANCHORS_PER_CELL

    def set_anchors(self, sizes_wh: Sequence[tuple[float, float]]) -> None:
        strides = torch.tensor(STRIDES, dtype=torch.float32).view(-1, 1, 1)
        sizes = torch.tensor(sizes_wh, dtype=torch.float32).view(len(STRIDES), ANCHORS_PER_CELL, 2)
        self.head.anchors.copy_(sizes / strides)

    def decode_spec(self, size_hw: tuple[int, int]) -> Grid:
        self.check_size(size_hw)
        return Grid(
            num_classes=self.num_classes,
            box_coding="yolov5",
            levels=tuple(
                GridLevel(
                    grid_hw=(size_hw[0] // stride, size_hw[1] // stride),
                    stride=float(stride),
                    anchors_wh=tuple((width, height) for width, height in anchors),
                )
                for stride, anchors in zip(STRIDES, self.anchors_wh().tolist(), strict=True)
            ),
            score_combination="multiply",
            multi_label=True,
            nms=NmsSpec(),
        )

    def default_preprocess(self, size_hw: tuple[int, int]) -> Preprocess:
        return preset("yolov5", size_hw)


def decode(raw: Tensor, cells_xy: Tensor, anchors_wh: Tensor, stride: float) -> Tensor:
    """Boxes (P, 4) xyxy in pixels: centres up to half a cell outside of theirs, sides up to four times the anchor's.

    Args:
        raw: (P, 4) predicted numbers.
        cells_xy: (P, 2) column and row.
        anchors_wh: (P, 2) in pixels.
        stride: pixels a cell.
    """
    activated = raw.sigmoid()
    centres = (activated[:, :2] * 2 - 0.5 + cells_xy) * stride
    sizes = (activated[:, 2:] * 2).square() * anchors_wh
    return cxcywh_to_xyxy(torch.cat([centres, sizes], dim=1))


def level_loss(
    level: dict[str, Tensor],
    matches: RatioMatches,
    anchors_wh: Tensor,
    *,
    stride: float,
    box_loss: OverlapKind,
    label_smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """The means of the three parts on one level, not yet weighted.

    Args:
        level: raw heads of the level, (B, n, ...).
        matches: which predictions learn which objects.
        anchors_wh: (A, 2) of the level, in pixels.
        stride: pixels a cell.
        box_loss: overlap whose loss the boxes learn by, and whose value the objectness learns.
        label_smoothing: of the class targets.

    Returns:
        `box`, `object` and `class`.
    """
    picked = (matches.image, matches.prediction)
    objectness = level["objectness"]
    wanted = torch.zeros_like(objectness)
    # Sums of nothing, which keep the graph whole where a level has no object.
    box_term = level["box_regression"].sum() * 0
    class_term = level["class_logits"].sum() * 0
    if len(matches.image) > 0:
        boxes = decode(level["box_regression"][picked], matches.cells_xy, anchors_wh[matches.anchor], stride)
        box_term = overlap_loss(boxes, matches.boxes_xyxy, kind=box_loss).mean()
        overlaps = paired_overlap(boxes.detach(), matches.boxes_xyxy, kind=box_loss).clamp(min=0)
        # A prediction that learns several objects takes the best overlap for its objectness.
        flat = matches.image * objectness.shape[1] + matches.prediction
        wanted = wanted.view(-1).scatter_reduce(0, flat, overlaps, reduce="amax").view_as(wanted)
        logits = level["class_logits"][picked]
        if logits.shape[1] > 1:  # with one class the objectness says all
            classes = sigmoid_class_targets(matches.class_ids, logits.shape[1], smoothing=label_smoothing)
            class_term = functional.binary_cross_entropy_with_logits(logits, classes)
    return {
        "box": box_term,
        "object": functional.binary_cross_entropy_with_logits(objectness, wanted),
        "class": class_term,
    }


def build(variant: str, num_classes: int) -> Yolov5:
    """A YOLOv5 of that variant with random weights."""
    return Yolov5(variant=variant, num_classes=num_classes)


# The numbers of the authors' layers and our names; those without weights (upsampling, joining) have no keys.
_LAYERS = {
    0: "backbone.stem",
    1: "backbone.stages.0.0",
    2: "backbone.stages.0.1",
    3: "backbone.stages.1.0",
    4: "backbone.stages.1.1",
    5: "backbone.stages.2.0",
    6: "backbone.stages.2.1",
    7: "backbone.stages.3.0",
    8: "backbone.stages.3.1",
    9: "backbone.stages.3.2",
    10: "neck.lateral_p5",
    13: "neck.top_down_p4",
    14: "neck.lateral_p4",
    17: "neck.top_down_p3",
    18: "neck.downsample_p3",
    20: "neck.bottom_up_p4",
    21: "neck.downsample_p4",
    23: "neck.bottom_up_p5",
    24: "head",
}
_LAYER_KEY = re.compile(r"^(?:model\.)+(\d+)\.(.+)$")


def _our_name(key: str) -> str:
    """Our name of one of their keys; theirs where there is none, so that it is reported as surplus."""
    match = _LAYER_KEY.match(key)
    if match is None or int(match[1]) not in _LAYERS:
        return key
    rest = match[2]
    if int(match[1]) == max(_LAYERS):
        rest = re.sub(r"^m\.", "predictions.", rest)
    else:
        rest = re.sub(r"^m\.", "blocks.", re.sub(r"\bcv(\d)\.", r"conv\1.", rest))
    return f"{_LAYERS[int(match[1])]}.{rest}"


def import_checkpoint(state: StateDict, variant: str) -> ImportedWeights:
    """The weights of the authors' state dict under our names.

    Raises:
        CheckpointError: where it is not one of YOLOv5.
    """
    renamed = {
        _our_name(key): tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()
    }
    prediction = renamed.get("head.predictions.0.weight")
    if prediction is None or prediction.shape[0] % ANCHORS_PER_CELL:
        raise CheckpointError(
            "checkpoint",
            expected=f"the tensors of {variant}, model.24.m.0.weight among them",
            got="others: " + ", ".join(list(state)[:10]),
            fix="pass the --model that it was trained as",
        )
    return ImportedWeights(state=renamed, num_classes=prediction.shape[0] // ANCHORS_PER_CELL - BOX_NUMBERS)
