"""DETR against the transformers package's from the same weights, and its parts against the paper."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from boxwright.core.decode import decode_nms
from boxwright.core.errors import CheckpointError
from boxwright.core.images import read_image
from boxwright.core.preprocess_presets import preset
from boxwright.models import Targets, build_model
from boxwright.models.common.attention import MultiHeadAttention
from boxwright.models.common.boxes import cxcywh_to_xyxy, paired_overlap
from boxwright.models.common.checkpoint import load_weights
from boxwright.models.common.position_encoding import sine_encoding
from boxwright.models.common.set_matching import MatchingCosts, match_sets
from boxwright.models.detr import import_checkpoint

NUM_CLASSES = 7
SIZE_HW = (256, 320)


def theirs(variant: str) -> torch.nn.Module:
    """The transformers package's model with random weights that tell queries and images apart."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DetrConfig(
        use_pretrained_backbone=False,
        num_labels=NUM_CLASSES,
        backbone="resnet101" if "r101" in variant else "resnet50",
        dilation="dc5" in variant,
    )
    model = transformers.DetrForObjectDetection(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "query_position" in name or "predictor" in name or "classifier.weight" in name:
                parameter.mul_(4)
    return model.eval()


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As files on the hub have them, saved before the package's fifth version."""
    return {
        key.replace("backbone.model.", "backbone.conv_encoder.model.")
        .replace(".o_proj.", ".out_proj.")
        .replace(".mlp.", "."): value
        for key, value in state.items()
    }


def test_finds_what_transformers_finds_from_the_same_weights(shared_dir: Path) -> None:
    model = theirs("detr-r50")
    weights = import_checkpoint(model.state_dict(), "detr-r50")
    assert weights.num_classes == NUM_CLASSES
    ours = build_model("detr-r50", num_classes=NUM_CLASSES).eval()
    load_weights(ours, weights.state, "detr-r50")
    spec = ours.decode_spec(SIZE_HW)
    preprocess = preset("imagenet-stretch", SIZE_HW)
    num_boxes = 0
    for path in sorted((shared_dir / "data" / "coco-tiny" / "val2017").glob("*.jpg"))[:3]:
        tensor, _ = preprocess.apply(read_image(path))
        images = torch.from_numpy(tensor)[None]
        with torch.no_grad():
            expected, heads = model(pixel_values=images), ours(images)
        boxes = cxcywh_to_xyxy(expected.pred_boxes[0]) * torch.tensor([320.0, 256, 320, 256])
        scores, labels = expected.logits[0].softmax(dim=1)[:, :-1].max(dim=1)
        found = decode_nms(
            heads["box_regression"].numpy(),
            heads["class_logits"].numpy(),
            attributes=spec.attributes(),
            score_threshold=0.0,
            iou_threshold=0.7,
            priors=spec.priors(),
        )
        order = scores.argsort(descending=True, stable=True)
        assert int(found.num_detections[0, 0]) == len(order) == 100
        np.testing.assert_allclose(found.scores[0], scores[order].numpy(), atol=1e-3)
        for box, score, label in zip(found.boxes[0], found.scores[0], found.class_ids[0], strict=True):
            same = (boxes - torch.from_numpy(box)).abs().amax(dim=1) < 1e-3 * max(SIZE_HW)
            same &= ((scores - float(score)).abs() < 1e-3) & (labels == int(label))
            assert same.any()
            num_boxes += 1
        torch.testing.assert_close(heads["box_regression"], expected.pred_boxes, atol=1e-5, rtol=0)
    assert num_boxes >= 50


@pytest.mark.parametrize("variant", ["detr-r50", "detr-r101-dc5"])
@pytest.mark.parametrize("naming", ["new", "old", "authors"])
def test_all_names_of_the_weights_are_read(variant: str, naming: str) -> None:
    ours = build_model(variant, num_classes=NUM_CLASSES)
    if naming == "authors":
        state = {
            f"backbone.0.body.{key.removeprefix('backbone.')}" if key.startswith("backbone.") else key: value
            for key, value in ours.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        load_weights(ours, import_checkpoint(state, variant).state, variant)
        return
    model = theirs(variant)
    state = model.state_dict() if naming == "new" else old_names(model.state_dict())
    load_weights(ours, import_checkpoint(state, variant).state, variant)
    images = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        heads, expected = ours.eval()(images), model(pixel_values=images)
    torch.testing.assert_close(heads["class_logits"], expected.logits, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_without_a_projection_is_refused_by_its_name() -> None:
    state = theirs("detr-r50").state_dict()
    del state["model.encoder.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(CheckpointError, match=r"encoder\.layers\.1\.self_attn\.in_proj_weight"):
        load_weights(
            build_model("detr-r50", num_classes=NUM_CLASSES), import_checkpoint(state, "detr-r50").state, "file"
        )
    with pytest.raises(CheckpointError, match="class_embed"):
        import_checkpoint({"head.weight": torch.zeros(3)}, "detr-r50")


def test_attention_is_pytorchs() -> None:
    torch.manual_seed(0)
    expected = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    found = MultiHeadAttention(16, 4)
    found.load_state_dict(expected.state_dict())
    query, key, value = torch.randn(2, 3, 16), torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    torch.testing.assert_close(found(query, key, value), expected(query, key, value)[0])


def test_encoding_is_the_papers() -> None:
    encoding = sine_encoding((2, 3), 8).view(2, 3, 8)
    y, x = 2 / 2 * 2 * math.pi, 1 / 3 * 2 * math.pi
    wanted = [math.sin(y), math.cos(y), math.sin(y / 100), math.cos(y / 100)]
    wanted += [math.sin(x), math.cos(x), math.sin(x / 100), math.cos(x / 100)]
    torch.testing.assert_close(encoding[1, 0], torch.tensor(wanted), atol=1e-5, rtol=0)


def test_matching_is_the_cheapest_of_all() -> None:
    torch.manual_seed(1)
    queries, objects = torch.rand(5, 4) * 0.5 + 0.2, torch.rand(3, 4) * 0.5 + 0.2
    class_costs = -torch.rand(5, 3)
    costs = MatchingCosts(class_weight=1.0)
    total = (
        class_costs
        + 5 * (queries[:, None] - objects[None]).abs().sum(dim=2)
        - 2 * paired_overlap(cxcywh_to_xyxy(queries)[:, None], cxcywh_to_xyxy(objects)[None], kind="giou")
    )
    best = min(
        itertools.permutations(range(5), 3), key=lambda rows: sum(total[row, column] for column, row in enumerate(rows))
    )
    rows, columns = match_sets(class_costs, queries, objects, costs)
    assert columns.tolist() == [0, 1, 2] and tuple(rows.tolist()) == best


def test_more_objects_than_queries_leave_the_dearest_without() -> None:
    model = build_model("detr-pico", num_classes=2).train()
    count = model.decode_spec((96, 96)).num_queries + 5
    corners = torch.rand(count, 2) * 60
    targets = Targets(
        boxes_xyxy=[torch.cat([corners, corners + 20], dim=1)], class_ids=[torch.zeros(count, dtype=torch.int64)]
    )
    parts = model.training_loss(torch.randn(1, 3, 96, 96), targets)
    assert all(part.isfinite() for part in parts.values()) and parts["giou"] > 0


def test_predictions_that_overflowed_are_matched_last() -> None:
    queries = torch.tensor([[math.nan] * 4, [0.5, 0.5, 0.2, 0.2]])
    rows, _ = match_sets(torch.zeros(2, 1), queries, queries[1:], MatchingCosts(class_weight=1.0))
    assert rows.tolist() == [1]
