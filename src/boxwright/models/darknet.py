"""Darknet: YOLO v2, 9000, v3 and v4, and whatever else is written in their .cfg language.

Sources: Redmon and Farhadi, YOLO9000, CVPR 2017; the same, YOLOv3, 2018; Bochkovskiy et al., YOLOv4, 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from boxwright.core.decode_nms_attributes import Overlap, ScoreActivation
from boxwright.core.decode_spec import Grid, GridLevel, NmsSpec
from boxwright.core.errors import CheckpointError
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import preset
from boxwright.models.common import darknet_architectures as architectures
from boxwright.models.common.checkpoint import StateDict
from boxwright.models.common.darknet_backbone import DarknetBackbone, backbone_length
from boxwright.models.common.darknet_files import (
    Section,
    parse_cfg,
    read_cfg,
    read_text,
    read_tree,
    read_weights,
    write_cfg,
)
from boxwright.models.common.darknet_geometry import check_grids
from boxwright.models.common.darknet_layers import Convolution
from boxwright.models.common.darknet_loss import (
    HeadRules,
    LevelOutput,
    check_heads_agree,
    darknet_loss,
    read_head_rules,
    with_own_anchors,
)
from boxwright.models.common.darknet_network import DarknetNetwork
from boxwright.models.common.fitted_anchors import FittedAnchorModel
from boxwright.models.common.grid_outputs import BOX_NUMBERS, join_levels, split_by_cell
from boxwright.models.common.registry import ImportedWeights, NetworkFile
from boxwright.models.common.targets import Targets
from boxwright.models.common.word_tree import Hierarchy, flat_tree, parse_tree

IMPORTS = "Darknet .weights with the .cfg beside it, without --model"
NETWORK_SUFFIXES = (".weights", ".cfg", ".tree")
_PRIOR_PROBABILITY = 0.01


@dataclass(frozen=True, kw_only=True)
class DarknetConfig:
    """A variant.

    Attributes:
        write_cfg: (size_hw, num_classes) -> text of the .cfg.
        size_hw: the usual input size.
        has_tree: whether its classes are the nodes of a hierarchy.
    """

    write_cfg: Callable[[tuple[int, int], int], str]
    size_hw: tuple[int, int] = (416, 416)
    has_tree: bool = False


VARIANTS: dict[str, DarknetConfig] = {
    "yolov2": DarknetConfig(write_cfg=architectures.yolov2),
    "yolov2-tiny": DarknetConfig(write_cfg=architectures.yolov2_tiny),
    # By its name all classes are one softmax; a .tree in its place gives it a hierarchy.
    "yolo9000": DarknetConfig(write_cfg=architectures.yolo9000, size_hw=(544, 544), has_tree=True),
    "yolov3": DarknetConfig(write_cfg=architectures.yolov3),
    "yolov3-tiny": DarknetConfig(write_cfg=architectures.yolov3_tiny),
    "yolov4": DarknetConfig(write_cfg=architectures.yolov4, size_hw=(608, 608)),
    "yolov4-tiny": DarknetConfig(write_cfg=architectures.yolov4_tiny),
    # Not the authors': a quarter of the width of yolov4-tiny.
    "yolov4-pico": DarknetConfig(write_cfg=architectures.yolov4_pico, size_hw=(160, 160)),
}


class Darknet(FittedAnchorModel):
    """A detector built from the sections of a .cfg.

    Args:
        variant: its name, or the name of the .cfg.
        sections: of the .cfg.
        tree_text: of the `.tree` file that its `[region]` names, for YOLO9000.
        is_custom: whether the .cfg (and the tree) are to travel in the state dict, as they must where no variant gives
            them.
    """

    family: ClassVar[str] = "darknet"
    describing_tensors: ClassVar[frozenset[str]] = frozenset({"cfg", "tree"})
    supported_loss_options: ClassVar[frozenset[str]] = frozenset({"box_loss", "label_smoothing"})
    # (K, 2) in pixels, of heads that list the same; part of the state, since they may be fitted to the data.
    anchors_wh: Tensor

    def __init__(
        self, *, variant: str, sections: list[Section], tree_text: str | None = None, is_custom: bool = False
    ) -> None:
        if is_custom:  # before memory is taken for it
            check_grids(sections)
        network = DarknetNetwork(sections)
        tree = None if tree_text is None else parse_tree(tree_text, f"the tree of {sections[0].source}")
        rules = [replace(read_head_rules(head.section, head.stride), tree=tree) for head in network.heads]
        check_heads_agree(rules, sections[0].source)
        super().__init__(variant=variant, num_classes=_class_count(network, rules))
        self.network = network
        self._rules = rules
        self.hierarchy = None if tree is None else Hierarchy(tree)
        if len({rule.all_anchors_wh for rule in rules}) == 1:
            self.register_buffer("anchors_wh", torch.tensor(rules[0].all_anchors_wh))
        if is_custom:
            self.register_buffer("cfg", _bytes_of(write_cfg(sections)))
            if tree_text is not None:
                self.register_buffer("tree", _bytes_of(tree_text))
        self._nms_overlap: Overlap = (
            "diou" if network.heads[-1].section.text("nms_kind", "greedynms") == "diounms" else "iou"
        )

    @property
    def size_divisor(self) -> int:  # type: ignore[override]
        """The largest stride in the network."""
        return self.network.size_divisor

    @property
    def learns_class_only(self) -> bool:  # type: ignore[override]
        """Whether images of which the class alone is known may teach it."""
        return self._rules[0].is_region

    @property
    def backbone_prefixes(self) -> tuple[str, ...]:
        layers = self.network.layers[: backbone_length(self.network)]
        return tuple(f"network.layers.{index}" for index, layer in enumerate(layers) if isinstance(layer, Convolution))

    def backbone_module(self) -> nn.Module | None:
        return DarknetBackbone(self.network) if self.backbone_prefixes else None

    @property
    def rules(self) -> list[HeadRules]:
        """The rules of each head, with the anchors as they are now."""
        if self._shares_anchors:
            anchors = tuple((width, height) for width, height in self.anchors_wh.tolist())
            return [replace(rule, all_anchors_wh=anchors) for rule in self._rules]
        if self.fitted_anchors_wh is None:
            return self._rules
        fitted = tuple((width, height) for width, height in self.fitted_anchors_wh.tolist())
        rules, start = list(self._rules), 0
        for index in self._fine_to_coarse:
            rules[index] = with_own_anchors(self._rules[index], fitted, start)
            start += len(rules[index].mask)
        return rules

    @property
    def _shares_anchors(self) -> bool:
        """Whether all heads list the same anchors, of which each has its own by its mask."""
        return "anchors_wh" in self._buffers

    @property
    def _fine_to_coarse(self) -> list[int]:
        """The heads by stride."""
        return sorted(range(len(self._rules)), key=lambda index: self._rules[index].stride)

    @property
    def anchors_per_level(self) -> tuple[int, ...]:
        return tuple(len(self._rules[index].mask) for index in self._fine_to_coarse)

    @property
    def num_anchor_sizes(self) -> int:
        return len(self.anchors_wh) if self._shares_anchors else super().num_anchor_sizes

    def set_anchors(self, sizes_wh: Sequence[tuple[float, float]]) -> None:
        if not self._shares_anchors:
            super().set_anchors(sizes_wh)
            return
        # The places of the list from the finest head's to the coarsest's, and before them those of no head.
        strides = [
            min((rule.stride for rule in self._rules if place in rule.mask), default=0.0)
            for place in range(len(self.anchors_wh))
        ]
        places = sorted(range(len(strides)), key=strides.__getitem__)
        self.anchors_wh[places] = torch.tensor(sizes_wh, dtype=torch.float32, device=self.anchors_wh.device)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.network(images)
        levels = [split_by_cell(output, len(rule.mask)) for output, rule in zip(outputs, self._rules, strict=True)]
        heads = join_levels([level for level, _ in levels])
        if self.training:
            heads["_grids_hw"] = torch.tensor([grid_hw for _, grid_hw in levels])
        elif self.hierarchy is not None:
            heads["class_logits"] = self.hierarchy(heads["class_logits"])
        return heads

    def loss(self, heads: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        levels, start = [], 0
        rules = [self._changed(rule) for rule in self.rules]
        for rule, (rows, columns) in zip(rules, heads["_grids_hw"].tolist(), strict=True):
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
        return darknet_loss(levels, rules, targets)

    def _changed(self, rule: HeadRules) -> HeadRules:
        """A head's rules with what the run changes in the loss."""
        options = self.loss_options
        return replace(
            rule,
            box_loss=options.box_loss or rule.box_loss,
            label_smoothing=options.label_smoothing or rule.label_smoothing,
        )

    def decode_spec(self, size_hw: tuple[int, int]) -> Grid:
        self.check_size(size_hw)
        rules = self.rules
        activation: ScoreActivation = "softmax" if rules[0].is_region else "sigmoid"
        return Grid(
            num_classes=self.num_classes,
            box_coding="yolov2" if all(rule.scale_xy == 1.0 for rule in rules) else "yolov4",
            levels=tuple(
                GridLevel(
                    grid_hw=(int(size_hw[0] / rule.stride), int(size_hw[1] / rule.stride)),
                    stride=rule.stride,
                    anchors_wh=rule.anchors_wh,
                    scale_xy=rule.scale_xy,
                )
                for rule in rules
            ),
            # A hierarchy leaves probabilities behind, all 0 but that of the class that it reaches.
            score_activation=activation if self.hierarchy is None else "none",
            score_combination="multiply",
            multi_label=True,  # Darknet sorts and suppresses each class by itself, over all boxes
            nms=NmsSpec(overlap=self._nms_overlap),
        )

    def default_preprocess(self, size_hw: tuple[int, int]) -> Preprocess:
        return preset("darknet", size_hw)


def _bytes_of(text: str) -> Tensor:
    """Text as a tensor, for a state dict."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _text_of(values: Tensor) -> str:
    return bytes(values.tolist()).decode()


def _class_count(network: DarknetNetwork, rules: list[HeadRules]) -> int:
    """The classes of all heads, checked against the width of their last convolution."""
    counts = set()
    for head, rule in zip(network.heads, rules, strict=True):
        classes = head.section.integer("classes", 20)
        width = network.shapes[head.layer].channels
        if classes < 1 or width != len(rule.mask) * (BOX_NUMBERS + classes):
            raise head.section.error(
                f"{len(rule.mask)} anchors x (5 + {classes} classes) = "
                f"{len(rule.mask) * (BOX_NUMBERS + classes)} channels before it",
                f"{width} channels",
            )
        # Its `map` chooses classes of another data set when Darknet evaluates; it is no part of the network.
        head.section.refuse("new_coords", "background")
        if rule.is_region and (head.section.integer("coords", 4) != 4 or head.section.integer("softmax", 0) != 1):
            raise head.section.error("coords=4 and softmax=1", "others", "use a head of YOLOv2 or YOLO9000")
        if rule.tree is not None and len(rule.tree.names) != classes:
            raise head.section.error(f"a tree of {classes} classes", f"{len(rule.tree.names)} nodes")
        counts.add(classes)
    if len(counts) > 1:
        raise network.heads[0].section.error("the same classes in every head", str(sorted(counts)))
    return counts.pop()


def build(variant: str, num_classes: int) -> Darknet:
    """A network of that variant with random weights."""
    config = VARIANTS[variant]
    sections = parse_cfg(config.write_cfg(config.size_hw, num_classes), variant)
    model = Darknet(variant=variant, sections=sections, tree_text=flat_tree(num_classes) if config.has_tree else None)
    _expect_few_objects(model)
    return model


def _expect_few_objects(model: Darknet) -> None:
    """Have untrained heads see an object hardly anywhere, or the empty cells drown the rest of the loss."""
    for head, rule in zip(model.network.heads, model._rules, strict=True):
        last = model.network.layers[head.layer - 1]
        if not isinstance(last, Convolution) or not isinstance(last[-1], nn.Identity):
            continue  # a .cfg of one's own may end otherwise, in what has no bias to set
        bias = last[1].bias if isinstance(last[1], nn.BatchNorm2d) else last[0].bias
        assert isinstance(bias, Tensor)
        with torch.no_grad():
            bias.view(len(rule.mask), -1)[:, 4] = -math.log((1 - _PRIOR_PROBABILITY) / _PRIOR_PROBABILITY)


def import_checkpoint(state: StateDict, variant: str) -> ImportedWeights:
    """Refuse: the public checkpoints of these networks are .weights files."""
    raise CheckpointError(
        "checkpoint",
        expected=f"the .weights file of {variant}, with its .cfg beside it",
        got="a PyTorch state dict of " + ", ".join(list(state)[:3]),
        fix="give the .weights file, without --model",
    )


def open_network(path: Path) -> NetworkFile:
    """Read a .weights file and the .cfg beside it, a .cfg alone or a .tree, for YOLO9000 (random weights).

    Raises:
        CheckpointError: where one is missing or wrong, or they do not belong together.
    """
    if path.suffix.lower() == ".tree":
        return _yolo9000_of(path)
    cfg_path = path.with_name(path.name.removesuffix(path.suffix) + ".cfg")
    sections = parse_cfg(read_cfg(cfg_path), str(cfg_path))
    size_hw = sections[0].integer("height", 416), sections[0].integer("width", 416)
    if min(size_hw) < 1:
        raise sections[0].error("a positive height and width", f"{size_hw[0]} and {size_hw[1]}")
    trees = [text for section in sections if (text := read_tree(cfg_path, section)) is not None]
    tree_text = trees[0] if trees else None
    model = Darknet(variant=cfg_path.stem, sections=sections, tree_text=tree_text, is_custom=True)
    if path.suffix.lower() == ".cfg":
        _expect_few_objects(model)
    else:
        model.network.load(read_weights(path), str(path))
    names = None if tree_text is None else parse_tree(tree_text, str(cfg_path)).names
    return NetworkFile(module=model, size_hw=size_hw, class_names=names)


def _yolo9000_of(tree_path: Path) -> NetworkFile:
    """YOLO9000 with the classes of a `.tree` file."""
    text, config = read_text(tree_path, "the .tree of a class hierarchy"), VARIANTS["yolo9000"]
    names = parse_tree(text, str(tree_path)).names
    sections = parse_cfg(config.write_cfg(config.size_hw, len(names)), str(tree_path))
    model = Darknet(variant=tree_path.stem, sections=sections, tree_text=text, is_custom=True)
    _expect_few_objects(model)
    return NetworkFile(module=model, size_hw=config.size_hw, class_names=names)


def rebuild(variant: str, state: StateDict) -> Darknet | None:
    """The network whose .cfg travels in one of our checkpoints; None where a variant gives it."""
    if "cfg" not in state:
        return None
    tree_text = _text_of(state["tree"]) if "tree" in state else None
    sections = parse_cfg(_text_of(state["cfg"]), f"the .cfg in a checkpoint of {variant}")
    return Darknet(variant=variant, sections=sections, tree_text=tree_text, is_custom=True)
