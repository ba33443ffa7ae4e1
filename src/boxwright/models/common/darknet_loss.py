"""The losses of Darknet's `[region]` (YOLOv2) and `[yolo]` (YOLOv3, v4) heads.

Each object is learned by the anchor whose shape overlaps its own best, in the cell that holds its centre; with
`iou_thresh` below 1 also by every other anchor that overlaps it more than that. Predictions that learn nothing but
overlap an object by more than `ignore_thresh` (`thresh` in `[region]`) are neither praised nor blamed.

Images of which the class alone is known teach a `[region]` head its classes: the prediction that finds the class most
likely learns it, and that there is an object at least so far as an overlap of 0.3 would say.

All parts are divided by the number of predictions that learn an object, as the other families do, so that one learning
rate serves all.

Sources: Redmon and Farhadi, YOLO9000, CVPR 2017, sec. 2; the same, YOLOv3, 2018, sec. 2; Bochkovskiy et al., YOLOv4,
2020, sec. 3.4; the options are named as in the official configurations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from boxwright.core.errors import CheckpointError
from boxwright.models.common.boxes import OverlapKind, paired_overlap, pairwise_iou
from boxwright.models.common.darknet_files import Section
from boxwright.models.common.targets import Targets
from boxwright.models.common.word_tree import Hierarchy, WordTree, tree_cross_entropy

BoxLoss = Literal["mse", "iou", "giou", "diou", "ciou"]
# The overlap that is taken for granted where the place of an object is not known. Source: YOLO9000, sec. 4.
_ASSUMED_OVERLAP = 0.3
_OVERLAPS: dict[str, OverlapKind] = {"iou": "iou", "giou": "giou", "diou": "diou", "ciou": "ciou"}


@dataclass(frozen=True, kw_only=True)
class HeadRules:
    """What a head's section says about learning.

    Attributes:
        is_region: `[region]`: softmax over the classes, squared error for the objectness, IoU as its target.
        all_anchors_wh: of all heads together, in pixels.
        mask: indices of this head's own anchors.
        stride: pixels a cell.
        scale_xy: stretch of the offset within the cell.
        ignore_threshold: overlap from which a prediction that learns nothing is left alone.
        extra_match_threshold: overlap of shapes from which further anchors learn an object; 1 for none.
        box_loss: squared error or one of the overlaps.
        box_weight: of the box loss.
        object_weight: of the objectness where there is an object.
        no_object_weight: where there is none.
        class_weight: of the class loss.
        label_smoothing: of the class targets.
        tree: of the classes, where they are one.
    """

    is_region: bool
    all_anchors_wh: tuple[tuple[float, float], ...]
    mask: tuple[int, ...]
    stride: float
    scale_xy: float
    ignore_threshold: float
    extra_match_threshold: float
    box_loss: BoxLoss
    box_weight: float
    object_weight: float
    no_object_weight: float
    class_weight: float
    label_smoothing: float
    tree: WordTree | None = None

    @property
    def anchors_wh(self) -> tuple[tuple[float, float], ...]:
        """Its own anchors, in pixels."""
        return tuple(self.all_anchors_wh[index] for index in self.mask)


def read_head_rules(section: Section, stride: float) -> HeadRules:
    """The rules of a `[yolo]` or `[region]` section.

    Raises:
        CheckpointError: where its anchors are not pairs of positive numbers or its mask does not fit them.
    """
    is_region = section.name == "region"
    numbers = section.numbers("anchors")
    if not numbers or len(numbers) % 2 or min(numbers) <= 0:
        raise section.error("anchors as pairs of positive numbers", f"{len(numbers)} numbers")
    # [region] counts its anchors in cells, [yolo] in pixels.
    unit = stride if is_region else 1.0
    anchors = tuple((numbers[i] * unit, numbers[i + 1] * unit) for i in range(0, len(numbers), 2))
    if section.integer("num", len(anchors)) != len(anchors):
        raise section.error(f"num = {len(anchors)} pairs of anchors", f"num = {section.options['num']}")
    mask = section.integers("mask") or tuple(range(len(anchors)))
    if not all(0 <= index < len(anchors) for index in mask):
        raise section.error(f"a mask of indices below {len(anchors)}", str(mask))
    return HeadRules(
        is_region=is_region,
        all_anchors_wh=anchors,
        mask=mask,
        stride=stride,
        scale_xy=section.number("scale_x_y", 1.0),
        ignore_threshold=section.number("thresh" if is_region else "ignore_thresh", 0.6 if is_region else 0.5),
        extra_match_threshold=section.number("iou_thresh", 1.0),
        box_loss=_box_loss(section),
        box_weight=section.number("coord_scale", 1.0) if is_region else section.number("iou_normalizer", 0.75),
        object_weight=section.number("object_scale", 5.0) if is_region else section.number("obj_normalizer", 1.0),
        no_object_weight=section.number("noobject_scale", 1.0) if is_region else section.number("obj_normalizer", 1.0),
        class_weight=section.number("class_scale", 1.0) if is_region else section.number("cls_normalizer", 1.0),
        label_smoothing=section.number("label_smooth_eps", 0.0),
    )


def with_own_anchors(rule: HeadRules, fitted_wh: tuple[tuple[float, float], ...], start: int) -> HeadRules:
    """A head's rules with its own anchors taken from sizes that were fitted for all heads.

    A head that listed its own anchors alone still does; one that listed more, which other heads learn by, lists all.

    Args:
        rule: as the .cfg has it.
        fitted_wh: of all heads, in pixels.
        start: the first that is this head's.
    """
    count = len(rule.mask)
    if set(rule.mask) == set(range(len(rule.all_anchors_wh))):
        return replace(rule, all_anchors_wh=fitted_wh[start : start + count], mask=tuple(range(count)))
    return replace(rule, all_anchors_wh=fitted_wh, mask=tuple(range(start, start + count)))


def _box_loss(section: Section) -> BoxLoss:
    name = section.text("iou_loss", "mse").lower()
    for known in ("mse", "iou", "giou", "diou", "ciou"):
        if name == known:
            return known
    raise section.error("iou_loss of mse, iou, giou, diou or ciou", repr(name))


@dataclass(frozen=True, kw_only=True)
class LevelOutput:
    """What one head predicts for a batch, with its geometry.

    Attributes:
        box_regression: (B, n, 4) raw, ordered by row, column, anchor.
        class_logits: (B, n, C).
        objectness: (B, n).
        grid_hw: rows and columns.
    """

    box_regression: Tensor
    class_logits: Tensor
    objectness: Tensor
    grid_hw: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class _Matches:
    """Which predictions learn which objects: P pairs.

    Attributes:
        image: (P,) index in the batch.
        prediction: (P,) index in the head's n.
        boxes_xyxy: (P, 4) of the objects.
        class_ids: (P,) of the objects.
        anchors_wh: (P, 2) of the predictions.
        cells_xy: (P, 2) column and row of the predictions.
    """

    image: Tensor
    prediction: Tensor
    boxes_xyxy: Tensor
    class_ids: Tensor
    anchors_wh: Tensor
    cells_xy: Tensor


def darknet_loss(levels: list[LevelOutput], rules: list[HeadRules], targets: Targets) -> dict[str, Tensor]:
    """The parts of the loss, weighted, and their total under `loss`.

    Args:
        levels: what each head predicts.
        rules: of each head.
        targets: of the batch.
    """
    device = levels[0].objectness.device
    totals = {name: torch.zeros((), device=device) for name in ("box", "object", "class")}
    num_positive = 0
    located = targets.without_class_only()
    for level, rule in zip(levels, rules, strict=True):
        matches = _match(level, rule, located)
        num_positive += len(matches.image)
        is_located = ~torch.tensor([*targets.is_class_only] or [False] * len(targets), device=device)
        for name, value in _level_loss(level, rule, matches, located, is_located).items():
            totals[name] = totals[name] + value
        for image in (~is_located).nonzero()[:, 0].tolist():
            num_positive += len(targets.class_ids[image])
            for name, value in _class_only_loss(level, rule, image, targets.class_ids[image].to(device)).items():
                totals[name] = totals[name] + value
    parts = {name: value / max(num_positive, 1) for name, value in totals.items()}
    return {**parts, "loss": torch.stack(list(parts.values())).sum()}


def decode_level(level: LevelOutput, rule: HeadRules) -> Tensor:
    """Boxes (B, n, 4) xyxy in network pixels; the same maths as `boxwright.core.decode`, differentiable."""
    device = level.box_regression.device
    rows, columns = level.grid_hw
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    anchors = torch.tensor(rule.anchors_wh, device=device)
    cells_xy = torch.stack([x, y], dim=-1).reshape(-1, 1, 2).expand(-1, len(anchors), 2).reshape(-1, 2)  # (n, 2)
    return _decode(level.box_regression, cells_xy, anchors.repeat(rows * columns, 1), rule)


def _decode(raw: Tensor, cells_xy: Tensor, anchors_wh: Tensor, rule: HeadRules) -> Tensor:
    centres = (cells_xy + _offsets(raw, rule)) * rule.stride
    half_sizes = raw[..., 2:].clamp(max=10.0).exp() * anchors_wh / 2
    return torch.cat([centres - half_sizes, centres + half_sizes], dim=-1)


def _offsets(raw: Tensor, rule: HeadRules) -> Tensor:
    return raw[..., :2].sigmoid() * rule.scale_xy - (rule.scale_xy - 1) / 2


@torch.no_grad()
def _match(level: LevelOutput, rule: HeadRules, targets: Targets) -> _Matches:
    device = level.objectness.device
    rows, columns = level.grid_hw
    anchors = torch.tensor(rule.all_anchors_wh, device=device)
    mask = torch.tensor(rule.mask, device=device)
    counts = torch.tensor([len(boxes) for boxes in targets.boxes_xyxy], device=device)
    boxes = torch.cat([boxes.to(device) for boxes in targets.boxes_xyxy])  # (M, 4)
    class_ids = torch.cat([ids.to(device) for ids in targets.class_ids])
    images = torch.repeat_interleave(torch.arange(len(counts), device=device), counts)
    shape_iou = _shape_iou(boxes[:, 2:] - boxes[:, :2], anchors)  # (M, all anchors)
    learns = shape_iou > rule.extra_match_threshold
    if len(boxes):
        learns[torch.arange(len(boxes), device=device), shape_iou.argmax(dim=1)] = True
    objects, own = learns[:, mask].nonzero(as_tuple=True)  # own: index in this head's anchors
    limits = torch.tensor([columns - 1, rows - 1], device=device)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / rule.stride
    cells_xy = torch.minimum(centres.floor().long().clamp(min=0), limits)[objects]  # (P, 2)
    prediction = (cells_xy[:, 1] * columns + cells_xy[:, 0]) * len(mask) + own
    return _Matches(
        image=images[objects],
        prediction=prediction,
        boxes_xyxy=boxes[objects],
        class_ids=class_ids[objects],
        anchors_wh=anchors[mask][own],
        cells_xy=cells_xy,
    )


def _shape_iou(sizes_wh: Tensor, anchors_wh: Tensor) -> Tensor:
    """IoU of boxes laid on the same centre, (M, A)."""
    intersection = torch.minimum(sizes_wh[:, None], anchors_wh[None]).prod(dim=-1)
    union = sizes_wh.prod(dim=-1)[:, None] + anchors_wh.prod(dim=-1)[None] - intersection
    return intersection / union.clamp(min=1e-7)


def _level_loss(
    level: LevelOutput, rule: HeadRules, matches: _Matches, targets: Targets, is_located: Tensor
) -> dict[str, Tensor]:
    """Sums over the head's predictions, weighted but not yet averaged; `is_located` (B,) are images with boxes."""
    picked = (matches.image, matches.prediction)
    raw, logits = level.box_regression[picked], level.class_logits[picked]  # (P, 4), (P, C)
    predicted = _decode(raw, matches.cells_xy, matches.anchors_wh, rule)  # (P, 4)
    grid_pixels = level.grid_hw[0] * level.grid_hw[1] * rule.stride**2
    return {
        "box": rule.box_weight * _box_terms(raw, predicted, matches, rule, grid_pixels).sum(),
        "object": (_object_terms(level, rule, matches, predicted.detach(), targets) * is_located[:, None]).sum(),
        "class": rule.class_weight * _class_terms(logits, matches.class_ids, rule).sum(),
    }


def _box_terms(raw: Tensor, predicted: Tensor, matches: _Matches, rule: HeadRules, grid_pixels: float) -> Tensor:
    if rule.box_loss != "mse":
        return 1 - paired_overlap(predicted, matches.boxes_xyxy, kind=_OVERLAPS[rule.box_loss])
    sizes = (matches.boxes_xyxy[:, 2:] - matches.boxes_xyxy[:, :2]).clamp(min=1e-3)
    centres = (matches.boxes_xyxy[:, :2] + matches.boxes_xyxy[:, 2:]) / 2
    wanted_offsets = (centres / rule.stride - matches.cells_xy).clamp(0, 1)
    if rule.scale_xy == 1.0:
        # Its gradient by the raw number is the difference of the offsets, which is what Darknet descends.
        offset_terms = functional.binary_cross_entropy_with_logits(raw[:, :2], wanted_offsets, reduction="none")
    else:
        offset_terms = (_offsets(raw, rule) - wanted_offsets).square() / 2
    size_terms = (raw[:, 2:] - (sizes / matches.anchors_wh).log()).square() / 2
    # Small boxes count more, up to twice.
    importance = 2 - sizes.prod(dim=1) / grid_pixels
    return importance * (offset_terms + size_terms).sum(dim=1)


def _object_terms(
    level: LevelOutput, rule: HeadRules, matches: _Matches, predicted: Tensor, targets: Targets
) -> Tensor:
    """Weighted terms of all predictions, (B, n)."""
    wanted = torch.zeros_like(level.objectness)
    # YOLOv2 learns the overlap that it reached, v3 and v4 learn 1.
    overlaps = paired_overlap(predicted, matches.boxes_xyxy) if rule.is_region else None
    wanted[matches.image, matches.prediction] = 1.0 if overlaps is None else overlaps.to(wanted.dtype)
    is_positive = torch.zeros_like(level.objectness, dtype=torch.bool)
    is_positive[matches.image, matches.prediction] = True
    ignored = _overlaps_any_object(level, rule, targets) & ~is_positive
    weights = torch.where(is_positive, rule.object_weight, rule.no_object_weight) * ~ignored
    if rule.is_region:
        terms = (level.objectness.sigmoid() - wanted).square() / 2
    else:
        terms = functional.binary_cross_entropy_with_logits(level.objectness, wanted, reduction="none")
    return weights * terms


def _class_only_loss(level: LevelOutput, rule: HeadRules, image: int, class_ids: Tensor) -> dict[str, Tensor]:
    """Weighted sums over the classes (M,) that an image shows nobody knows where."""
    logits, objectness = level.class_logits[image], level.objectness[image].sigmoid()  # (n, C), (n,)
    with torch.no_grad():
        likely = class_probabilities(logits, rule.tree)[:, class_ids] * objectness[:, None]  # (n, M)
        finders = likely.argmax(dim=0)  # (M,)
    lacking = (_ASSUMED_OVERLAP - objectness[finders]).clamp(min=0)
    return {
        "object": rule.object_weight * (lacking.square() / 2).sum(),
        "class": rule.class_weight * _class_terms(logits[finders], class_ids, rule).sum(),
    }


def class_probabilities(logits: Tensor, tree: WordTree | None) -> Tensor:
    """Probabilities of the classes (n, C) of a `[region]` head with logits (n, C)."""
    if tree is None:
        return logits.softmax(dim=1)
    return Hierarchy(tree).to(logits.device).probabilities(logits[None])[0]


@torch.no_grad()
def _overlaps_any_object(level: LevelOutput, rule: HeadRules, targets: Targets) -> Tensor:
    """Whether a prediction overlaps any object by more than the head ignores, (B, n)."""
    boxes = decode_level(level, rule)
    result = torch.zeros_like(level.objectness, dtype=torch.bool)
    for image, objects in enumerate(targets.boxes_xyxy):
        if len(objects):
            overlaps = pairwise_iou(boxes[image], objects.to(boxes.device))  # (n, M)
            result[image] = overlaps.max(dim=1).values > rule.ignore_threshold
    return result


def _class_terms(logits: Tensor, class_ids: Tensor, rule: HeadRules) -> Tensor:
    if rule.tree is not None:
        return tree_cross_entropy(logits, class_ids, rule.tree, label_smoothing=rule.label_smoothing)
    if rule.is_region:
        return functional.cross_entropy(logits, class_ids, reduction="none", label_smoothing=rule.label_smoothing)
    wanted = functional.one_hot(class_ids, logits.shape[1]).to(logits.dtype)
    if rule.label_smoothing > 0:
        wanted = wanted * (1 - rule.label_smoothing) + rule.label_smoothing / 2
    return functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(dim=1)


def check_heads_agree(rules: list[HeadRules], source: str) -> None:
    """Raise `CheckpointError` where a network mixes `[region]` and `[yolo]` heads."""
    if len({rule.is_region for rule in rules}) > 1:
        raise CheckpointError(
            source, expected="[yolo] heads or one [region]", got="both", fix="keep one kind of head in the .cfg"
        )
