"""CenterNet: objects are the peaks of a heat map, with a size and an offset at each; no anchors and no NMS.

Source: Zhou et al., Objects as Points, arXiv:1904.07850.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import timm
import torch
from torch import Tensor, nn

from boxwright.core.decode_spec import GridLevel, Peaks
from boxwright.core.errors import CheckpointError
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import preset
from boxwright.models.common import small_backbone
from boxwright.models.common.boxes import cxcywh_to_xyxy
from boxwright.models.common.checkpoint import StateDict
from boxwright.models.common.dense_head import flatten_levels
from boxwright.models.common.detector import DetectionModel
from boxwright.models.common.heatmap import (
    RadiusRule,
    keep_peaks,
    penalty_reduced_focal_loss,
    splat_heatmap,
    splat_radii,
)
from boxwright.models.common.iou_losses import overlap_loss
from boxwright.models.common.registry import ImportedWeights
from boxwright.models.common.stage_widths import stage_widths
from boxwright.models.common.targets import Targets
from boxwright.models.common.upsampling_necks import AggregationNeck, DeconvolutionNeck

IMPORTS = "the authors' ctdet files without deformable convolutions (--arch res_18 to res_101 and dlav0_34)"
STRIDE = 4
SIZE_WEIGHT = 0.1
# The score of an untrained heat map: a tenth. Source: the authors' code, which says -2.19.
HEATMAP_BIAS = -2.19
# The side of an untrained box in cells: 32 pixels, at which COCO's medium objects begin.
SIZE_BIAS = 8.0
RESNET_STAGES = (4,)  # stride 32
PYRAMID_STAGES = (1, 2, 3, 4)  # strides 4 to 32
DLA_STAGES = (2, 3, 4, 5)  # likewise; timm counts DLA's from stride 1


@dataclass(frozen=True, kw_only=True)
class CenterNetConfig:
    """A variant.

    Attributes:
        backbone: name in timm.
        stages: of the backbone, as timm counts them, that the neck gets.
        neck: transposed convolutions on the last stage, or deep aggregation of all.
        neck_channels: after each transposed convolution, or of each aggregated level from the finest.
        head_channels: between a head's two convolutions.
        radius: of the splats.
        learning_rate: see `DetectionModel.suggested_learning_rate`.
        size_hw: the usual input size.
    """

    backbone: str
    stages: tuple[int, ...] = RESNET_STAGES
    neck: Literal["deconvolution", "aggregation"] = "deconvolution"
    neck_channels: tuple[int, ...] = (256, 256, 256)
    head_channels: int = 64
    radius: RadiusRule = "public"
    learning_rate: float | None = None
    size_hw: tuple[int, int] = (512, 512)


VARIANTS: dict[str, CenterNetConfig] = {
    # Not the authors': the smallest useful one, for tests and first steps on a CPU.
    "centernet-pico": CenterNetConfig(
        backbone=small_backbone.NAME,
        stages=PYRAMID_STAGES,
        neck="aggregation",
        neck_channels=(24, 24, 32),
        head_channels=32,
        learning_rate=0.003,
        size_hw=(256, 256),
    ),
    "centernet-r18": CenterNetConfig(backbone="resnet18"),
    "centernet-r34": CenterNetConfig(backbone="resnet34"),
    "centernet-r50": CenterNetConfig(backbone="resnet50"),
    "centernet-r101": CenterNetConfig(backbone="resnet101"),
    "centernet-dla34": CenterNetConfig(
        backbone="dla34", stages=DLA_STAGES, neck="aggregation", neck_channels=(64, 128, 256), head_channels=256
    ),
}


class CenterNet(DetectionModel):
    """The detector; at every cell of a map of stride 4 the offset of a centre, a size in cells, and class logits."""

    family: ClassVar[str] = "centernet"
    suggested_augmentation: ClassVar[Mapping[str, float]] = {"mosaic": 0.0, "mixup": 0.0}
    supported_loss_options: ClassVar[frozenset[str]] = frozenset({"box_loss", "label_smoothing"})

    def __init__(self, *, variant: str, num_classes: int) -> None:
        super().__init__(variant=variant, num_classes=num_classes)
        self.config = VARIANTS[variant]
        self.suggested_learning_rate = self.config.learning_rate
        self.backbone = timm.create_model(
            self.config.backbone, features_only=True, out_indices=self.config.stages, pretrained=False
        )
        widths = stage_widths(self.backbone)
        self.neck: DeconvolutionNeck | AggregationNeck
        if self.config.neck == "deconvolution":
            self.neck = DeconvolutionNeck(widths[-1], self.config.neck_channels)
        else:
            self.neck = AggregationNeck(widths, self.config.neck_channels)
        self.heatmap, self.offset, self.size = self._head(num_classes), self._head(2), self._head(2)
        _start_at(self.heatmap[-1], bias=HEATMAP_BIAS)
        _start_at(self.offset[-1], bias=0.5, deviation=0.001)  # the middle of the cell
        _start_at(self.size[-1], bias=SIZE_BIAS, deviation=0.001)

    def _head(self, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(self.neck.out_channels, self.config.head_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.config.head_channels, outputs, 1),
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.neck(self.backbone(images))  # (B, channels, H/4, W/4)
        logits = self.heatmap(features)
        boxes = torch.cat([self.offset(features), self.size(features)], dim=1)  # (B, 4, H/4, W/4)
        heads = {
            "box_regression": flatten_levels([boxes], 4),  # (B, N, 4)
            # The loss is of the whole map.
            "class_logits": flatten_levels([logits if self.training else keep_peaks(logits)], self.num_classes),
        }
        if self.training:
            heads["_size_hw"] = torch.tensor(images.shape[-2:])
        return heads

    def loss(self, heads: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        height, width = heads["_size_hw"].tolist()
        grid_hw = (height // STRIDE, width // STRIDE)
        logits, boxes = heads["class_logits"].float(), heads["box_regression"].float()
        heatmaps, found, wanted = [], [], []
        for row, (boxes_xyxy, class_ids) in enumerate(zip(targets.boxes_xyxy, targets.class_ids, strict=True)):
            heatmap, index, values = self._targets(boxes_xyxy.to(logits.device), class_ids.to(logits.device), grid_hw)
            heatmaps.append(heatmap.flatten(1).t())  # (N, C)
            found.append(boxes[row, index])  # (M, 4)
            wanted.append(values)
        smoothing = self.loss_options.label_smoothing
        parts = {
            "heatmap": penalty_reduced_focal_loss(logits, torch.stack(heatmaps), label_smoothing=smoothing),
            **self._box_losses(torch.cat(found), torch.cat(wanted)),
        }
        return {**parts, "loss": torch.stack(list(parts.values())).sum()}

    def _box_losses(self, found: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """Of what the objects' cells hold (M, 4) and are to hold: offsets and sizes in cells."""
        differences = (found - wanted).abs()
        parts = {"offset": differences[:, :2].sum() / max(differences[:, :2].numel(), 1)}
        kind = self.loss_options.box_loss
        if kind is None:
            parts["size"] = SIZE_WEIGHT * differences[:, 2:].sum() / max(differences[:, 2:].numel(), 1)
        else:
            # Where the cells lie is no matter, since both boxes are of the same one.
            losses = overlap_loss(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted), kind=kind)
            parts["box"] = losses.sum() / max(len(losses), 1)
        return parts

    def _targets(
        self, boxes_xyxy: Tensor, class_ids: Tensor, grid_hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The heat map (C, rows, columns), the cell of each object (M,), and what it is to hold (M, 4)."""
        bounds = torch.tensor([grid_hw[1], grid_hw[0]] * 2, device=boxes_xyxy.device, dtype=torch.float32)
        boxes = (boxes_xyxy / STRIDE).clamp(min=0).minimum(bounds)
        sizes_wh = boxes[:, 2:] - boxes[:, :2]
        is_object = (sizes_wh > 0).all(dim=1)
        boxes, sizes_wh, class_ids = boxes[is_object], sizes_wh[is_object], class_ids[is_object]
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        cells_xy = centres.floor().minimum(bounds[:2] - 1)
        radii = splat_radii(sizes_wh, rule=self.config.radius)
        heatmap = splat_heatmap(cells_xy, radii, class_ids, num_classes=self.num_classes, grid_hw=grid_hw)
        index = (cells_xy[:, 1] * grid_hw[1] + cells_xy[:, 0]).long()
        return heatmap, index, torch.cat([centres - cells_xy, sizes_wh], dim=1)

    def decode_spec(self, size_hw: tuple[int, int]) -> Peaks:
        self.check_size(size_hw)
        level = GridLevel(grid_hw=(size_hw[0] // STRIDE, size_hw[1] // STRIDE), stride=float(STRIDE))
        # The authors keep the best 100 of all classes and places.
        return Peaks(num_classes=self.num_classes, levels=(level,), multi_label=True, max_detections=100)

    def default_preprocess(self, size_hw: tuple[int, int]) -> Preprocess:
        return preset("centernet", size_hw)


def _start_at(layer: nn.Module, *, bias: float, deviation: float | None = None) -> None:
    """What a last layer says before it has learned: its bias, and weights of that deviation where given."""
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    if deviation is not None:
        nn.init.normal_(layer.weight, std=deviation)


def build(variant: str, num_classes: int) -> CenterNet:
    """A CenterNet of that variant with random weights."""
    return CenterNet(variant=variant, num_classes=num_classes)


def _aggregation_stage(match: re.Match[str]) -> str:
    """`dla_up.ida_1.node_2.` is the second node of the second stage; what carries 0 is the stage's own level."""
    stage, part, place = match[1], match[2], int(match[3])
    if place == 0:
        return f"neck.stages.{stage}.project."
    ours = {"proj": "project", "up": "enlarge", "node": "merge"}[part]
    return f"neck.stages.{stage}.nodes.{place - 1}.{ours}."


# The authors' names to ours, the first that fits.
_RENAMES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"^hm\."), "heatmap."),
    (re.compile(r"^wh\."), "size."),
    (re.compile(r"^reg\."), "offset."),
    (re.compile(r"^deconv_layers\."), "neck.layers."),
    (re.compile(r"^dla_up\.ida_(\d+)\.(proj|up|node)_(\d+)\."), _aggregation_stage),
    (re.compile(r"^base\."), "backbone."),
    (re.compile(r"^(?=(conv1|bn1|layer[1-4])\.)"), "backbone."),
)
# Parts of the authors' DLA that its forward pass never reaches: the classifier, and the projections of nested trees.
_UNUSED = re.compile(r"^base\.(fc|level[34]\.project)\.")


def import_checkpoint(state: StateDict, variant: str) -> ImportedWeights:
    """The weights of the authors' checkpoint under our names.

    Args:
        state: their state dict.
        variant: that it is of.

    Raises:
        CheckpointError: where it is not one of CenterNet, or has deformable convolutions.

    Source: the key names of the authors' code, `--arch res_*` and `--arch dlav0_34`.
    """
    deformable = [name for name in state if ".conv_offset_mask." in name]
    if deformable:
        raise CheckpointError(
            "checkpoint",
            expected="ordinary convolutions alone (--arch res_* or dlav0_34): deformable ones exist on no engine "
            "that Boxwright exports to",
            got=f"{deformable[0]} and others" if len(deformable) > 1 else deformable[0],
            fix="train the variant without them",
        )
    class_layer = state.get("hm.2.weight")
    if class_layer is None:
        raise CheckpointError(
            "checkpoint",
            expected=f"the tensors of {variant}, hm.2.weight among them",
            got="others: " + ", ".join(list(state)[:10]),
            fix="pass the --model that it was trained as",
        )
    renamed = {_rename(name): tensor for name, tensor in state.items() if not _UNUSED.match(name)}
    return ImportedWeights(state=renamed, num_classes=class_layer.shape[0])


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMES:
        renamed, count = pattern.subn(replacement, name)
        if count:
            return renamed
    return name
