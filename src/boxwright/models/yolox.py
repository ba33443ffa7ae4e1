"""YOLOX: an anchor-free YOLO with a decoupled head and SimOTA label assignment.

Source: Ge et al., YOLOX: Exceeding YOLO Series in 2021, arXiv:2107.08430.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.core.decode_spec import Grid, GridLevel, NmsSpec
from boxwright.core.errors import CheckpointError
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import preset
from boxwright.models.common.boxes import cxcywh_to_xyxy, paired_overlap, xyxy_to_cxcywh
from boxwright.models.common.checkpoint import StateDict
from boxwright.models.common.class_targets import sigmoid_class_targets
from boxwright.models.common.csp import CspLayer, MakeConv, PathAggregation, make_conv_factory
from boxwright.models.common.detector import DetectionModel
from boxwright.models.common.iou_losses import overlap_loss
from boxwright.models.common.layers import ConvBnAct
from boxwright.models.common.loss_options import LossOptions
from boxwright.models.common.registry import ImportedWeights
from boxwright.models.common.simota import assign_simota
from boxwright.models.common.targets import Targets

STRIDES = (8, 16, 32)
# The probability that an untrained head gives to everything. Source: Lin et al., Focal Loss, ICCV 2017, sec. 3.3.
PRIOR_PROBABILITY = 0.01
BOX_WEIGHT = 5.0
MAX_LOG_SIZE = 12.0
IMPORTS = "the authors' .pth files ({'model': ...}), release 0.1.0 with --preprocess yolox-legacy"


@dataclass(frozen=True, kw_only=True)
class YoloxConfig:
    """A variant.

    Attributes:
        depth: multiplies the number of blocks in a stage.
        width: multiplies the number of channels.
        depthwise: whether 3x3 convolutions are split into depthwise and pointwise.
        size_hw: the usual input size.
    """

    depth: float
    width: float
    depthwise: bool = False
    size_hw: tuple[int, int] = (640, 640)


VARIANTS: dict[str, YoloxConfig] = {
    # Not the authors': the smallest useful one, for tests and first steps on a CPU.
    "yolox-pico": YoloxConfig(depth=0.33, width=0.125, size_hw=(160, 160)),
    "yolox-nano": YoloxConfig(depth=0.33, width=0.25, depthwise=True, size_hw=(416, 416)),
    "yolox-tiny": YoloxConfig(depth=0.33, width=0.375, size_hw=(416, 416)),
    "yolox-s": YoloxConfig(depth=0.33, width=0.50),
    "yolox-m": YoloxConfig(depth=0.67, width=0.75),
    "yolox-l": YoloxConfig(depth=1.0, width=1.0),
    "yolox-x": YoloxConfig(depth=1.33, width=1.25),
}


class Focus(nn.Module):
    """Each 2x2 patch of pixels becomes one position of 12 channels; then a convolution."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.conv = ConvBnAct(12, out_channels, 3)

    def forward(self, images: Tensor) -> Tensor:
        even_rows, odd_rows = images[..., ::2, :], images[..., 1::2, :]
        patches = [even_rows[..., ::2], odd_rows[..., ::2], even_rows[..., 1::2], odd_rows[..., 1::2]]
        features: Tensor = self.conv(torch.cat(patches, dim=1))  # (B, 12, H/2, W/2) before the convolution
        return features


class SpatialPyramidPooling(nn.Module):
    """Max-pools of several sizes beside each other. Source: He et al., SPP, 2014, in the form of YOLOv3-SPP."""

    def __init__(self, channels: int, kernel_sizes: tuple[int, ...] = (5, 9, 13)) -> None:
        super().__init__()
        hidden = channels // 2
        self.conv1 = ConvBnAct(channels, hidden, 1)
        self.pools = nn.ModuleList(nn.MaxPool2d(size, stride=1, padding=size // 2) for size in kernel_sizes)
        self.conv2 = ConvBnAct(hidden * (len(kernel_sizes) + 1), channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        reduced = self.conv1(features)
        pooled: Tensor = self.conv2(torch.cat([reduced, *(pool(reduced) for pool in self.pools)], dim=1))
        return pooled


class CspDarknet(nn.Module):
    """The backbone: features at strides 8, 16 and 32."""

    def __init__(self, config: YoloxConfig, make_conv: MakeConv) -> None:
        super().__init__()
        base = int(config.width * 64)
        blocks = max(round(config.depth * 3), 1)
        self.stem = Focus(base)
        stages = []
        for index, num_blocks in enumerate((blocks, 3 * blocks, 3 * blocks, blocks)):
            channels, is_last = base * 2 ** (index + 1), index == 3
            layers = [make_conv(channels // 2, channels, 3, 2)]
            if is_last:
                layers.append(SpatialPyramidPooling(channels))
            layers.append(
                CspLayer(channels, channels, num_blocks=num_blocks, shortcut=not is_last, make_conv=make_conv)
            )
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stride4 = self.stages[0](self.stem(images))
        stride8 = self.stages[1](stride4)
        stride16 = self.stages[2](stride8)
        return stride8, stride16, self.stages[3](stride16)


class DecoupledHead(nn.Module):
    """Classes in one branch, box and objectness in another, on every level. Source: YOLOX, sec. 2.1, fig. 2."""

    def __init__(self, config: YoloxConfig, make_conv: MakeConv, num_classes: int) -> None:
        super().__init__()
        hidden = int(256 * config.width)
        in_channels = [int(channels * config.width) for channels in (256, 512, 1024)]

        def branch() -> nn.Sequential:
            return nn.Sequential(make_conv(hidden, hidden, 3, 1), make_conv(hidden, hidden, 3, 1))

        self.stems = nn.ModuleList(ConvBnAct(channels, hidden, 1) for channels in in_channels)
        self.class_convs = nn.ModuleList(branch() for _ in in_channels)
        self.box_convs = nn.ModuleList(branch() for _ in in_channels)
        self.class_logits = nn.ModuleList(nn.Conv2d(hidden, num_classes, 1) for _ in in_channels)
        self.box_regression = nn.ModuleList(nn.Conv2d(hidden, 4, 1) for _ in in_channels)
        self.objectness = nn.ModuleList(nn.Conv2d(hidden, 1, 1) for _ in in_channels)
        for conv in [*self.class_logits, *self.objectness]:
            assert isinstance(conv, nn.Conv2d) and conv.bias is not None
            nn.init.constant_(conv.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))

    def forward(self, levels: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Raw heads of all levels, the finest first."""
        class_logits, box_regression, objectness = [], [], []
        for index, features in enumerate(levels):
            stem = self.stems[index](features)
            box_features = self.box_convs[index](stem)
            class_logits.append(self.class_logits[index](self.class_convs[index](stem)).flatten(2))  # (B, C, h*w)
            box_regression.append(self.box_regression[index](box_features).flatten(2))  # (B, 4, h*w)
            objectness.append(self.objectness[index](box_features).flatten(1))  # (B, h*w)
        return {
            "box_regression": torch.cat(box_regression, dim=2).transpose(1, 2),  # (B, N, 4)
            "class_logits": torch.cat(class_logits, dim=2).transpose(1, 2),  # (B, N, C)
            "objectness": torch.cat(objectness, dim=1),  # (B, N)
        }


def grid_cells(size_hw: tuple[int, int], device: torch.device) -> Tensor:
    """Left, top and stride in pixels of the grid cells of all levels, (N, 3)."""
    levels = []
    for stride in STRIDES:
        rows = torch.arange(size_hw[0] // stride, device=device, dtype=torch.float32) * stride
        columns = torch.arange(size_hw[1] // stride, device=device, dtype=torch.float32) * stride
        top, left = torch.meshgrid(rows, columns, indexing="ij")
        levels.append(torch.stack([left, top, torch.full_like(left, stride)], dim=-1).flatten(0, 1))  # (cells, 3)
    return torch.cat(levels)


def decode(box_regression: Tensor, cells: Tensor) -> Tensor:
    """Boxes (B, N, 4) xyxy in network pixels from raw heads (B, N, 4) and cells (N, 3)."""
    origins, strides = cells[:, :2], cells[:, 2:]
    centres = origins + box_regression[..., :2] * strides
    # The bound is far above any image; it keeps one wild early prediction from an infinite loss.
    sizes = box_regression[..., 2:].clamp(max=MAX_LOG_SIZE).exp() * strides
    return cxcywh_to_xyxy(torch.cat([centres, sizes], dim=-1))


def yolox_loss(
    heads: dict[str, Tensor], targets: Targets, *, with_l1: bool, options: LossOptions | None = None
) -> dict[str, Tensor]:
    """The loss of a batch: each part is summed over its points and divided by the number of foreground points.

    Args:
        heads: raw heads of the batch, with the grid under `_cells`.
        targets: of the batch.
        with_l1: adds the distance of the raw box numbers to the ideal ones, for the last epochs.
        options: changes of the class targets and of the box loss.

    Returns:
        Scalars `loss`, `loss_box`, `loss_objectness`, `loss_class` and, where asked for, `loss_l1`.

    Source: YOLOX, sec. 2.1; the weight 5 and the squared IoU as in the authors' reference.
    """
    options = LossOptions() if options is None else options
    raw = heads["box_regression"].float()  # (B, N, 4); the loss is in float32 under mixed precision too
    class_logits, objectness = heads["class_logits"].float(), heads["objectness"].float()
    cells = heads["_cells"]
    boxes = decode(raw, cells)
    padded = targets.padded(raw.device)
    points = cells[:, :2] + cells[:, 2:] / 2
    found = assign_simota(boxes.detach(), class_logits.detach(), objectness.detach(), padded, points, cells[:, 2])
    image, point = found.is_foreground.nonzero(as_tuple=True)  # (F,) each
    target_row = found.object_index[image, point]
    target_boxes = padded.boxes_xyxy[image, target_row]  # (F, 4)
    class_targets = found.iou[image, point, None] * sigmoid_class_targets(
        padded.class_ids[image, target_row], class_logits.shape[2], smoothing=options.label_smoothing
    )  # (F, C)
    num_foreground = max(1, len(image))
    parts = {
        "loss_box": BOX_WEIGHT * _box_loss(boxes[image, point], target_boxes, options).sum() / num_foreground,
        "loss_objectness": _bce_sum(objectness, found.is_foreground.float()) / num_foreground,
        "loss_class": _bce_sum(class_logits[image, point], class_targets) / num_foreground,
    }
    if with_l1:
        ideal = encode(target_boxes, cells[point])
        parts["loss_l1"] = (raw[image, point] - ideal).abs().sum() / num_foreground
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def _box_loss(boxes: Tensor, target_boxes: Tensor, options: LossOptions) -> Tensor:
    if options.box_loss is not None:
        return overlap_loss(boxes, target_boxes, kind=options.box_loss)
    return 1 - paired_overlap(boxes, target_boxes).square()


def encode(boxes_xyxy: Tensor, cells: Tensor) -> Tensor:
    """The raw numbers (F, 4) that decode to these boxes (F, 4) at these cells (F, 3)."""
    boxes = xyxy_to_cxcywh(boxes_xyxy)
    origins, strides = cells[:, :2], cells[:, 2:]
    return torch.cat([(boxes[:, :2] - origins) / strides, (boxes[:, 2:] / strides).clamp(min=1e-8).log()], dim=-1)


def _bce_sum(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")


class Yolox(DetectionModel):
    """The detector; raw heads before any activation, boxes as offsets to the grid."""

    family: ClassVar[str] = "yolox"
    supported_loss_options: ClassVar[frozenset[str]] = frozenset({"box_loss", "label_smoothing"})

    def __init__(self, *, variant: str, num_classes: int) -> None:
        super().__init__(variant=variant, num_classes=num_classes)
        self.with_l1 = False
        config = VARIANTS[variant]
        make_conv = make_conv_factory(depthwise=config.depthwise)
        self.backbone = CspDarknet(config, make_conv)
        self.neck = PathAggregation(
            tuple(int(channels * config.width) for channels in (256, 512, 1024)),
            num_blocks=round(3 * config.depth),
            make_conv=make_conv,
        )
        self.head = DecoupledHead(config, make_conv, num_classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        heads: dict[str, Tensor] = self.head(self.neck(*self.backbone(images)))
        if self.training:
            heads["_cells"] = grid_cells((images.shape[2], images.shape[3]), images.device)
        return heads

    def loss(self, heads: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        return yolox_loss(heads, targets, with_l1=self.with_l1, options=self.loss_options)

    def enter_final_phase(self) -> None:
        self.with_l1 = True

    def decode_spec(self, size_hw: tuple[int, int]) -> Grid:
        self.check_size(size_hw)
        return Grid(
            num_classes=self.num_classes,
            box_coding="yolox",
            levels=tuple(
                GridLevel(grid_hw=(size_hw[0] // stride, size_hw[1] // stride), stride=stride) for stride in STRIDES
            ),
            score_combination="multiply",
            nms=NmsSpec(),
        )

    def default_preprocess(self, size_hw: tuple[int, int]) -> Preprocess:
        return preset("yolox", size_hw)


def build(variant: str, num_classes: int) -> Yolox:
    """A YOLOX of that variant with random weights."""
    return Yolox(variant=variant, num_classes=num_classes)


# The authors' names to ours, applied in this order.
_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^backbone\.lateral_conv0\.", "neck.lateral_p5."),
        (r"^backbone\.C3_p4\.", "neck.top_down_p4."),
        (r"^backbone\.reduce_conv1\.", "neck.lateral_p4."),
        (r"^backbone\.C3_p3\.", "neck.top_down_p3."),
        (r"^backbone\.bu_conv2\.", "neck.downsample_p3."),
        (r"^backbone\.C3_n3\.", "neck.bottom_up_p4."),
        (r"^backbone\.bu_conv1\.", "neck.downsample_p4."),
        (r"^backbone\.C3_n4\.", "neck.bottom_up_p5."),
        (r"^backbone\.backbone\.stem\.", "backbone.stem."),
        (r"^backbone\.backbone\.dark2\.", "backbone.stages.0."),
        (r"^backbone\.backbone\.dark3\.", "backbone.stages.1."),
        (r"^backbone\.backbone\.dark4\.", "backbone.stages.2."),
        (r"^backbone\.backbone\.dark5\.", "backbone.stages.3."),
        (r"^head\.cls_convs\.", "head.class_convs."),
        (r"^head\.reg_convs\.", "head.box_convs."),
        (r"^head\.cls_preds\.", "head.class_logits."),
        (r"^head\.reg_preds\.", "head.box_regression."),
        (r"^head\.obj_preds\.", "head.objectness."),
        (r"\.m\.(\d+)\.", r".blocks.\1."),
        (r"\.dconv\.", ".depthwise."),
        (r"\.pconv\.", ".pointwise."),
    )
)


def import_checkpoint(state: StateDict, variant: str) -> ImportedWeights:
    """The weights of the authors' checkpoint under our names.

    Args:
        state: their state dict.
        variant: that it is of.

    Raises:
        CheckpointError: where it is not one of YOLOX.

    Source: the key names of the public files of release 0.1.0 and later.
    """
    class_head = state.get("head.cls_preds.0.weight")
    if class_head is None:
        raise CheckpointError(
            "checkpoint",
            expected=f"the tensors of {variant}, head.cls_preds.0.weight among them",
            got="others: " + ", ".join(list(state)[:10]),
            fix="pass the --model that it was trained as",
        )
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _RENAMES:
            name = pattern.sub(replacement, name)
        renamed[name] = tensor
    return ImportedWeights(state=renamed, num_classes=class_head.shape[0])
