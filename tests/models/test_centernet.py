"""CenterNet: its targets and loss against the paper, and the authors' weights against a restatement of their networks.

The restatements follow the key names of the authors' code (`--arch res_18`, `res_50` and `dlav0_34`) and run on the
state dict itself, layer by layer, with no module of ours in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from boxwright.core.decode import decode_nms
from boxwright.core.errors import CheckpointError
from boxwright.models import Targets, build_model
from boxwright.models.centernet import import_checkpoint
from boxwright.models.common.boxes import OverlapKind
from boxwright.models.common.checkpoint import StateDict, load_weights
from boxwright.models.common.heatmap import (
    NO_PEAK,
    keep_peaks,
    penalty_reduced_focal_loss,
    splat_heatmap,
    splat_radii,
)
from boxwright.models.common.iou_losses import overlap_loss
from boxwright.models.common.loss_options import LossOptions
from boxwright.models.common.upsampling_necks import AggregationNode
from tolerances import RAW_HEADS

SIZE_HW = (64, 96)
NUM_CLASSES = 5


def iou_of_shifted(width: float, height: float, grow_left: float, grow_right: float) -> float:
    """IoU of a box with itself, its left and top sides moved out and its right and bottom sides moved out."""
    other_w, other_h = width + grow_left + grow_right, height + grow_left + grow_right
    common_w = min(width, width + grow_right) - max(0.0, -grow_left)
    common_h = min(height, height + grow_right) - max(0.0, -grow_left)
    common = common_w * common_h
    return common / (width * height + other_w * other_h - common)


@pytest.mark.parametrize("size_wh", [(20.0, 20.0), (100.0, 30.0), (61.0, 128.0)])
def test_exact_radius_is_the_largest_that_keeps_the_overlap(size_wh: tuple[float, float]) -> None:
    radius = splat_radii(torch.tensor([size_wh]), rule="exact").item()
    for step, kept in ((radius, True), (radius + 1, False)):
        shifts = ((-step, step), (-step, -step), (step, step))  # the same way, inwards, outwards
        assert (min(iou_of_shifted(*size_wh, *shift) for shift in shifts) >= 0.7) == kept


@pytest.mark.parametrize(
    ("size_wh", "radius"), [((8.0, 8.0), 2), ((7.2, 7.9), 2), ((1.0, 1.0), 0), ((128.0, 96.0), 30)]
)
def test_public_radius(size_wh: tuple[float, float], radius: int) -> None:
    # 4 o times the proper root of 4 o r^2 + 2 o (w + h) r - (1 - o) w h: for 8x8, (-22.4 + sqrt(501.76 + 215.04)) / 2.
    width, height = (math.ceil(side) for side in size_wh)
    b, c = -1.4 * (width + height), 0.3 * width * height
    assert int((b + math.sqrt(b * b + 11.2 * c)) / 2) == radius
    assert splat_radii(torch.tensor([size_wh])).item() == radius


def test_splats_peak_at_the_cell_and_the_larger_one_wins() -> None:
    cells = torch.tensor([[3.0, 2.0], [5.0, 2.0], [0.0, 4.0]])
    heatmap = splat_heatmap(
        cells, torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1, 1, 0]), num_classes=3, grid_hw=(5, 8)
    )
    assert heatmap.shape == (3, 5, 8)
    assert (heatmap == 1).nonzero().tolist() == [[0, 4, 0], [1, 2, 3], [1, 2, 5]]
    assert heatmap[0].sum() == 1 and heatmap[2].sum() == 0  # radius 0 is one cell
    wide, narrow = 2 * (5 / 6) ** 2, 2 * (3 / 6) ** 2
    assert heatmap[1, 2, 4].item() == pytest.approx(max(math.exp(-1 / wide), math.exp(-1 / narrow)))
    assert heatmap[1, 1, 2].item() == pytest.approx(math.exp(-2 / wide))
    assert heatmap[1, 2, 0] == 0 and heatmap[1, 2, 7] == 0  # beyond the radius
    nothing = splat_heatmap(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0).long(), num_classes=2, grid_hw=(3, 3))
    assert nothing.shape == (2, 3, 3) and not nothing.any()


def test_focal_loss_is_that_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    heatmaps = torch.rand(2, 6, 3, generator=generator, dtype=torch.float64)
    heatmaps[0, 1, 2] = heatmaps[1, 4, 0] = 1.0
    total = 0.0
    for logit, target in zip(logits.flatten().tolist(), heatmaps.flatten().tolist(), strict=True):
        score = 1 / (1 + math.exp(-logit))
        if target == 1:
            total -= (1 - score) ** 2 * math.log(score)
        else:
            total -= (1 - target) ** 4 * score**2 * math.log(1 - score)
    assert penalty_reduced_focal_loss(logits, heatmaps).item() == pytest.approx(total / 2, rel=1e-9)
    # Without a centre it is the sum, and extreme logits stay finite.
    assert penalty_reduced_focal_loss(torch.tensor([-300.0, 300.0]), torch.zeros(2)).item() == pytest.approx(300.0)


def test_only_peaks_keep_their_logit() -> None:
    logits = torch.full((1, 2, 4, 5), -6.0)
    logits[0, 0, 1, 1], logits[0, 0, 1, 2], logits[0, 0, 3, 4] = 3.0, 2.0, 1.0
    logits[0, 1] = torch.arange(20.0).view(4, 5)
    peaks = keep_peaks(logits)
    assert peaks[0, 0, 1, 1] == 3 and peaks[0, 0, 3, 4] == 1
    assert peaks[0, 0, 1, 2] == NO_PEAK and peaks[0, 0, 0, 0] == NO_PEAK
    assert (peaks[0, 1] > NO_PEAK).nonzero().tolist() == [[3, 4]]
    assert peaks[0, 0, 3, 0] == -6  # as large as all around it
    scores = (1 / (1 + torch.exp(-torch.tensor(NO_PEAK)))).item()
    assert scores == 0


def test_aggregation_starts_as_bilinear_enlargement() -> None:
    enlarge = AggregationNode(3, 3).enlarge
    features = torch.arange(3 * 6 * 5.0).view(1, 3, 6, 5)  # a slope, which interpolation continues exactly
    expected = functional.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
    torch.testing.assert_close(enlarge(features)[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


def test_ideal_heads_have_no_box_loss_and_decode_to_the_objects() -> None:
    model = build_model("centernet-pico", num_classes=NUM_CLASSES)
    boxes = torch.tensor([[10.0, 7, 33, 30], [60, 2, 96, 64], [3, 3, 3, 9]])  # the last one is empty
    class_ids = torch.tensor([2, 0, 1])
    heatmap, index, wanted = model._targets(boxes, class_ids, (16, 24))
    assert index.tolist() == [4 * 24 + 5, 8 * 24 + 19]
    regression = torch.zeros(1, 16 * 24, 4)
    regression[0, index] = wanted
    logits = keep_peaks(torch.logit(heatmap.clamp(1e-4, 0.9))[None]).flatten(2).transpose(1, 2)
    spec = model.decode_spec(SIZE_HW)
    found = decode_nms(
        regression.numpy(),
        logits.numpy(),
        attributes=spec.attributes(),
        score_threshold=0.5,
        iou_threshold=0.7,
        priors=spec.priors(),
    )
    assert found.num_detections.tolist() == [[2]]
    np.testing.assert_allclose(found.boxes[0, :2], boxes[[1, 0]].numpy(), atol=1e-5)
    assert found.class_ids[0, :2].tolist() == [0, 2]
    heads = {"class_logits": logits, "box_regression": regression, "_size_hw": torch.tensor(SIZE_HW)}
    targets = Targets(boxes_xyxy=[boxes], class_ids=[class_ids])
    parts = model.loss(heads, targets)
    assert parts["offset"] == 0 and parts["size"] == 0
    # Every offset wrong by a half and every size by 3: weights 1 and 0.1.
    heads["box_regression"] = regression + torch.tensor([0.5, -0.5, 3.0, -3.0])
    parts = model.loss(heads, targets)
    assert parts["offset"].item() == pytest.approx(0.5) and parts["size"].item() == pytest.approx(0.3)
    assert parts["loss"].item() == pytest.approx(parts["heatmap"].item() + 0.8)


@pytest.mark.parametrize("smoothing", [0.2, 0.5])
def test_a_smoothed_peak_is_to_score_less_than_1(smoothing: float) -> None:
    wanted = 1 - smoothing / 2
    heatmaps = torch.tensor([1.0, 0.5, 0.0])

    def peak_loss(score: float) -> float:
        logits = torch.tensor([math.log(score / (1 - score)), -20.0, -20.0])
        return penalty_reduced_focal_loss(logits, heatmaps, label_smoothing=smoothing).item()

    assert peak_loss(wanted) == pytest.approx(0, abs=1e-6)
    by_hand = (wanted - 0.3) ** 2 * -(wanted * math.log(0.3) + (1 - wanted) * math.log(0.7))
    assert peak_loss(0.3) == pytest.approx(by_hand, rel=1e-4)
    assert peak_loss(wanted + 0.04) > 1e-4  # too sure of itself


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_an_overlap_in_place_of_the_loss_of_sizes(kind: OverlapKind) -> None:
    model = build_model("centernet-pico", num_classes=NUM_CLASSES)
    model.set_loss_options(LossOptions(box_loss=kind))
    boxes = torch.tensor([[10.0, 7, 34, 31], [60, 2, 96, 64]])
    _, index, wanted = model._targets(boxes, torch.tensor([2, 0]), (16, 24))
    targets = Targets(boxes_xyxy=[boxes, boxes[:0]], class_ids=[torch.tensor([2, 0]), torch.tensor([]).long()])
    regression = torch.zeros(2, 16 * 24, 4)
    regression[0, index] = wanted
    heads = {"class_logits": torch.zeros(2, 16 * 24, NUM_CLASSES), "box_regression": regression}
    heads["_size_hw"] = torch.tensor(SIZE_HW)
    parts = model.loss(heads, targets)
    assert "size" not in parts and parts["box"].item() == pytest.approx(0, abs=1e-6) and parts["offset"] == 0
    # The first box, of 6x6 cells, half as wide about the same centre: an overlap of a half. The other stays right.
    regression[0, index[0], 2] = 3.0
    loss = overlap_loss(torch.tensor([16.0, 7, 28, 31]), boxes[0], kind=kind).item()
    assert model.loss(heads, targets)["box"].item() == pytest.approx(loss / 2, rel=1e-5)
    nothing = Targets(boxes_xyxy=[boxes[:0]] * 2, class_ids=[torch.tensor([]).long()] * 2)
    assert model.loss(heads, nothing)["box"] == 0


class Restatement:
    """Runs layers on a state dict by name, and makes the tensors up the first time."""

    def __init__(self) -> None:
        self.state: StateDict = {}
        self.generator = torch.Generator().manual_seed(1)

    def tensor(self, name: str, shape: tuple[int, ...], low: float, high: float) -> Tensor:
        if name not in self.state:
            self.state[name] = low + (high - low) * torch.rand(shape, generator=self.generator)
        return self.state[name]

    def conv(self, name: str, x: Tensor, out: int, size: int, stride: int = 1, bias: bool = False) -> Tensor:
        bound = math.sqrt(6 / (x.shape[1] * size * size))
        weight = self.tensor(f"{name}.weight", (out, x.shape[1], size, size), -bound, bound)
        offset = self.tensor(f"{name}.bias", (out,), -0.5, 0.5) if bias else None
        return functional.conv2d(x, weight, offset, stride=stride, padding=size // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        width = (x.shape[1],)
        mean, var = (self.tensor(f"{name}.running_{key}", width, *span) for key, span in STATISTICS.items())
        weight, bias = self.tensor(f"{name}.weight", width, 0.8, 1.2), self.tensor(f"{name}.bias", width, -0.2, 0.2)
        self.state.setdefault(f"{name}.num_batches_tracked", torch.tensor(7))
        return functional.batch_norm(x, mean, var, weight, bias)

    def double(self, name: str, x: Tensor, out: int, groups: int = 1) -> Tensor:
        weight = self.tensor(f"{name}.weight", (x.shape[1], out // groups, 4, 4), -0.1, 0.3 / groups)
        return functional.conv_transpose2d(x, weight, stride=2, padding=1, groups=groups)

    def head(self, name: str, x: Tensor, hidden: int, out: int) -> Tensor:
        return self.conv(f"{name}.2", self.conv(f"{name}.0", x, hidden, 3, bias=True).relu(), out, 1, bias=True)

    def heads(self, x: Tensor, hidden: int) -> dict[str, Tensor]:
        widths = {"hm": NUM_CLASSES, "wh": 2, "reg": 2}
        return {name: self.head(name, x, hidden, width) for name, width in widths.items()}


STATISTICS = {"mean": (-0.2, 0.2), "var": (0.8, 1.5)}


def residual_block(net: Restatement, name: str, x: Tensor, width: int, stride: int, bottleneck: bool) -> Tensor:
    out = 4 * width if bottleneck else width
    if bottleneck:
        y = net.norm(f"{name}.bn1", net.conv(f"{name}.conv1", x, width, 1)).relu()
        y = net.norm(f"{name}.bn2", net.conv(f"{name}.conv2", y, width, 3, stride)).relu()
        y = net.norm(f"{name}.bn3", net.conv(f"{name}.conv3", y, out, 1))
    else:
        y = net.norm(f"{name}.bn1", net.conv(f"{name}.conv1", x, width, 3, stride)).relu()
        y = net.norm(f"{name}.bn2", net.conv(f"{name}.conv2", y, width, 3))
    if stride != 1 or x.shape[1] != out:
        x = net.norm(f"{name}.downsample.1", net.conv(f"{name}.downsample.0", x, out, 1, stride))
    return (x + y).relu()


def resnet(net: Restatement, x: Tensor, blocks: tuple[int, ...], bottleneck: bool) -> dict[str, Tensor]:
    """`--arch res_*`: ResNet, three transposed convolutions of 256 channels, heads of 64."""
    x = net.norm("bn1", net.conv("conv1", x, 64, 7, 2)).relu()
    x = functional.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate(blocks):
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            x = residual_block(net, f"layer{stage + 1}.{block}", x, 64 * 2**stage, stride, bottleneck)
    for step in range(3):
        x = net.norm(f"deconv_layers.{3 * step + 1}", net.double(f"deconv_layers.{3 * step}", x, 256)).relu()
    return net.heads(x, 64)


def dla_block(net: Restatement, name: str, x: Tensor, out: int, stride: int, shortcut: Tensor) -> Tensor:
    y = net.norm(f"{name}.bn1", net.conv(f"{name}.conv1", x, out, 3, stride)).relu()
    return (net.norm(f"{name}.bn2", net.conv(f"{name}.conv2", y, out, 3)) + shortcut).relu()


def dla_tree(
    net: Restatement, name: str, x: Tensor, out: int, *, depth: int, stride: int, extra: list[Tensor], root: bool
) -> Tensor:
    """A tree of depth 1 is two blocks and a root that merges them; deeper ones are made of two trees."""
    bottom = functional.max_pool2d(x, stride, stride) if stride > 1 else x
    shortcut = bottom
    if x.shape[1] != out:  # trees of depth 2 have this projection too, and never use it
        shortcut = net.norm(f"{name}.project.1", net.conv(f"{name}.project.0", bottom, out, 1))
    extra = [*extra, bottom] if root else extra
    if depth == 1:
        first = dla_block(net, f"{name}.tree1", x, out, stride, shortcut)
        second = dla_block(net, f"{name}.tree2", first, out, 1, first)
        merged = torch.cat([second, first, *extra], dim=1)
        return net.norm(f"{name}.root.bn", net.conv(f"{name}.root.conv", merged, out, 1)).relu()
    first = dla_tree(net, f"{name}.tree1", x, out, depth=depth - 1, stride=stride, extra=[], root=False)
    return dla_tree(net, f"{name}.tree2", first, out, depth=depth - 1, stride=1, extra=[*extra, first], root=False)


def dla34(net: Restatement, x: Tensor) -> dict[str, Tensor]:
    """`--arch dlav0_34`: DLA-34, iterative deep aggregation from stride 32 to 4, heads of 256."""
    for name, out, size, stride in (("base_layer", 16, 7, 1), ("level0", 16, 3, 1), ("level1", 32, 3, 2)):
        x = net.norm(f"base.{name}.1", net.conv(f"base.{name}.0", x, out, size, stride)).relu()
    levels = []
    for level, out, depth in ((2, 64, 1), (3, 128, 2), (4, 256, 2), (5, 512, 1)):
        x = dla_tree(net, f"base.level{level}", x, out, depth=depth, stride=2, extra=[], root=level > 2)
        levels.append(x)
    net.conv("base.fc", functional.adaptive_avg_pool2d(x, 1), 1000, 1, bias=True)
    for stage in range(3):
        inputs, steps = levels[-stage - 2 :], []
        y, out = inputs[0], inputs[0].shape[1]
        for place, coarse in enumerate(inputs[1:], start=1):
            name = f"dla_up.ida_{stage}"
            if coarse.shape[1] != out:
                projected = net.conv(f"{name}.proj_{place}.0", coarse, out, 1)
                coarse = net.norm(f"{name}.proj_{place}.1", projected).relu()
            enlarged = net.double(f"{name}.up_{place}", coarse, out, groups=out)
            merged = net.conv(f"{name}.node_{place}.0", torch.cat([y, enlarged], dim=1), out, 3)
            y = net.norm(f"{name}.node_{place}.1", merged).relu()
            steps.append(y)
        levels[-stage - 1 :] = steps
    return net.heads(y, 256)


Network = Callable[[Restatement, Tensor], dict[str, Tensor]]
PUBLIC: dict[str, Network] = {
    "centernet-r18": lambda net, x: resnet(net, x, (2, 2, 2, 2), bottleneck=False),
    "centernet-r50": lambda net, x: resnet(net, x, (3, 4, 6, 3), bottleneck=True),
    "centernet-dla34": dla34,
}


@pytest.mark.parametrize("variant", PUBLIC)
def test_imports_the_authors_weights(variant: str) -> None:
    net = Restatement()
    images = torch.randn(2, 3, *SIZE_HW, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs = PUBLIC[variant](net, images)
    if variant == "centernet-dla34":  # the parts that are there and never used
        assert {"base.fc.weight", "base.level3.project.0.weight", "base.level4.project.1.bias"} <= net.state.keys()
    weights = import_checkpoint(net.state, variant)
    assert weights.num_classes == NUM_CLASSES
    ours = build_model(variant, num_classes=NUM_CLASSES).eval()
    load_weights(ours, weights.state, variant)
    with torch.no_grad():
        heads = ours(images)
    heatmaps, boxes = keep_peaks(theirs["hm"]), torch.cat([theirs["reg"], theirs["wh"]], dim=1)
    scale = boxes.abs().max().item()
    assert scale > 0.1 and theirs["hm"].std() > 0.01
    torch.testing.assert_close(
        heads["box_regression"], boxes.flatten(2).transpose(1, 2), rtol=0, atol=RAW_HEADS * scale
    )
    found, wanted = heads["class_logits"], heatmaps.flatten(2).transpose(1, 2)
    assert ((found == NO_PEAK) == (wanted == NO_PEAK)).float().mean() > 0.999
    both = (found > NO_PEAK) & (wanted > NO_PEAK)
    assert both.sum() > 50
    torch.testing.assert_close(found[both], wanted[both], rtol=0, atol=RAW_HEADS * theirs["hm"].abs().max().item())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"deconv_layers.0.conv_offset_mask.weight": torch.zeros(1)}, "deformable"),
        ({"pre.0.conv.weight": torch.zeros(1)}, "hm.2.weight"),
    ],
    ids=["deformable convolutions", "another network"],
)
def test_other_checkpoints_are_refused(state: StateDict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(state, "centernet-r18")


def test_surplus_and_missing_tensors_are_named() -> None:
    net = Restatement()
    PUBLIC["centernet-r18"](net, torch.zeros(1, 3, 32, 32))
    del net.state["reg.2.bias"]
    net.state["hps.2.weight"] = torch.zeros(34, 64, 1, 1)
    weights = import_checkpoint(net.state, "centernet-r18")
    with pytest.raises(CheckpointError, match=r"offset\.2\.bias.*hps\.2\.weight|hps\.2\.weight.*offset\.2\.bias"):
        load_weights(build_model("centernet-r18", num_classes=NUM_CLASSES), weights.state, "file")
