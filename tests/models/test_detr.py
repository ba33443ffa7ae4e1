"""DETR against the transformers package's from the same weights, and its parts against the paper."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

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


class AuthorsDetr(torch.nn.Module):
    """As facebookresearch's code builds it: layers of torch and torchvision, which has the same names for theirs."""

    def __init__(self) -> None:
        super().__init__()
        resnet = torchvision.models.resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
        stem = torch.nn.Module()
        stem.body = IntermediateLayerGetter(resnet, {"layer4": "0"})
        self.backbone = torch.nn.Sequential(stem)
        self.input_proj = torch.nn.Conv2d(2048, 256, 1)
        options = {"d_model": 256, "nhead": 8, "dim_feedforward": 2048, "dropout": 0.0, "batch_first": True}
        self.transformer = torch.nn.Module()
        self.transformer.encoder = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(**options), 6)
        decoder_layer, norm = torch.nn.TransformerDecoderLayer(**options), torch.nn.LayerNorm(256)
        self.transformer.decoder = torch.nn.TransformerDecoder(decoder_layer, 6, norm)
        self.query_embed = torch.nn.Embedding(100, 256)
        self.class_embed = torch.nn.Linear(256, NUM_CLASSES + 1)
        self.bbox_embed = torch.nn.Module()
        self.bbox_embed.layers = torch.nn.ModuleList(torch.nn.Linear(256, width) for width in (256, 256, 4))

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        features = self.input_proj(self.backbone[0].body(pixel_values)["0"])
        places = sine_encoding((features.shape[2], features.shape[3]), 256)[None]
        memory = features.flatten(2).transpose(1, 2)
        for layer in self.transformer.encoder.layers:
            placed = memory + places
            memory = layer.norm1(memory + layer.self_attn(placed, placed, memory)[0])
            memory = layer.norm2(memory + layer.linear2(layer.linear1(memory).relu()))
        queries = self.query_embed.weight[None]
        found = torch.zeros_like(queries)
        for layer in self.transformer.decoder.layers:
            placed = found + queries
            found = layer.norm1(found + layer.self_attn(placed, placed, found)[0])
            found = layer.norm2(found + layer.multihead_attn(found + queries, memory + places, memory)[0])
            found = layer.norm3(found + layer.linear2(layer.linear1(found).relu()))
        found = self.transformer.decoder.norm(found)
        boxes = found
        for layer in self.bbox_embed.layers[:2]:
            boxes = layer(boxes).relu()
        boxes = self.bbox_embed.layers[2](boxes).sigmoid()
        return SimpleNamespace(pred_boxes=boxes, logits=self.class_embed(found))


def authors_detr() -> AuthorsDetr:
    """With random weights, no two layers alike."""
    torch.manual_seed(0)
    model = AuthorsDetr().eval()
    for module in model.transformer.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.MultiheadAttention | torch.nn.LayerNorm):
            for name, parameter in module.named_parameters(recurse=False):
                spread = torch.randn_like(parameter) * 0.05
                parameter.data = spread + 1 if isinstance(module, torch.nn.LayerNorm) and name == "weight" else spread
    for norm in model.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            for name, buffer in norm.named_buffers():
                buffer.copy_(torch.rand_like(buffer) * 0.5 + (0.75 if name in ("weight", "running_var") else -0.25))
    for layer in (model.query_embed, model.class_embed, model.bbox_embed.layers[2]):
        layer.weight.data *= 4
    return model


def tell_queries_apart(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Let queries look at unlike places, and spread what the last layers say, as a trained network's do."""
    is_transformers = not isinstance(model, AuthorsDetr)
    class_layer = model.class_labels_classifier if is_transformers else model.class_embed
    box_layer = (model.bbox_predictor if is_transformers else model.bbox_embed).layers[2]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "decoder" in name and name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter *= 20
            elif "decoder" in name and name.endswith("in_proj_weight"):
                parameter[: 2 * 256] *= 20
        said = model(pixel_values=images)
        for layer, values, spread in ((class_layer, said.logits[0], 2.0), (box_layer, said.pred_boxes[0].logit(), 1.0)):
            mean = values.mean(dim=0)
            factor = spread / (values - mean).std()
            layer.weight *= factor
            layer.bias.copy_((layer.bias - mean) * factor)


@pytest.mark.parametrize("source", ["transformers", "facebookresearch"])
def test_finds_what_others_find_from_the_same_weights(source: str, shared_dir: Path) -> None:
    # Where the layers are torch's own, random weights enlarge the roundings of float32.
    dtype = torch.float32 if source == "transformers" else torch.float64
    model = (theirs("detr-r50") if source == "transformers" else authors_detr()).to(dtype)
    preprocess = preset("imagenet-stretch", SIZE_HW)
    paths = sorted((shared_dir / "data" / "coco-tiny" / "val2017").glob("*.jpg"))[:3]
    pixels = [torch.from_numpy(preprocess.apply(read_image(path))[0])[None].to(dtype) for path in paths]
    tell_queries_apart(model, pixels[0])
    weights = import_checkpoint(model.state_dict(), "detr-r50")
    assert weights.num_classes == NUM_CLASSES
    ours = build_model("detr-r50", num_classes=NUM_CLASSES).eval().to(dtype)
    load_weights(ours, weights.state, "detr-r50")
    spec = ours.decode_spec(SIZE_HW)
    num_boxes, labels_met = 0, set()
    for images in pixels:
        with torch.no_grad():
            expected, heads = model(pixel_values=images), ours(images)
        boxes = cxcywh_to_xyxy(expected.pred_boxes[0]) * torch.tensor([320.0, 256, 320, 256])
        scores, labels = expected.logits[0].softmax(dim=1)[:, :-1].max(dim=1)
        assert (boxes.std(dim=0) > 10).all() and scores.std() > 0.1  # else any box would do for any other
        found = decode_nms(
            heads["box_regression"].float().numpy(),
            heads["class_logits"].float().numpy(),
            attributes=spec.attributes(),
            score_threshold=0.0,
            iou_threshold=0.7,
            priors=spec.priors(),
        )
        assert int(found.num_detections[0, 0]) == len(scores) == 100
        for box, score, label in zip(found.boxes[0], found.scores[0], found.class_ids[0], strict=True):
            same = (boxes - torch.from_numpy(box)).abs().amax(dim=1) < 1e-3  # pixels
            same &= ((scores - float(score)).abs() < 1e-3) & (labels == int(label))
            assert same.any()
            num_boxes += 1
        labels_met |= set(labels.tolist())
    assert num_boxes >= 50 and len(labels_met) >= 5


@pytest.mark.parametrize("variant", ["detr-r50", "detr-r101-dc5"])
@pytest.mark.parametrize("naming", ["new", "old"])
def test_all_names_of_the_weights_are_read(variant: str, naming: str) -> None:
    ours = build_model(variant, num_classes=NUM_CLASSES)
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
