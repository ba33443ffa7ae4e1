"""RT-DETR against the transformers package's from the same weights, and its parts against the papers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from boxwright.core.decode import decode_nms
from boxwright.core.errors import CheckpointError
from boxwright.core.images import read_image
from boxwright.models import Targets, build_model
from boxwright.models.common.boxes import cxcywh_to_xyxy
from boxwright.models.common.checkpoint import load_weights
from boxwright.models.common.deformable_attention import DeformableAttention
from boxwright.models.common.hybrid_encoder import corner_sine_encoding
from boxwright.models.rtdetr import import_checkpoint, varifocal_loss

NUM_CLASSES = 6
SIZE_HW = (256, 320)
# Of the transformers package's configuration; hidden sizes, depths and layers of the backbone, then the rest.
CONFIGS = {
    "rtdetr-r18": (
        {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"},
        {"encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5, "decoder_layers": 3},
    ),
    "rtdetr-r50": ({}, {}),
    "rtdetr-r101": (
        {"depths": [3, 4, 23, 3]},
        {"encoder_hidden_dim": 384, "encoder_ffn_dim": 2048, "decoder_in_channels": [384, 384, 384]},
    ),
}


def theirs(variant: str) -> torch.nn.Module:
    """The transformers package's model with random weights that tell queries and images apart."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone, rest = CONFIGS[variant]
    config = transformers.RTDetrConfig(
        num_labels=NUM_CLASSES,
        backbone_config=transformers.RTDetrResNetConfig(**backbone, out_features=["stage2", "stage3", "stage4"]),
        **rest,
    )
    model = transformers.RTDetrForObjectDetection(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bbox" in name or "score_head" in name or "class_embed" in name or "sampling_offsets" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As files on the hub have them, saved before the package's fifth version."""
    return {
        key.replace("model.encoder.aifi.", "model.encoder.encoder.")
        .replace(".o_proj.", ".out_proj.")
        .replace(".mlp.", ".")
        .replace("model.decoder.class_embed.", "class_embed.")
        .replace("model.decoder.bbox_embed.", "bbox_embed."): value
        for key, value in state.items()
    }


@pytest.mark.parametrize("variant", ["rtdetr-r18", "rtdetr-r50"])
def test_finds_what_transformers_finds_from_the_same_weights(variant: str, shared_dir: Path) -> None:
    model = theirs(variant)
    weights = import_checkpoint(model.state_dict(), variant)
    assert weights.num_classes == NUM_CLASSES
    ours = build_model(variant, num_classes=NUM_CLASSES).eval()
    load_weights(ours, weights.state, variant)
    spec, preprocess = ours.decode_spec(SIZE_HW), ours.default_preprocess(SIZE_HW)
    scale = torch.tensor([SIZE_HW[1], SIZE_HW[0], SIZE_HW[1], SIZE_HW[0]])
    num_boxes = 0
    for path in sorted((shared_dir / "data" / "coco-tiny" / "val2017").glob("*.jpg"))[:3]:
        images = torch.from_numpy(preprocess.apply(read_image(path))[0])[None]
        with torch.no_grad():
            expected, heads = model(pixel_values=images), ours(images)
        # As the package's own postprocessing: the best pairs of query and class.
        scores, pairs = expected.logits[0].sigmoid().flatten().topk(spec.max_detections)
        boxes = (cxcywh_to_xyxy(expected.pred_boxes[0]) * scale)[pairs // NUM_CLASSES]
        found = decode_nms(
            heads["box_regression"].numpy(),
            heads["class_logits"].numpy(),
            attributes=spec.attributes(),
            score_threshold=0.0,
            iou_threshold=0.7,
            priors=spec.priors(),
        )
        assert int(found.num_detections[0, 0]) == len(scores)
        np.testing.assert_allclose(found.scores[0], scores.numpy(), atol=1e-3)
        for box, score, label in zip(found.boxes[0], found.scores[0], found.class_ids[0], strict=True):
            same = (boxes - torch.from_numpy(box)).abs().amax(dim=1) < 1e-3  # pixels
            same &= ((scores - float(score)).abs() < 1e-3) & (pairs % NUM_CLASSES == int(label))
            num_boxes += int(same.any())
    # Of pairs whose scores are a rounding apart, the last place of the list may hold another one.
    assert num_boxes >= 3 * spec.max_detections - 3


@pytest.mark.parametrize("variant", CONFIGS)
def test_names_of_older_files_are_read(variant: str) -> None:
    model = theirs(variant)
    ours = build_model(variant, num_classes=NUM_CLASSES).eval()
    load_weights(ours, import_checkpoint(old_names(model.state_dict()), variant).state, variant)
    images = torch.rand(1, 3, 192, 256)
    with torch.no_grad():
        heads, expected = ours(images), model(pixel_values=images)
    order, their_order = heads["class_logits"][0, :, 0].argsort(), expected.logits[0, :, 0].argsort()
    torch.testing.assert_close(heads["class_logits"][0, order], expected.logits[0, their_order], atol=1e-3, rtol=1e-3)


def test_another_checkpoint_is_refused() -> None:
    with pytest.raises(CheckpointError, match="enc_score_head"):
        import_checkpoint({"head.weight": torch.zeros(3)}, "rtdetr-r18")


def test_more_objects_than_queries_leave_the_dearest_without() -> None:
    model = build_model("rtdetr-pico", num_classes=2).train()
    count = model.decode_spec((96, 96)).num_queries + 5  # also more than are given to it spoilt
    corners = torch.rand(count, 2) * 60
    targets = Targets(
        boxes_xyxy=[torch.cat([corners, corners + 20], dim=1)] * 2,
        class_ids=[torch.zeros(count, dtype=torch.int64)] * 2,
    )
    parts = model.training_loss(torch.randn(2, 3, 96, 96), targets)
    assert all(part.isfinite() for part in parts.values()) and parts["giou"] > 0 and parts["denoising"] > 0


def test_attention_samples_where_the_offsets_point() -> None:
    """One head, one point, one level that holds its own coordinates: what comes out is the place that was looked at."""
    attention = DeformableAttention(2, 1, num_levels=1, num_points=1)
    with torch.no_grad():
        attention.sampling_offsets.bias.copy_(torch.tensor([1.0, -0.5]))
        for layer in (attention.value_proj, attention.output_proj):
            layer.weight.copy_(torch.eye(2))
    rows, columns = 8, 16
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    memory = torch.stack([x, y], dim=2).flatten(0, 1)[None]  # (1, S, 2)
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.3, 0.6, 0.1, 0.1]]])
    found = attention(torch.zeros(1, 2, 2), boxes, memory, [(rows, columns)])
    # Centre plus offset times half the size.
    torch.testing.assert_close(found, torch.tensor([[[0.6, 0.4], [0.35, 0.575]]]), atol=1e-5, rtol=0)


def test_encoding_counts_from_the_corner() -> None:
    encoding = corner_sine_encoding((3, 4), 8).view(3, 4, 8)
    y, x = torch.tensor([2.0, 2 / 100]), torch.tensor([3.0, 3 / 100])
    torch.testing.assert_close(encoding[2, 3], torch.cat([y.sin(), y.cos(), x.sin(), x.cos()]))


def test_varifocal_loss_is_the_papers() -> None:
    logits, wanted = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([0.7, 0.0, 0.0])
    scores = logits.sigmoid()
    hit = -0.7 * (0.7 * scores[0].log() + 0.3 * (1 - scores[0]).log())
    misses = -0.75 * (scores[1:] ** 2 * (1 - scores[1:]).log()).sum()
    torch.testing.assert_close(varifocal_loss(logits, wanted), hit + misses)
