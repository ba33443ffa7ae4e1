"""RetinaNet against torchvision's from the same weights, and its assigners against the papers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import detection

from boxwright.core.errors import CheckpointError
from boxwright.models import build_model
from boxwright.models.common.anchor_assignment import BACKGROUND, IGNORED, assign_atss, assign_by_iou
from boxwright.models.common.anchor_deltas import decode_deltas, encode_deltas
from boxwright.models.common.checkpoint import load_weights
from boxwright.models.common.loading import default_size_hw, read_weights
from boxwright.models.retinanet import RetinaNet, import_checkpoint
from torchvision_parity import (
    as_torchvision_takes_it,
    assert_found_alike,
    detect,
    inputs_of,
    learn_statistics,
    real_images,
    shortest_edge_preprocess,
    spread_outputs,
)

NUM_CLASSES = 7
# A quarter of torchvision's sizes, so that the test is fast; it makes inputs of which P6 and P7 are no exact part.
SHORTEST_EDGE, MAX_SIZE = 200, 333
# Torchvision's own.
SCORE_THRESHOLD, IOU_THRESHOLD = 0.05, 0.5
PAIRS = {"retinanet-r50": detection.retinanet_resnet50_fpn, "retinanet-r50-v2": detection.retinanet_resnet50_fpn_v2}


@pytest.mark.parametrize("variant", PAIRS)
def test_finds_what_torchvision_finds_from_the_same_weights(variant: str, shared_dir: Path) -> None:
    images = real_images(shared_dir)
    given = [as_torchvision_takes_it(image) for image in images]
    theirs = torchvision_model(variant, given)
    weights = import_checkpoint(theirs.state_dict(), variant)
    assert weights.num_classes == NUM_CLASSES
    ours = build_model(variant, num_classes=NUM_CLASSES).eval()
    load_weights(ours, weights.state, variant)
    preprocess = shortest_edge_preprocess(SHORTEST_EDGE, MAX_SIZE)
    found = []
    for image in images:  # each by itself, the input as large as it needs
        pixels = inputs_of(theirs, preprocess, [image])
        transform = preprocess.plan((image.shape[0], image.shape[1]))
        found += detect(ours, pixels, [transform], score_threshold=SCORE_THRESHOLD, iou_threshold=IOU_THRESHOLD)
    with torch.no_grad():
        wanted = [theirs([image])[0] for image in given]
    assert_found_alike(found, wanted, first_label=0)


def torchvision_model(variant: str, given: list[torch.Tensor]) -> torch.nn.Module:
    torch.manual_seed(0)
    theirs = PAIRS[variant](
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES, min_size=SHORTEST_EDGE, max_size=MAX_SIZE
    ).eval()
    learn_statistics(theirs.backbone, theirs.transform(given)[0].tensors)
    head = theirs.head
    spread_outputs(
        theirs, [(head.classification_head.cls_logits, 2.0, -3.0), (head.regression_head.bbox_reg, 0.5, 0.0)], given[0]
    )
    return theirs


def test_the_second_version_by_its_short_name(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = build_model("retinanet-v2", num_classes=3)
    assert model.variant == "retinanet-r50-v2" and default_size_hw("retinanet-v2") == (800, 800)
    torch.save({"head.classification_head.cls_logits.weight": torch.zeros(27, 1)}, tmp_path / "a")
    assert read_weights(tmp_path / "a", model="retinanet-v2").variant == "retinanet-r50-v2"


def test_another_checkpoint_is_refused() -> None:
    with pytest.raises(CheckpointError, match="cls_logits"):
        import_checkpoint({"head.weight": torch.zeros(3)}, "retinanet-r50")


ANCHORS = torch.tensor([[0, 0, 10, 10], [4, 0, 14, 10], [20, 20, 30, 30], [100, 100, 110, 110]], dtype=torch.float32)


def test_assignment_by_overlap() -> None:
    # Overlaps with the first object: 1, 6/14, 0, 0; the second is overlapped by anchor 2 alone, by a quarter.
    boxes = torch.tensor([[0, 0, 10, 10], [25, 20, 45, 30]], dtype=torch.float32)
    assigned = assign_by_iou(ANCHORS, boxes, foreground_iou=0.5, background_iou=0.4)
    assert assigned.tolist() == [0, IGNORED, 1, BACKGROUND]
    strict = assign_by_iou(ANCHORS, boxes, foreground_iou=0.5, background_iou=0.4, keep_best_of_object=False)
    assert strict.tolist() == [0, IGNORED, BACKGROUND, BACKGROUND]
    nothing = assign_by_iou(ANCHORS, torch.zeros(0, 4), foreground_iou=0.5, background_iou=0.4)
    assert nothing.tolist() == [BACKGROUND] * 4


def test_adaptive_assignment_takes_what_stands_out_and_lies_inside() -> None:
    boxes = torch.tensor([[0, 0, 10, 10]], dtype=torch.float32)
    # Candidates are the nearest two of each level: overlaps 1, 6/14, 0, 0; mean + deviation = 0.357 + 0.473.
    assigned = assign_atss(ANCHORS, (2, 2), boxes, candidates_per_level=2)
    assert assigned.tolist() == [0, BACKGROUND, BACKGROUND, BACKGROUND]
    assert assign_atss(ANCHORS, (2, 2), torch.zeros(0, 4)).tolist() == [BACKGROUND] * 4


def test_adaptive_assignment_takes_the_nearest_places_with_all_their_anchors() -> None:
    model = RetinaNet(variant="retinanet-r18-v2", num_classes=1)
    spec = model.decode_spec((128, 128))
    anchors = torch.from_numpy(spec.priors())
    boxes = torch.tensor([[40.0, 40.0, 88.0, 88.0]])
    assigned = model._assign(anchors, tuple(level.size for level in spec.levels), boxes)
    centres = (anchors[:, :2] + anchors[:, 2:])[assigned == 0] / 2
    places = {tuple(centre) for centre in centres.tolist()}
    assert len(places) >= 5  # 9 anchors alone would be those of the nearest place
    assert all(40 < x < 88 and 40 < y < 88 for x, y in places)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_deltas_invert(weights: tuple[float, float, float, float]) -> None:
    boxes = torch.tensor([[3, 4, 20, 30], [0, 0, 5, 50], [1, 1, 2, 2], [90, 90, 130, 95]], dtype=torch.float32)
    torch.testing.assert_close(decode_deltas(encode_deltas(boxes, ANCHORS, weights), ANCHORS, weights), boxes)
    # Centre 5 to the right of a 10 wide anchor, twice as wide.
    deltas = encode_deltas(torch.tensor([[0.0, 0, 20, 10]]), ANCHORS[:1])
    torch.testing.assert_close(deltas, torch.tensor([[0.5, 0.0, np.log(2), 0.0]], dtype=torch.float32))
