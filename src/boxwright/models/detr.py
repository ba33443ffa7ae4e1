"""DETR: a transformer turns learned queries into a set of objects, without anchors and without NMS.

Source: Carion et al., End-to-End Object Detection with Transformers, ECCV 2020.
"""

from __future__ import annotations

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
from boxwright.models.common.checkpoint import StateDict
from boxwright.models.common.class_targets import smoothed_cross_entropy
from boxwright.models.common.position_encoding import sine_encoding
from boxwright.models.common.registry import ImportedWeights
from boxwright.models.common.set_detector import LinearLayers, SetConfig, SetDetector
from boxwright.models.common.set_matching import MatchingCosts, match_sets, matched_box_losses
from boxwright.models.common.stage_widths import stage_widths
from boxwright.models.common.transformers_names import LAYER_RULES, fuse_projections, rename_keys

IMPORTS = (
    "facebookresearch's DETR files and the transformers package's DETR, with ResNet-50 and -101, with and without DC5"
)
CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 1.0, 5.0, 2.0
# Most queries find nothing; their class loss counts a tenth.
BACKGROUND_WEIGHT = 0.1


@dataclass(frozen=True, kw_only=True)
class DetrConfig(SetConfig):
    """A variant.

    Attributes:
        stride: of the map that the transformer sees; 16 of a ResNet's last stage means dilation (DC5).
        stage: of the backbone that gives the map.
        num_encoder_layers: each an attention over the map.
        dropout: in training.
    """

    stride: int = 32
    stage: int = 4
    num_encoder_layers: int = 6
    dropout: float = 0.1


VARIANTS: dict[str, DetrConfig] = {
    # Not the authors': the smallest that learns, for tests and first steps on a CPU.
    "detr-pico": DetrConfig(
        backbone=small_backbone.NAME,
        stride=16,
        stage=3,
        width=64,
        num_heads=4,
        feed_forward=128,
        num_encoder_layers=1,
        num_decoder_layers=3,
        num_queries=24,
        dropout=0.0,
        learning_rate=0.002,
        size_hw=(160, 160),
    ),
    "detr-r50": DetrConfig(backbone="resnet50"),
    "detr-r101": DetrConfig(backbone="resnet101"),
    "detr-r50-dc5": DetrConfig(backbone="resnet50", stride=16),
    "detr-r101-dc5": DetrConfig(backbone="resnet101", stride=16),
}


class _EncoderLayer(nn.Module):
    """Attention over the map, then two linear layers."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        width = config.width
        self.self_attn = MultiHeadAttention(width, config.num_heads, dropout=config.dropout)
        self.linear1 = nn.Linear(width, config.feed_forward)
        self.linear2 = nn.Linear(config.feed_forward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: Tensor, positions: Tensor) -> Tensor:
        """Both (B, S, W), to (B, S, W)."""
        placed = features + positions
        features = self.norm1(features + self.dropout(self.self_attn(placed, placed, features)))
        hidden = self.linear2(self.dropout(functional.relu(self.linear1(features))))
        result: Tensor = self.norm2(features + self.dropout(hidden))
        return result


class _DecoderLayer(nn.Module):
    """Attention among the queries, attention to the map, then two linear layers."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        width = config.width
        self.self_attn = MultiHeadAttention(width, config.num_heads, dropout=config.dropout)
        self.multihead_attn = MultiHeadAttention(width, config.num_heads, dropout=config.dropout)
        self.linear1 = nn.Linear(width, config.feed_forward)
        self.linear2 = nn.Linear(config.feed_forward, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, objects: Tensor, queries: Tensor, memory: Tensor, placed_memory: Tensor) -> Tensor:
        """Objects and queries (B, Q, W), the map (B, S, W) without and with positions, to (B, Q, W)."""
        placed = objects + queries
        objects = self.norm1(objects + self.dropout(self.self_attn(placed, placed, objects)))
        found = self.multihead_attn(objects + queries, placed_memory, memory)
        objects = self.norm2(objects + self.dropout(found))
        hidden = self.linear2(self.dropout(functional.relu(self.linear1(objects))))
        result: Tensor = self.norm3(objects + self.dropout(hidden))
        return result


class _Encoder(nn.Module):
    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_EncoderLayer(config) for _ in range(config.num_encoder_layers))

    def forward(self, features: Tensor, positions: Tensor) -> Tensor:
        for layer in self.layers:
            features = layer(features, positions)
        return features


class _Decoder(nn.Module):
    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_DecoderLayer(config) for _ in range(config.num_decoder_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, queries: Tensor, memory: Tensor, positions: Tensor) -> list[Tensor]:
        """What each layer makes of the queries, (B, Q, W) each, the last layer's last."""
        objects, placed_memory, results = torch.zeros_like(queries), memory + positions, []
        for layer in self.layers:
            objects = layer(objects, queries, memory, placed_memory)
            results.append(self.norm(objects))
        return results


class Detr(SetDetector):
    """The detector; its keys are those of facebookresearch's but for the backbone's prefix.

    All of a batch's images fill the whole input: what letterboxing pads is a part of the map, and there is no mask.
    """

    family: ClassVar[str] = "detr"
    supported_loss_options: ClassVar[frozenset[str]] = frozenset({"box_loss", "label_smoothing"})

    def __init__(self, *, variant: str, num_classes: int) -> None:
        super().__init__(variant=variant, num_classes=num_classes)
        config = self.config = VARIANTS[variant]
        self.suggested_learning_rate = config.learning_rate
        self.backbone = timm.create_model(
            config.backbone,
            features_only=True,
            out_indices=(config.stage,),
            output_stride=config.stride if config.stage == 4 else 32,
            pretrained=False,
        )
        self.input_proj = nn.Conv2d(stage_widths(self.backbone)[-1], config.width, 1)
        self.transformer = nn.ModuleDict({"encoder": _Encoder(config), "decoder": _Decoder(config)})
        for weight in self.transformer.parameters():
            if weight.dim() > 1:
                nn.init.xavier_uniform_(weight)
        self.query_embed = nn.Embedding(config.num_queries, config.width)
        self.class_embed = nn.Linear(config.width, num_classes + 1)
        self.bbox_embed = LinearLayers(config.width, config.width, config.width, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.input_proj(self.backbone(images)[-1])  # (B, W, h, w)
        batch, width, rows, columns = features.shape
        positions = sine_encoding((rows, columns), width).to(features)[None]  # (1, S, W)
        memory = self.transformer["encoder"](features.flatten(2).transpose(1, 2), positions)  # (B, S, W)
        queries = self.query_embed.weight[None].expand(batch, -1, -1)  # (B, Q, W)
        layers = self.transformer["decoder"](queries, memory, positions)
        heads = {"box_regression": self._boxes(layers[-1]), "class_logits": self.class_embed(layers[-1])}
        if self.training:
            early = torch.stack(layers[:-1])  # (L - 1, B, Q, W)
            heads["_early_boxes"], heads["_early_logits"] = self._boxes(early), self.class_embed(early)
            heads["_size_hw"] = torch.tensor(images.shape[-2:])
        return heads

    def _boxes(self, objects: Tensor) -> Tensor:
        """(..., Q, W) to centre, width and height (..., Q, 4) relative to the input."""
        boxes: Tensor = self.bbox_embed(objects).sigmoid()
        return boxes

    def set_loss(
        self, logits: Tensor, boxes: Tensor, target_boxes: list[Tensor], target_class_ids: list[Tensor]
    ) -> dict[str, Tensor]:
        costs = MatchingCosts(class_weight=CLASS_WEIGHT, l1_weight=L1_WEIGHT, giou_weight=GIOU_WEIGHT)
        wanted = torch.full(logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device)
        found_boxes, wanted_boxes = [], []
        for row, (objects, class_ids) in enumerate(zip(target_boxes, target_class_ids, strict=True)):
            class_costs = -logits[row].softmax(dim=1)[:, class_ids]  # (Q, M)
            queries, matched = match_sets(class_costs, boxes[row], objects, costs)
            wanted[row, queries] = class_ids[matched]
            found_boxes.append(boxes[row, queries])
            wanted_boxes.append(objects[matched])
        weights = torch.ones(self.num_classes + 1, device=logits.device)
        weights[-1] = BACKGROUND_WEIGHT
        l1, overlap = matched_box_losses(torch.cat(found_boxes), torch.cat(wanted_boxes), kind=self.box_loss)
        labels, smoothing = wanted.flatten(), self.loss_options.label_smoothing
        is_object = labels < self.num_classes
        losses = smoothed_cross_entropy(logits.flatten(0, 1), labels, is_object, smoothing=smoothing)
        return {
            "class": CLASS_WEIGHT * (weights[labels] * losses).sum() / weights[labels].sum(),
            "l1": L1_WEIGHT * l1,
            self.box_loss: GIOU_WEIGHT * overlap,
        }

    def decode_spec(self, size_hw: tuple[int, int]) -> Queries:
        self.check_size(size_hw)
        return Queries(
            num_classes=self.num_classes,
            num_queries=self.config.num_queries,
            max_detections=self.config.num_queries,
            score_activation="softmax",
            background_class=self.num_classes,
            scale_wh=(float(size_hw[1]), float(size_hw[0])),
        )

    def default_preprocess(self, size_hw: tuple[int, int]) -> Preprocess:
        return preset("imagenet-letterbox", size_hw)


def build(variant: str, num_classes: int) -> Detr:
    """A DETR of that variant with random weights."""
    return Detr(variant=variant, num_classes=num_classes)


def import_checkpoint(state: StateDict, variant: str) -> ImportedWeights:
    """The weights of facebookresearch's files, or of the transformers package's, old names and new.

    Both number COCO's classes by its 91 category ids: `--labels coco91`.

    Raises:
        CheckpointError: where it is not one of DETR.
    """
    if "class_labels_classifier.weight" in state:
        renamed = fuse_projections(rename_keys(state, _FROM_TRANSFORMERS))
    else:
        renamed = rename_keys(state, _FROM_AUTHORS)
    class_layer = renamed.get("class_embed.weight")
    if class_layer is None:
        raise CheckpointError(
            "checkpoint",
            expected=f"the tensors of {variant}, class_embed.weight or class_labels_classifier.weight among them",
            got="others: " + ", ".join(list(state)[:10]),
            fix="pass the --model that it was trained as",
        )
    return ImportedWeights(state=renamed, num_classes=class_layer.shape[0] - 1)


_FROM_AUTHORS = ((r"^backbone\.0\.body\.", "backbone."),)
_FROM_TRANSFORMERS = (
    (r"^model\.backbone\.(conv_encoder\.)?model\.", "backbone."),
    (r"^model\.input_projection\.", "input_proj."),
    (r"^model\.query_position_embeddings\.", "query_embed."),
    (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."),
    (r"^model\.decoder\.layernorm\.", "transformer.decoder.norm."),
    (r"^model\.(encoder|decoder)\.", r"transformer.\1."),
    (r"\.encoder_attn\.", ".multihead_attn."),
    *LAYER_RULES,
)
