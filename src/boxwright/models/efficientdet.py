"""EfficientDet: an EfficientNet, a BiFPN and two shared heads, scaled together from D0 to D7.

Source: Tan et al., EfficientDet, CVPR 2020.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from boxwright.core.decode_spec import AnchorDeltas, AnchorLevel, NmsSpec
from boxwright.core.errors import CheckpointError
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import preset
from boxwright.models.common import small_backbone
from boxwright.models.common.anchor_assignment import assign_by_iou
from boxwright.models.common.anchor_deltas import decode_deltas, encode_deltas
from boxwright.models.common.bifpn import BN_EPS, NUM_LEVELS, BiFpn, Fusion, LevelNorm, Padding, SeparableConv
from boxwright.models.common.checkpoint import StateDict
from boxwright.models.common.class_targets import sigmoid_class_targets
from boxwright.models.common.dense_head import PRIOR_PROBABILITY, flatten_levels
from boxwright.models.common.feature_pyramid import pyramid_grids_hw
from boxwright.models.common.fitted_anchors import FittedAnchorModel
from boxwright.models.common.iou_losses import overlap_loss
from boxwright.models.common.registry import ImportedWeights
from boxwright.models.common.stage_widths import stage_widths
from boxwright.models.common.targets import Targets

IMPORTS = (
    "the effdet package's efficientdet_d0 to _d5 and tf_efficientdet_d0 to _d7 (_ap: --preprocess efficientdet-advprop)"
)
OCTAVE_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
ASPECTS_WH = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
ANCHORS_PER_CELL = len(OCTAVE_SCALES) * len(ASPECTS_WH)
POSITIVE_IOU = 0.5
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 1.5
HUBER_DELTA = 0.1
BOX_WEIGHT = 50.0


@dataclass(frozen=True, kw_only=True)
class EfficientDetConfig:
    """A variant.

    Attributes:
        backbone: name in timm.
        channels: of the pyramid and the heads.
        num_cells: of the BiFPN.
        head_depth: convolutions of a head before the last.
        padding: of the max-pools; the backbone brings its own.
        bias_before_norm: whether convolutions have a bias that normalisation makes redundant.
        fusion: how the BiFPN weighs what it merges.
        anchor_scale: the smallest anchor's side in strides.
        drop_path_rate: of the backbone in training.
        bn_momentum: of the BiFPN and the heads.
        learning_rate: see `DetectionModel.suggested_learning_rate`.
        size_hw: the usual input size.
    """

    backbone: str
    channels: int
    num_cells: int
    head_depth: int
    padding: Padding = "symmetric"
    bias_before_norm: bool = False
    fusion: Fusion = "fast"
    anchor_scale: float = 4.0
    drop_path_rate: float = 0.2
    bn_momentum: float = 0.01
    learning_rate: float | None = None
    size_hw: tuple[int, int] = (512, 512)


# Backbone, channels, cells, depth of the heads and side of the input. Source: EfficientDet, table 1.
_SCALING = (
    ("efficientnet_b0", 64, 3, 3, 512),
    ("efficientnet_b1", 88, 4, 3, 640),
    ("efficientnet_b2", 112, 5, 3, 768),
    ("efficientnet_b3", 160, 6, 4, 896),
    ("efficientnet_b4", 224, 7, 4, 1024),
    ("efficientnet_b5", 288, 7, 4, 1280),
    ("efficientnet_b6", 384, 8, 5, 1280),
    ("efficientnet_b6", 384, 8, 5, 1536),
)


def _scaled(phi: int, *, tensorflow: bool) -> EfficientDetConfig:
    """D0 to D7, with PyTorch's padding or as the authors' TensorFlow code has it."""
    backbone, channels, num_cells, head_depth, side = _SCALING[phi]
    return EfficientDetConfig(
        backbone=f"tf_{backbone}" if tensorflow else backbone,
        channels=channels,
        num_cells=num_cells,
        head_depth=head_depth,
        # Of the forms with PyTorch's padding, effdet leaves these two from D4 on as TensorFlow has them.
        padding="same" if tensorflow or phi >= 4 else "symmetric",
        bias_before_norm=tensorflow or phi >= 4,
        fusion="sum" if phi >= 6 else "fast",  # sec. 5.1: training is more stable
        anchor_scale=5.0 if phi == 7 else 4.0,
        drop_path_rate=0.1 if phi == 0 and not tensorflow else 0.2,
        size_hw=(side, side),
    )


VARIANTS: dict[str, EfficientDetConfig] = {
    # Not the authors': the smallest useful one, for tests and first steps on a CPU.
    "efficientdet-pico": EfficientDetConfig(
        backbone=small_backbone.NAME,
        channels=40,
        num_cells=2,
        head_depth=2,
        anchor_scale=3.0,
        drop_path_rate=0.0,
        bn_momentum=0.1,
        learning_rate=0.004,
        size_hw=(256, 256),
    ),
    **{f"efficientdet-d{phi}": _scaled(phi, tensorflow=False) for phi in range(len(_SCALING))},
    **{f"tf-efficientdet-d{phi}": _scaled(phi, tensorflow=True) for phi in range(len(_SCALING))},
}


class _Head(nn.Module):
    """Convolutions that all levels share, each followed by a normalisation of the level's own."""

    def __init__(self, config: EfficientDetConfig, outputs: int, *, bias: float = 0.0) -> None:
        super().__init__()
        channels = config.channels
        self.convs = nn.ModuleList(
            SeparableConv(channels, channels, bias=config.bias_before_norm) for _ in range(config.head_depth)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(LevelNorm(channels, eps=BN_EPS, momentum=config.bn_momentum) for _ in range(NUM_LEVELS))
            for _ in range(config.head_depth)
        )
        self.predict = SeparableConv(channels, outputs, bias=True)
        for conv in [*self.convs, self.predict]:
            assert isinstance(conv, SeparableConv)
            nn.init.normal_(conv.depthwise.weight, std=1 / 3)  # one over the root of what goes into a sum
            nn.init.normal_(conv.pointwise.weight, std=1 / math.sqrt(channels))
            if conv.pointwise.bias is not None:
                nn.init.zeros_(conv.pointwise.bias)
        assert self.predict.pointwise.bias is not None
        nn.init.constant_(self.predict.pointwise.bias, bias)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        maps = []
        for place, features in enumerate(levels):
            for conv, norms in zip(self.convs, self.norms, strict=True):
                assert isinstance(norms, nn.ModuleList)
                features = functional.silu(norms[place](conv(features)))
            maps.append(self.predict(features))
        return maps


class EfficientDet(FittedAnchorModel):
    """The detector; raw heads are logits and deltas of nine anchors a cell on P3 to P7."""

    family: ClassVar[str] = "efficientdet"
    largest_stride: ClassVar[int] = 128
    nms_iou_threshold: ClassVar[float] = 0.5
    suggested_augmentation: ClassVar[Mapping[str, float]] = {"mosaic": 0.0, "mixup": 0.0}
    supported_loss_options: ClassVar[frozenset[str]] = frozenset({"box_loss", "label_smoothing"})

    def __init__(self, *, variant: str, num_classes: int) -> None:
        super().__init__(variant=variant, num_classes=num_classes)
        self.config = config = VARIANTS[variant]
        self.suggested_learning_rate = config.learning_rate
        self.backbone = timm.create_model(
            config.backbone,
            features_only=True,
            out_indices=(2, 3, 4),
            pretrained=False,
            drop_path_rate=config.drop_path_rate,
        )
        self.neck = BiFpn(
            stage_widths(self.backbone),
            config.channels,
            num_cells=config.num_cells,
            padding=config.padding,
            fusion=config.fusion,
            bias=config.bias_before_norm,
            bn_momentum=config.bn_momentum,
        )
        prior_bias = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
        self.class_head = _Head(config, ANCHORS_PER_CELL * num_classes, bias=prior_bias)
        self.box_head = _Head(config, ANCHORS_PER_CELL * 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels = self.neck(self.backbone(images))
        heads = {
            "box_regression": flatten_levels(self.box_head(levels), 4),  # (B, N, 4)
            "class_logits": flatten_levels(self.class_head(levels), self.num_classes),  # (B, N, C)
        }
        if self.training:
            heads["_size_hw"] = torch.tensor(images.shape[-2:])
        return heads

    def loss(self, heads: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        height, width = heads["_size_hw"].tolist()
        all_logits, all_deltas = heads["class_logits"].float(), heads["box_regression"].float()
        anchors = torch.from_numpy(self.decode_spec((height, width)).priors()).to(all_logits.device)
        class_loss, box_loss, num_positive = all_logits.new_zeros(()), all_logits.new_zeros(()), 0
        for logits, deltas, boxes, class_ids in zip(
            all_logits, all_deltas, targets.boxes_xyxy, targets.class_ids, strict=True
        ):
            boxes, class_ids = boxes.to(anchors.device), class_ids.to(anchors.device)
            assigned = assign_by_iou(anchors, boxes, foreground_iou=POSITIVE_IOU, background_iou=POSITIVE_IOU)
            positive = assigned >= 0
            wanted = torch.zeros_like(logits)
            wanted[positive] = sigmoid_class_targets(
                class_ids[assigned[positive]], self.num_classes, smoothing=self.loss_options.label_smoothing
            )
            class_loss = class_loss + sigmoid_focal_loss(
                logits, wanted, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA, reduction="sum"
            )
            box_loss = box_loss + self._box_loss(deltas[positive], anchors[positive], boxes[assigned[positive]])
            num_positive += int(positive.sum())
        # The authors divide by one more than there are, which spares images without objects a case of their own.
        parts = {"class": class_loss / (num_positive + 1), "box": box_loss / (num_positive + 1)}
        return {**parts, "loss": parts["class"] + parts["box"]}

    def _box_loss(self, deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        kind = self.loss_options.box_loss
        if kind is not None:
            # The weight of 50 makes up for the narrow Huber loss; an overlap is of the classes' size by itself.
            return overlap_loss(decode_deltas(deltas, anchors), boxes, kind=kind).sum()
        wanted = encode_deltas(boxes, anchors)
        return BOX_WEIGHT / 4 * functional.huber_loss(deltas, wanted, delta=HUBER_DELTA, reduction="sum")

    @property
    def anchors_per_level(self) -> tuple[int, ...]:
        return (ANCHORS_PER_CELL,) * NUM_LEVELS

    def decode_spec(self, size_hw: tuple[int, int]) -> AnchorDeltas:
        self.check_size(size_hw)
        return AnchorDeltas(
            num_classes=self.num_classes,
            levels=self.with_fitted_anchors(anchor_levels(size_hw, self.config.anchor_scale)),
            multi_label=True,
            clip_to_image=True,
            max_detections=100,
            nms=NmsSpec(pre_nms_top_k=5000),
        )

    def default_preprocess(self, size_hw: tuple[int, int]) -> Preprocess:
        return preset("efficientdet", size_hw)


def anchor_levels(size_hw: tuple[int, int], anchor_scale: float) -> tuple[AnchorLevel, ...]:
    """Three sizes by three shapes about the middle of every cell of P3 to P7."""
    levels = []
    for rows, columns in pyramid_grids_hw(size_hw):
        stride_hw = (size_hw[0] / rows, size_hw[1] / columns)
        cells = []
        for octave in OCTAVE_SCALES:
            for aspect_w, aspect_h in ASPECTS_WH:
                half_width = anchor_scale * stride_hw[1] * octave * aspect_w / 2
                half_height = anchor_scale * stride_hw[0] * octave * aspect_h / 2
                cells.append((-half_width, -half_height, half_width, half_height))
        levels.append(
            AnchorLevel(grid_hw=(rows, columns), stride_hw=stride_hw, cell_boxes_xyxy=tuple(cells), offset=0.5)
        )
    return tuple(levels)


def build(variant: str, num_classes: int) -> EfficientDet:
    """An EfficientDet of that variant with random weights."""
    return EfficientDet(variant=variant, num_classes=num_classes)


# The names of effdet to ours, applied in this order.
_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^fpn\.resample\.3\.conv\.", "neck.project_p6."),
        (r"^fpn\.cell\.(\d+)\.fnode\.(\d+)\.", r"neck.cells.\1.nodes.\2."),
        (r"\.combine\.edge_weights$", ".weights"),
        (r"\.combine\.resample\.\d+\.conv\.", ".project."),
        (r"\.after_combine\.conv\.bn\.", ".norm."),
        (r"\.after_combine\.conv\.", ".conv."),
        (r"^(class|box)_net\.conv_rep\.", r"\1_head.convs."),
        (r"^(class|box)_net\.bn_rep\.(\d+)\.(\d+)\.bn\.", r"\1_head.norms.\2.\3."),
        (r"^(class|box)_net\.predict\.", r"\1_head.predict."),
        (r"^(neck\..*|.*_head\..*)\.conv_dw\.", r"\1.depthwise."),
        (r"^(neck\..*|.*_head\..*)\.conv_pw\.", r"\1.pointwise."),
        (r"^(neck\.(?:project_p6|.*\.project))\.bn\.", r"\1.norm."),
    )
)


def import_checkpoint(state: StateDict, variant: str) -> ImportedWeights:
    """The weights of effdet's checkpoint under our names, its boxes turned from y, x, h, w to x, y, w, h.

    Effdet's classes are COCO's category numbers 1 to 90.

    Raises:
        CheckpointError: where it is not one of EfficientDet.

    Source: the key names of effdet 0.4.1.
    """
    class_layer, box_layer = state.get("class_net.predict.conv_pw.weight"), "box_net.predict.conv_pw."
    if class_layer is None or class_layer.shape[0] % ANCHORS_PER_CELL or f"{box_layer}weight" not in state:
        raise CheckpointError(
            "checkpoint",
            expected=f"the tensors of {variant}, class_net.predict.conv_pw.weight among them",
            got="others: " + ", ".join(list(state)[:10]),
            fix="pass the --model that it was trained as",
        )
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(box_layer):
            by_anchor = tensor.reshape(-1, 4, *tensor.shape[1:])  # (A, 4, ...)
            tensor = by_anchor[:, [1, 0, 3, 2]].reshape(tensor.shape)
        for pattern, replacement in _RENAMES:
            name = pattern.sub(replacement, name)
        renamed[name] = tensor
    return ImportedWeights(state=renamed, num_classes=class_layer.shape[0] // ANCHORS_PER_CELL)
