"""RT-DETR: a DETR for boxes that must be fast; the encoder chooses the queries, the decoder looks at few places.

Source: Zhao et al., DETRs Beat YOLOs on Real-time Object Detection, CVPR 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.core.decode_spec import Queries
from boxwright.core.errors import CheckpointError
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import preset
from boxwright.models.common import small_backbone
from boxwright.models.common.attention import MultiHeadAttention
from boxwright.models.common.boxes import OverlapKind, cxcywh_to_xyxy, paired_overlap
from boxwright.models.common.checkpoint import StateDict
from boxwright.models.common.deformable_attention import DeformableAttention
from boxwright.models.common.denoising import spoil_objects
from boxwright.models.common.hybrid_encoder import NUM_LEVELS, HybridEncoder
from boxwright.models.common.registry import ImportedWeights
from boxwright.models.common.set_detector import LinearLayers, SetConfig, SetDetector, relative_targets
from boxwright.models.common.set_matching import MatchingCosts, match_sets, matched_box_losses
from boxwright.models.common.stage_widths import stage_widths
from boxwright.models.common.targets import Targets
from boxwright.models.common.transformers_names import LAYER_RULES, fuse_projections, rename_keys

IMPORTS = "the transformers package's RT-DETR with ResNet-18, -34, -50 and -101"
STRIDES = (8, 16, 32)
CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 1.0, 5.0, 2.0
MATCHING = MatchingCosts(class_weight=2.0, l1_weight=5.0, giou_weight=2.0)
MATCHING_ALPHA, MATCHING_GAMMA = 0.25, 2.0
VARIFOCAL_ALPHA, VARIFOCAL_GAMMA = 0.75, 2.0
PRIOR_PROBABILITY = 0.01
# Side of the box that every place of the finest level starts from, as a part of the input; doubled at each level.
_FIRST_SIDE = 0.05
# Places this near to the border start from no box of their own.
_BORDER = 0.01
_FAR = 1e4
_LOGIT_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class RtDetrConfig(SetConfig):
    """A variant; its queries are chosen by the encoder.

    Attributes:
        projected_first_stage: whether the first block of the backbone's first stage has a projected shortcut.
        encoder_width: of the encoder, where it is not `width`.
        encoder_feed_forward: likewise.
        expansion: width inside the encoder's fusion blocks, as a part of its width.
        num_points: that each head samples on each level.
        num_denoising: objects that are given spoilt in training, to be found again; 0 for none.
    """

    feed_forward: int = 1024
    num_queries: int = 300
    size_hw: tuple[int, int] = (640, 640)
    projected_first_stage: bool = False
    encoder_width: int | None = None
    encoder_feed_forward: int = 1024
    expansion: float = 1.0
    num_points: int = 4
    num_denoising: int = 100


VARIANTS: dict[str, RtDetrConfig] = {
    # Not the authors': the smallest that learns, for tests and first steps on a CPU.
    "rtdetr-pico": RtDetrConfig(
        backbone=small_backbone.NAME,
        width=64,
        num_heads=4,
        feed_forward=128,
        encoder_feed_forward=128,
        expansion=0.5,
        num_decoder_layers=2,
        num_queries=60,
        num_denoising=32,
        learning_rate=0.002,
        size_hw=(160, 160),
    ),
    "rtdetr-r18": RtDetrConfig(backbone="resnet18d", projected_first_stage=True, expansion=0.5, num_decoder_layers=3),
    "rtdetr-r34": RtDetrConfig(backbone="resnet34d", projected_first_stage=True, expansion=0.5, num_decoder_layers=4),
    "rtdetr-r50": RtDetrConfig(backbone="resnet50d"),
    "rtdetr-r101": RtDetrConfig(backbone="resnet101d", encoder_width=384, encoder_feed_forward=2048),
}


class _DecoderLayer(nn.Module):
    """Attention among the queries, attention to places about their boxes, then two linear layers."""

    def __init__(self, config: RtDetrConfig) -> None:
        super().__init__()
        width = config.width
        self.self_attn = MultiHeadAttention(width, config.num_heads)
        self.encoder_attn = DeformableAttention(
            width, config.num_heads, num_levels=NUM_LEVELS, num_points=config.num_points
        )
        self.linear1, self.linear2 = nn.Linear(width, config.feed_forward), nn.Linear(config.feed_forward, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(
        self,
        objects: Tensor,
        queries: Tensor,
        boxes: Tensor,
        memory: Tensor,
        grids_hw: list[tuple[int, int]],
        may_see: Tensor | None,
    ) -> Tensor:
        """Objects and queries (B, Q, W), their boxes (B, Q, 4), the map (B, S, W), to (B, Q, W)."""
        placed = objects + queries
        objects = self.norm1(objects + self.self_attn(placed, placed, objects, may_see))
        objects = self.norm2(objects + self.encoder_attn(objects + queries, boxes, memory, grids_hw))
        result: Tensor = self.norm3(objects + self.linear2(functional.relu(self.linear1(objects))))
        return result


class _Decoder(nn.Module):
    """Layers that each refine the boxes of the one before."""

    def __init__(self, config: RtDetrConfig, num_classes: int) -> None:
        super().__init__()
        width, count = config.width, config.num_decoder_layers
        self.layers = nn.ModuleList(_DecoderLayer(config) for _ in range(count))
        self.query_pos_head = LinearLayers(4, 2 * width, width)
        self.class_embed = nn.ModuleList(_class_layer(width, num_classes) for _ in range(count))
        self.bbox_embed = nn.ModuleList(_box_layers(width) for _ in range(count))

    def forward(
        self,
        objects: Tensor,
        boxes: Tensor,
        memory: Tensor,
        grids_hw: list[tuple[int, int]],
        may_see: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Boxes (B, Q, 4) and class logits (B, Q, C) after each layer."""
        all_boxes, all_logits = [], []
        for layer, to_classes, to_boxes in zip(self.layers, self.class_embed, self.bbox_embed, strict=True):
            objects = layer(objects, self.query_pos_head(boxes), boxes, memory, grids_hw, may_see)
            refined = (to_boxes(objects) + _logit(boxes)).sigmoid()
            all_boxes.append(refined)
            all_logits.append(to_classes(objects))
            boxes = refined.detach()
        return all_boxes, all_logits


class RtDetr(SetDetector):
    """The detector."""

    family: ClassVar[str] = "rtdetr"
    # Its classes learn overlaps, which are no labels to smooth.
    supported_loss_options: ClassVar[frozenset[str]] = frozenset({"box_loss"})

    def __init__(self, *, variant: str, num_classes: int) -> None:
        super().__init__(variant=variant, num_classes=num_classes)
        config = self.config = VARIANTS[variant]
        self.suggested_learning_rate = config.learning_rate
        self.backbone = timm.create_model(config.backbone, features_only=True, out_indices=(2, 3, 4), pretrained=False)
        if config.projected_first_stage:
            _project_first_shortcut(self.backbone)
        width, encoder_width = config.width, config.encoder_width or config.width
        self.encoder_input_proj = nn.ModuleList(
            _projection(channels, encoder_width) for channels in stage_widths(self.backbone)
        )
        self.encoder = HybridEncoder(
            encoder_width,
            num_heads=config.num_heads,
            feed_forward=config.encoder_feed_forward,
            expansion=config.expansion,
        )
        self.decoder_input_proj = nn.ModuleList(_projection(encoder_width, width) for _ in STRIDES)
        self.enc_output = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.enc_score_head = _class_layer(width, num_classes)
        self.enc_bbox_head = _box_layers(width)
        self.decoder = _Decoder(config, num_classes)
        self.denoising_class_embed = nn.Embedding(num_classes + 1, width, padding_idx=num_classes)  # of training alone

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        memory, grids_hw = self._encode(images)
        objects, first_boxes, first_logits = self._choose_queries(memory, grids_hw)
        boxes, logits = self.decoder(objects.detach(), first_boxes.detach(), memory, grids_hw)
        if not self.training:
            return {"box_regression": boxes[-1], "class_logits": logits[-1]}
        return _training_heads([first_boxes, *boxes], [first_logits, *logits], images)

    def training_loss(self, images: Tensor, targets: Targets, pixel_mask: Tensor | None = None) -> dict[str, Tensor]:
        """The loss of the chosen queries, and of those that are spoilt objects."""
        self.check_targets(targets)
        memory, grids_hw = self._encode(images)
        objects, first_boxes, first_logits = self._choose_queries(memory, grids_hw)
        objects, first = objects.detach(), first_boxes.detach()
        target_boxes, class_ids = relative_targets(targets, (images.shape[2], images.shape[3]), images.device)
        spoilt = spoil_objects(
            target_boxes,
            class_ids,
            num_classes=self.num_classes,
            num_spoilt=self.config.num_denoising,
            num_queries=objects.shape[1],
        )
        if spoilt is None:
            boxes, logits = self.decoder(objects, first, memory, grids_hw)
            return self.loss(_training_heads([first_boxes, *boxes], [first_logits, *logits], images), targets)
        count = spoilt.boxes.shape[1]
        given = torch.cat([self.denoising_class_embed(spoilt.class_ids), objects], dim=1)
        starts = torch.cat([spoilt.boxes, first], dim=1)
        boxes, logits = self.decoder(given, starts, memory, grids_hw, spoilt.may_see)
        own_boxes, own_logits = [part[:, count:] for part in boxes], [part[:, count:] for part in logits]
        parts = self.loss(_training_heads([first_boxes, *own_boxes], [first_logits, *own_logits], images), targets)
        denoising = torch.stack(
            [
                value
                for layer_boxes, layer_logits in zip(boxes, logits, strict=True)
                for value in _matched_loss(
                    layer_logits[:, :count],
                    layer_boxes[:, :count],
                    spoilt.matches,
                    target_boxes,
                    class_ids,
                    self.box_loss,
                ).values()
            ]
        ).sum()
        return {**parts, "denoising": denoising, "loss": parts["loss"] + denoising}

    def _encode(self, images: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
        """The map (B, S, W), the levels one after the other, and rows and columns of each."""
        levels = [project(level) for project, level in zip(self.encoder_input_proj, self.backbone(images), strict=True)]
        levels = [project(level) for project, level in zip(self.decoder_input_proj, self.encoder(levels), strict=True)]
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        return memory, [(level.shape[2], level.shape[3]) for level in levels]

    def _choose_queries(self, memory: Tensor, grids_hw: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        """The places of the map with the highest class score: features (B, Q, W), boxes (B, Q, 4), logits (B, Q, C)."""
        starts, is_inside = _starting_boxes(grids_hw)
        features = self.enc_output(memory * is_inside.to(memory))
        logits = self.enc_score_head(features)  # (B, S, C)
        boxes = self.enc_bbox_head(features) + starts.to(memory)
        count = min(self.config.num_queries, memory.shape[1])
        best = logits.amax(dim=2).topk(count, dim=1).indices[:, :, None]  # (B, Q, 1)
        chosen = [values.gather(1, best.expand(-1, -1, values.shape[2])) for values in (features, boxes, logits)]
        return chosen[0], chosen[1].sigmoid(), chosen[2]

    def set_loss(
        self, logits: Tensor, boxes: Tensor, target_boxes: list[Tensor], target_class_ids: list[Tensor]
    ) -> dict[str, Tensor]:
        matches = [
            match_sets(_focal_costs(own_logits, class_ids), own_boxes, objects, MATCHING)
            for own_logits, own_boxes, objects, class_ids in zip(
                logits, boxes, target_boxes, target_class_ids, strict=True
            )
        ]
        return _matched_loss(logits, boxes, matches, target_boxes, target_class_ids, self.box_loss)

    def decode_spec(self, size_hw: tuple[int, int]) -> Queries:
        self.check_size(size_hw)
        places = sum((size_hw[0] // stride) * (size_hw[1] // stride) for stride in STRIDES)
        return Queries(
            num_classes=self.num_classes,
            num_queries=min(self.config.num_queries, places),
            max_detections=self.config.num_queries,
            multi_label=True,
            scale_wh=(float(size_hw[1]), float(size_hw[0])),
        )

    def default_preprocess(self, size_hw: tuple[int, int]) -> Preprocess:
        return preset("stretch", size_hw)


def _projection(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


def _class_layer(width: int, num_classes: int) -> nn.Linear:
    layer = nn.Linear(width, num_classes)
    nn.init.constant_(layer.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
    return layer


def _box_layers(width: int) -> LinearLayers:
    """Three layers that change no box before they are trained."""
    result = LinearLayers(width, width, width, 4)
    last = result.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return result


def _project_first_shortcut(backbone: nn.Module) -> None:
    """Give the first block a 1x1 convolution in its shortcut, as RT-DETR's ResNet-18 and -34 have it and timm's not."""
    block = backbone.get_submodule("layer1.0")
    first = block.get_submodule("conv1")
    assert isinstance(first, nn.Conv2d)
    channels = first.out_channels
    block.downsample = nn.Sequential(
        nn.Identity(), nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
    )


def _logit(probabilities: Tensor) -> Tensor:
    """The inverse of the sigmoid, bounded."""
    inside = probabilities.clamp(0, 1)
    return (inside.clamp(min=_LOGIT_EPSILON) / (1 - inside).clamp(min=_LOGIT_EPSILON)).log()


def _starting_boxes(grids_hw: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """The logits of the box that each place of the map starts from (1, S, 4), and where it has one (1, S, 1)."""
    boxes = []
    for index, (rows, columns) in enumerate(grids_hw):
        y = (torch.arange(rows, dtype=torch.float32) + 0.5) / rows
        x = (torch.arange(columns, dtype=torch.float32) + 0.5) / columns
        side = torch.full((rows, columns), _FIRST_SIDE * 2**index)
        level = [x[None].expand(rows, columns), y[:, None].expand(rows, columns), side, side]
        boxes.append(torch.stack(level, dim=2).flatten(0, 1))
    places = torch.cat(boxes)[None]  # (1, S, 4)
    is_inside = ((places > _BORDER) & (places < 1 - _BORDER)).all(dim=2, keepdim=True)
    return torch.where(is_inside, (places / (1 - places)).log(), _FAR), is_inside


def _training_heads(boxes: list[Tensor], logits: list[Tensor], images: Tensor) -> dict[str, Tensor]:
    """What the loss needs, of the encoder's choice and all layers."""
    return {
        "box_regression": boxes[-1],
        "class_logits": logits[-1],
        "_early_boxes": torch.stack(boxes[:-1]),  # (L, B, Q, 4)
        "_early_logits": torch.stack(logits[:-1]),
        "_size_hw": torch.tensor(images.shape[-2:]),
    }


def _matched_loss(
    logits: Tensor,
    boxes: Tensor,
    matches: Sequence[tuple[Tensor, Tensor]],
    target_boxes: list[Tensor],
    target_class_ids: list[Tensor],
    box_loss: OverlapKind,
) -> dict[str, Tensor]:
    """The weighted parts of the loss of one layer whose queries answer for known objects, a mean over these."""
    wanted = torch.zeros_like(logits)
    found_boxes, wanted_boxes = [], []
    for row, (queries, matched) in enumerate(matches):
        found, objects = boxes[row, queries], target_boxes[row][matched]
        overlaps = paired_overlap(cxcywh_to_xyxy(found.detach()), cxcywh_to_xyxy(objects))
        wanted[row, queries, target_class_ids[row][matched]] = overlaps.to(wanted)
        found_boxes.append(found)
        wanted_boxes.append(objects)
    num_objects = max(sum(len(objects) for objects in wanted_boxes), 1)
    l1, overlap = matched_box_losses(torch.cat(found_boxes), torch.cat(wanted_boxes), kind=box_loss)
    return {
        "class": CLASS_WEIGHT * varifocal_loss(logits, wanted) / num_objects,
        "l1": L1_WEIGHT * l1,
        box_loss: GIOU_WEIGHT * overlap,
    }


def _focal_costs(logits: Tensor, class_ids: Tensor) -> Tensor:
    """What each query costs for the class of each object, (Q, M): the focal loss of a hit less that of a miss."""
    scores = logits.sigmoid()[:, class_ids]
    miss = (1 - MATCHING_ALPHA) * scores**MATCHING_GAMMA * -(1 - scores + 1e-8).log()
    hit = MATCHING_ALPHA * (1 - scores) ** MATCHING_GAMMA * -(scores + 1e-8).log()
    return hit - miss


def varifocal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy to scores that are overlaps; objects weigh by their overlap, the rest by the score it is given.

    Args:
        logits: (...,).
        wanted: (...,) 0 where there is no object.

    Returns:
        The sum, a scalar.

    Source: Zhang et al., VarifocalNet, CVPR 2021, eq. 2.
    """
    weights = VARIFOCAL_ALPHA * logits.detach().sigmoid() ** VARIFOCAL_GAMMA * (wanted == 0) + wanted
    return functional.binary_cross_entropy_with_logits(logits, wanted, weight=weights, reduction="sum")


def build(variant: str, num_classes: int) -> RtDetr:
    """An RT-DETR of that variant with random weights."""
    return RtDetr(variant=variant, num_classes=num_classes)


_STEM_CONVOLUTIONS, _STEM_NORMS = {"0": "conv1.0", "1": "conv1.3", "2": "conv1.6"}, ("conv1.1", "conv1.4", "bn1")
_FROM_TRANSFORMERS = (
    *(
        (rf"^model\.backbone\.model\.embedder\.embedder\.{index}\.convolution\.", f"backbone.{name}.")
        for index, name in _STEM_CONVOLUTIONS.items()
    ),
    *(
        (rf"^model\.backbone\.model\.embedder\.embedder\.{index}\.normalization\.", f"backbone.{name}.")
        for index, name in enumerate(_STEM_NORMS)
    ),
    *(
        (rf"^model\.backbone\.model\.encoder\.stages\.{index}\.layers\.", f"backbone.layer{index + 1}.")
        for index in range(4)
    ),
    *((rf"^(backbone\.layer.*)\.layer\.{index}\.convolution\.", rf"\1.conv{index + 1}.") for index in range(3)),
    *((rf"^(backbone\.layer.*)\.layer\.{index}\.normalization\.", rf"\1.bn{index + 1}.") for index in range(3)),
    (r"\.shortcut\.(1\.)?convolution\.", ".downsample.1."),
    (r"\.shortcut\.(1\.)?normalization\.", ".downsample.2."),
    (r"^(class|bbox)_embed\.", r"decoder.\1_embed."),
    (r"^model\.encoder\.encoder\.", "encoder.aifi."),
    (r"^model\.", ""),
    (r"^(encoder\..*)\.norm\.", r"\1.bn."),
    *LAYER_RULES,
)


def import_checkpoint(state: StateDict, variant: str) -> ImportedWeights:
    """The weights of the transformers package's files, old names and new.

    Raises:
        CheckpointError: where it is not one of RT-DETR.
    """
    renamed = fuse_projections(rename_keys(state, _FROM_TRANSFORMERS))
    class_layer = renamed.get("enc_score_head.weight")
    if class_layer is None:
        raise CheckpointError(
            "checkpoint",
            expected=f"the tensors of {variant}, model.enc_score_head.weight among them",
            got="others: " + ", ".join(list(state)[:10]),
            fix="pass the --model that it was trained as",
        )
    num_classes, width = class_layer.shape
    if "denoising_class_embed.weight" not in renamed:  # a model for use alone
        start = nn.Embedding(num_classes + 1, width, padding_idx=num_classes)
        renamed["denoising_class_embed.weight"] = start.weight.detach()
    return ImportedWeights(state=renamed, num_classes=num_classes)
