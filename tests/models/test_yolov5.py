"""YOLOv5: sizes, key names, matching by ratios and the loss, against numbers computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from boxwright.core.decode import decode_boxes
from boxwright.core.errors import CheckpointError
from boxwright.models import Targets, load_model
from boxwright.models.common.checkpoint import StateDict
from boxwright.models.common.ratio_matching import match_by_ratio, neighbour_cells, side_ratios
from boxwright.models.common.registry import ImportedWeights
from boxwright.models.yolov5 import (
    _LAYERS,
    COCO_ANCHORS_WH,
    STRIDES,
    VARIANTS,
    Yolov5,
    build,
    decode,
    import_checkpoint,
    level_loss,
)

NAMES = ("a", "b", "c")


@pytest.mark.parametrize(
    ("variant", "count"),
    [
        ("yolov5n", 1_872_157),
        ("yolov5s", 7_235_389),
        ("yolov5m", 21_190_557),
        ("yolov5l", 46_563_709),
        ("yolov5x", 86_749_405),
    ],
)
def test_published_sizes(variant: str, count: int) -> None:
    """Parameters with 80 classes, as the authors' programs print them."""
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build(variant, 80).parameters()) == count


def their_state(model: Yolov5) -> StateDict:
    """Our weights under the authors' key names."""
    numbers = {name: number for number, name in _LAYERS.items()}
    state = {}
    for key, tensor in model.state_dict().items():
        layer = max((name for name in numbers if key.startswith(f"{name}.")), key=len)
        rest = key.removeprefix(f"{layer}.").replace("predictions.", "m.").replace("blocks.", "m.")
        for position in (1, 2, 3):
            if not rest.startswith("conv.") and numbers[layer] != 24:
                rest = rest.replace(f"conv{position}.", f"cv{position}.")
        state[f"model.{numbers[layer]}.{rest}"] = tensor
    return state


# As printed by people who looked into the authors' files.
PUBLIC_KEYS = (
    "model.0.conv.weight",
    "model.0.bn.running_mean",
    "model.2.cv1.conv.weight",
    "model.2.m.0.cv1.bn.weight",
    "model.6.m.2.cv2.bn.bias",
    "model.9.cv2.bn.num_batches_tracked",
    "model.10.conv.weight",
    "model.13.m.0.cv2.conv.weight",
    "model.18.bn.weight",
    "model.24.anchors",
    "model.24.m.2.bias",
)


def test_public_key_names() -> None:
    state = their_state(build("yolov5n", 3))
    assert set(PUBLIC_KEYS) <= set(state)
    assert tuple(state["model.0.conv.weight"].shape) == (16, 3, 6, 6)
    assert tuple(state["model.24.anchors"].shape) == (3, 3, 2)
    assert not any("backbone" in key or "neck" in key or "blocks" in key for key in state)


@pytest.mark.parametrize("prefix", ["", "model.", "model.model."])
def test_import_of_a_state_dict(prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = build("yolov5-pico", 3).eval()
    model.set_anchors([(4.0 * i + 4, 6.0 * i + 3) for i in range(9)])
    torch.save({f"{prefix}{key}": tensor for key, tensor in their_state(model).items()}, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", model="yolov5-pico", class_names=NAMES)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for name, head in model(images).items():
            torch.testing.assert_close(loaded.module(images)[name], head)
    levels = loaded.module.decode_spec((64, 96)).levels
    assert levels[0].anchors_wh[1] == (8.0, 9.0) and levels[2].anchors_wh[2] == (36.0, 51.0)


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    """The authors publish half precision."""
    state = their_state(build("yolov5-pico", 3))
    torch.save({key: t.half() if t.is_floating_point() else t for key, t in state.items()}, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", model="yolov5-pico", class_names=NAMES)
    assert all(parameter.dtype == torch.float32 for parameter in loaded.module.parameters())
    found = tuple(level.anchors_wh for level in loaded.module.decode_spec((32, 32)).levels)
    assert found == COCO_ANCHORS_WH


def test_missing_and_surplus_keys_are_listed(tmp_path: Path) -> None:
    state = their_state(build("yolov5-pico", 3))
    del state["model.9.cv2.bn.weight"]
    state["model.25.cv1.conv.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"1 missing: backbone\.stages\.3\.2\.conv2.*1 surplus: model\.25"):
        load_model(tmp_path / "m.pt", model="yolov5-pico", class_names=NAMES)
    with pytest.raises(CheckpointError, match=r"model\.24\.m\.0\.weight"):
        import_checkpoint({"head.cls_preds.0.weight": torch.zeros(3)}, "yolov5-pico")


class _Pickled(torch.nn.Module):
    """Stands for the authors' class, which their .pt files need."""


def test_a_pickled_module_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save({"model": _Pickled()}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"_Pickled.*state_dict\(\)"):
        load_model(tmp_path / "m.pt", model="yolov5n", class_names=NAMES)


def test_side_ratios_are_the_worse_of_both_sides_either_way() -> None:
    ratios = side_ratios(torch.tensor([[10.0, 40.0]]), torch.tensor([[10.0, 10.0], [30.0, 50.0], [40.0, 160.0]]))
    torch.testing.assert_close(ratios, torch.tensor([[4.0, 3.0, 4.0]]))


@pytest.mark.parametrize(
    ("centre_xy", "cells"),
    [
        ((2.2, 1.7), {(2, 1), (1, 1), (2, 2)}),
        ((2.7, 1.2), {(2, 1), (3, 1), (2, 0)}),
        ((0.2, 0.3), {(0, 0)}),  # the neighbours lie outside
        ((4.8, 2.9), {(4, 2)}),
        ((2.5, 1.1), {(2, 1), (2, 0)}),  # exactly between left and right: neither
        ((5.0, 3.0), {(4, 2), (4, 2)}),  # on the edge of the image
    ],
)
def test_up_to_three_cells_learn_an_object(centre_xy: tuple[float, float], cells: set[tuple[int, int]]) -> None:
    found, counted = neighbour_cells(torch.tensor([centre_xy]), (3, 5))
    assert {tuple(cell) for cell in found[0][counted[0]].tolist()} == cells


def test_matches_of_a_batch() -> None:
    targets = Targets(
        boxes_xyxy=[torch.zeros(0, 4), torch.tensor([[16.0, 4.0, 26.0, 16.0], [0.0, 0.0, 48.0, 30.0]])],
        class_ids=[torch.zeros(0, dtype=torch.int64), torch.tensor([2, 0])],
    )
    anchors = torch.tensor([[10.0, 13.0], [200.0, 200.0]])
    matches = match_by_ratio(targets, anchors, grid_hw=(4, 6), stride=8)
    # The first object, 10 x 12 about (21, 10), fits the first anchor alone: cell (2, 1) and its neighbours (3, 1) and
    # (2, 0). The second, 48 x 30, is 4.8 times as wide as the first anchor and less than a quarter of the second.
    assert matches.image.tolist() == [1, 1, 1]
    assert matches.class_ids.tolist() == [2, 2, 2]
    assert sorted(matches.prediction.tolist()) == sorted(2 * cell for cell in (1 * 6 + 2, 1 * 6 + 3, 0 * 6 + 2))


def test_decoding_in_the_loss_is_that_of_the_operator() -> None:
    model = build("yolov5-pico", 3)
    spec = model.decode_spec((32, 64))
    priors, attributes = spec.priors(), spec.attributes()
    assert priors is not None
    raw = np.random.default_rng(0).normal(0, 2, (len(priors), 4)).astype(np.float32)
    expected = decode_boxes(raw, priors, np.arange(len(raw)), np.zeros(len(raw), np.int64), attributes)
    start = 0
    for level, stride in zip(spec.levels, STRIDES, strict=True):
        part = slice(start, start + level.size)
        start += level.size
        cells = torch.from_numpy(priors[part, :2]) / stride
        found = decode(torch.from_numpy(raw[part]), cells, torch.from_numpy(priors[part, 2:]), stride)
        np.testing.assert_allclose(found.numpy(), expected[part], rtol=1e-5, atol=1e-3)


def test_width_and_height_are_bounded() -> None:
    boxes = decode(torch.tensor([[90.0, -90.0, 90.0, 90.0]]), torch.zeros(1, 2), torch.tensor([[10.0, 5.0]]), 8)
    # Centre at 1.5 cells and -0.5 cells, sides of four anchors.
    torch.testing.assert_close(boxes, torch.tensor([[12.0 - 20, -4.0 - 10, 12.0 + 20, -4.0 + 10]]))


def level_of_nothing(grid_hw: tuple[int, int]) -> dict[str, torch.Tensor]:
    size = grid_hw[0] * grid_hw[1] * 3
    return {
        "box_regression": torch.zeros(1, size, 4),
        "class_logits": torch.zeros(1, size, 3),
        "objectness": torch.zeros(1, size),
    }


def test_objectness_learns_the_overlap() -> None:
    anchors = torch.tensor([[8.0, 8.0], [800.0, 800.0], [900.0, 900.0]])
    # Raw zeros decode to the anchor in the cell's middle, so this object is met exactly.
    targets = Targets(boxes_xyxy=[torch.tensor([[8.0, 8.0, 16.0, 16.0]])], class_ids=[torch.tensor([1])])
    matches = match_by_ratio(targets, anchors, grid_hw=(4, 4), stride=8)
    assert matches.prediction.tolist() == [(1 * 4 + 1) * 3]
    level = level_of_nothing((4, 4))
    level["objectness"][0, 15] = 3.0
    losses = level_loss(level, matches, anchors, stride=8, box_loss="ciou")
    assert losses["box"].item() == pytest.approx(0, abs=1e-6)
    assert losses["class"].item() == pytest.approx(math.log(2))
    learned = math.log(1 + math.exp(-3))  # against the target 1
    assert losses["object"].item() == pytest.approx((47 * math.log(2) + learned) / 48, rel=1e-5)


def test_an_object_missed_by_half_is_worth_its_overlap() -> None:
    anchors = torch.tensor([[8.0, 8.0]])
    targets = Targets(boxes_xyxy=[torch.tensor([[8.0, 8.0, 16.0, 24.0]])], class_ids=[torch.tensor([1])])
    matches = match_by_ratio(targets, anchors, grid_hw=(4, 4), stride=8)
    size = 16
    level = {
        "box_regression": torch.zeros(1, size, 4),
        "class_logits": torch.zeros(1, size, 3),
        "objectness": torch.full((1, size), -2.0),
    }
    with_iou = level_loss(level, matches, anchors, stride=8, box_loss="iou")["object"].item()
    # The centre (1.5, 2.0) belongs to cell (1, 2) and, being nearer to it, (1, 1): each overlaps by half.
    softplus = math.log(1 + math.exp(-2.0))
    assert with_iou == pytest.approx((16 * softplus + 2 * 0.5 * 2.0) / 16, rel=1e-5)


def test_fitted_anchors_live_in_the_state_dict() -> None:
    model, other = build("yolov5-pico", 2), build("yolov5-pico", 2)
    sizes = [(5.0 + i, 7.0 + 2 * i) for i in range(model.num_anchor_sizes)]
    model.set_anchors(sizes)
    other.load_state_dict(model.state_dict())
    assert [anchor for level in other.decode_spec((32, 32)).levels for anchor in level.anchors_wh] == sizes


def test_import_keeps_the_class_count() -> None:
    imported = import_checkpoint(their_state(build("yolov5-pico", 7)), "yolov5-pico")
    assert isinstance(imported, ImportedWeights) and imported.num_classes == 7
    assert set(VARIANTS) >= {"yolov5n", "yolov5s", "yolov5m", "yolov5l", "yolov5x"}
