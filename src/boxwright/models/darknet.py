"""Darknet: YOLO v2, v3 and v4, and whatever else is written in their .cfg language.

Sources: Redmon and Farhadi, YOLO9000, CVPR 2017; the same, YOLOv3, 2018; Bochkovskiy et al., YOLOv4, 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from boxwright.core.decode_nms_attributes import Overlap
from boxwright.core.decode_spec import Grid, GridLevel, NmsSpec
from boxwright.core.errors import CheckpointError
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import preset
from boxwright.models.common import darknet_architectures as architectures
from boxwright.models.common.checkpoint import StateDict
from boxwright.models.common.darknet_files import Section, parse_cfg, read_cfg, read_weights
from boxwright.models.common.darknet_layers import Convolution
from boxwright.models.common.darknet_loss import (
    HeadRules,
    LevelOutput,
    check_heads_agree,
    darknet_loss,
    read_head_rules,
)
from boxwright.models.common.darknet_network import DarknetNetwork
from boxwright.models.common.detector import DetectionModel
from boxwright.models.common.registry import ImportedWeights, NetworkFile
from boxwright.models.common.targets import Targets

IMPORTS = "Darknet .weights with the .cfg beside it, without --model"
NETWORK_SUFFIXES = (".weights", ".cfg")
_BOX_NUMBERS = 5  # x, y, w, h and the objectness
_PRIOR_PROBABILITY = 0.01


@dataclass(frozen=True, kw_only=True)
class DarknetConfig:
    """A variant.

    Attributes:
        write_cfg: (size_hw, num_classes) -> text of the .cfg.
        size_hw: the usual input size.
    """

    write_cfg: Callable[[tuple[int, int], int], str]
    size_hw: tuple[int, int] = (416, 416)


VARIANTS: dict[str, DarknetConfig] = {
    "yolov2": DarknetConfig(write_cfg=architectures.yolov2),
    "yolov2-tiny": DarknetConfig(write_cfg=architectures.yolov2_tiny),
    "yolov3": DarknetConfig(write_cfg=architectures.yolov3),
    "yolov3-tiny": DarknetConfig(write_cfg=architectures.yolov3_tiny),
    "yolov4": DarknetConfig(write_cfg=architectures.yolov4, size_hw=(608, 608)),
    "yolov4-tiny": DarknetConfig(write_cfg=architectures.yolov4_tiny),
    # Not the authors': a quarter of the width of yolov4-tiny.
    "yolov4-pico": DarknetConfig(write_cfg=architectures.yolov4_pico, size_hw=(160, 160)),
}


class Darknet(DetectionModel):
    """A detector built from the sections of a .cfg.

    Args:
        variant: its name, or the name of the .cfg.
        sections: of the .cfg.
    """

    family: ClassVar[str] = "darknet"

    def __init__(self, *, variant: str, sections: list[Section]) -> None:
        network = DarknetNetwork(sections)
        self_rules = [read_head_rules(head.section, head.stride) for head in network.heads]
        check_heads_agree(self_rules, sections[0].source)
        super().__init__(variant=variant, num_classes=_class_count(network, self_rules))
        self.network = network
        self.rules: list[HeadRules] = self_rules
        self._nms_overlap: Overlap = (
            "diou" if network.heads[-1].section.text("nms_kind", "greedynms") == "diounms" else "iou"
        )
        self._divisor = int(max(shape.stride for shape in network.shapes if math.isfinite(shape.stride)))

    @property
    def size_divisor(self) -> int:  # type: ignore[override]
        """The largest stride in the network."""
        return self._divisor

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels = [_split(output, len(rule.mask)) for output, rule in zip(self.network(images), self.rules, strict=True)]
        joined = torch.cat([level for level, _ in levels], dim=1)  # (B, N, 5 + C)
        heads = {
            "box_regression": joined[..., :4],
            "class_logits": joined[..., _BOX_NUMBERS:],
            "objectness": joined[..., 4],
        }
        if self.training:
            heads["_grids_hw"] = torch.tensor([grid_hw for _, grid_hw in levels])
        return heads

    def loss(self, heads: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        levels, start = [], 0
        for rule, (rows, columns) in zip(self.rules, heads["_grids_hw"].tolist(), strict=True):
            size = rows * columns * len(rule.mask)
            part = slice(start, start + size)
            levels.append(
                LevelOutput(
                    box_regression=heads["box_regression"][:, part],
                    class_logits=heads["class_logits"][:, part],
                    objectness=heads["objectness"][:, part],
                    grid_hw=(rows, columns),
                )
            )
            start += size
        return darknet_loss(levels, self.rules, targets)

    def decode_spec(self, size_hw: tuple[int, int]) -> Grid:
        self.check_size(size_hw)
        is_region = self.rules[0].is_region
        return Grid(
            num_classes=self.num_classes,
            box_coding="yolov2" if all(rule.scale_xy == 1.0 for rule in self.rules) else "yolov4",
            levels=tuple(
                GridLevel(
                    grid_hw=(int(size_hw[0] / rule.stride), int(size_hw[1] / rule.stride)),
                    stride=rule.stride,
                    anchors_wh=rule.anchors_wh,
                    scale_xy=rule.scale_xy,
                )
                for rule in self.rules
            ),
            score_activation="softmax" if is_region else "sigmoid",
            score_combination="multiply",
            multi_label=True,  # Darknet sorts and suppresses each class by itself, over all boxes
            nms=NmsSpec(overlap=self._nms_overlap),
        )

    def default_preprocess(self, size_hw: tuple[int, int]) -> Preprocess:
        return preset("darknet", size_hw)


def _split(output: Tensor, num_anchors: int) -> tuple[Tensor, tuple[int, int]]:
    """(B, A * (5 + C), H, W) to (B, H * W * A, 5 + C), and the grid."""
    batch, channels, rows, columns = output.shape
    by_anchor = output.reshape(batch, num_anchors, channels // num_anchors, rows, columns)
    last = by_anchor.permute(0, 3, 4, 1, 2)  # (B, H, W, A, 5 + C)
    return last.reshape(batch, -1, channels // num_anchors), (rows, columns)


def _class_count(network: DarknetNetwork, rules: list[HeadRules]) -> int:
    """The classes of all heads, checked against the width of their last convolution."""
    counts = set()
    for head, rule in zip(network.heads, rules, strict=True):
        classes = head.section.integer("classes", 20)
        width = network.shapes[head.layer].channels
        if classes < 1 or width != len(rule.mask) * (_BOX_NUMBERS + classes):
            raise head.section.error(
                f"{len(rule.mask)} anchors x (5 + {classes} classes) = "
                f"{len(rule.mask) * (_BOX_NUMBERS + classes)} channels before it",
                f"{width} channels",
            )
        for option in ("new_coords", "tree", "map"):
            if head.section.text(option, "0") != "0":
                raise head.section.error(f"no {option}", head.section.options[option], "use a head without it")
        counts.add(classes)
    if len(counts) > 1:
        raise network.heads[0].section.error("the same classes in every head", str(sorted(counts)))
    return counts.pop()


def build(variant: str, num_classes: int) -> Darknet:
    """A network of that variant with random weights."""
    config = VARIANTS[variant]
    model = Darknet(variant=variant, sections=parse_cfg(config.write_cfg(config.size_hw, num_classes), variant))
    for head, rule in zip(model.network.heads, model.rules, strict=True):
        last = model.network.layers[head.layer - 1]
        assert isinstance(last, Convolution) and isinstance(last[0], nn.Conv2d) and last[0].bias is not None
        with torch.no_grad():
            # An untrained head should see an object hardly anywhere, or the empty cells drown the rest of the loss.
            bias = last[0].bias.view(len(rule.mask), -1)
            bias[:, 4] = -math.log((1 - _PRIOR_PROBABILITY) / _PRIOR_PROBABILITY)
    return model


def import_checkpoint(state: StateDict, variant: str) -> ImportedWeights:
    """Refuse: the public checkpoints of these networks are .weights files."""
    raise CheckpointError(
        "checkpoint",
        expected=f"the .weights file of {variant}, with its .cfg beside it",
        got="a PyTorch state dict of " + ", ".join(list(state)[:3]),
        fix="give the .weights file, without --model",
    )


def open_network(path: Path) -> NetworkFile:
    """Read a .weights file and the .cfg beside it, or a .cfg alone (random weights).

    Raises:
        CheckpointError: where one is missing or wrong, or they do not belong together.
    """
    cfg_path = path.with_name(path.name.removesuffix(path.suffix) + ".cfg")
    sections = parse_cfg(read_cfg(cfg_path), str(cfg_path))
    model = Darknet(variant=cfg_path.stem, sections=sections)
    if path.suffix != ".cfg":
        model.network.load(read_weights(path), str(path))
    size_hw = sections[0].integer("height", 416), sections[0].integer("width", 416)
    return NetworkFile(module=model, size_hw=size_hw)
