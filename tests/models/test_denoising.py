"""Spoilt objects as queries: what they hold, whom they see, what they are to become, and that use knows none of it."""

import torch

from boxwright.models import Targets, build_model
from boxwright.models.common.boxes import cxcywh_to_xyxy
from boxwright.models.common.checkpoint import load_weights
from boxwright.models.common.denoising import SpoiltQueries, spoil_objects
from boxwright.models.rtdetr import import_checkpoint

NUM_CLASSES = 5
BOXES = [torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.3, 0.6, 0.1, 0.2], [0.7, 0.2, 0.3, 0.1]]), torch.zeros(0, 4)]
CLASS_IDS = [torch.tensor([4, 0, 2]), torch.zeros(0, dtype=torch.int64)]


def spoilt(num_spoilt: int = 7) -> SpoiltQueries:
    torch.manual_seed(0)
    found = spoil_objects(BOXES, CLASS_IDS, num_classes=NUM_CLASSES, num_spoilt=num_spoilt, num_queries=4)
    assert found is not None
    return found


def test_each_object_is_given_twice_a_group_and_moved_by_its_size() -> None:
    found = spoilt()
    assert found.num_groups == 2 and found.boxes.shape == (2, 12, 4) and found.class_ids.shape == (2, 12)
    edges = cxcywh_to_xyxy(found.boxes[0]).view(2, 2, 3, 4)  # group, positive or negative, object
    wanted = cxcywh_to_xyxy(BOXES[0])
    moves = (edges - wanted).abs() / BOXES[0][:, 2:].repeat(1, 2)  # parts of the side
    inside = (edges > 1e-6) & (edges < 1 - 1e-6)
    assert (moves[:, 0] <= 0.5 + 1e-5).all() and (moves[:, 0] > 0).any()
    positive_sides = (BOXES[0][None, :, 2:] > 0) & (edges[:, 1, :, 2:] > edges[:, 1, :, :2])
    assert (moves[:, 1][inside[:, 1] & positive_sides.repeat(1, 1, 2)] <= 1 + 1e-5).all()
    assert moves[:, 1].mean() > moves[:, 0].mean()
    assert not found.boxes[1].any() and (found.class_ids[1] == NUM_CLASSES).all()  # the second image has none


def test_some_classes_are_others() -> None:
    found = spoilt(num_spoilt=3000).class_ids[0].view(-1, 3)
    changed = (found != CLASS_IDS[0]).float().mean()
    assert 0.15 < changed < 0.25  # a quarter is drawn anew, one of five of these by chance as it was
    assert found.min() == 0 and found.max() == NUM_CLASSES - 1


def test_groups_see_themselves_and_the_networks_queries_which_see_no_group() -> None:
    may_see = spoilt().may_see
    assert may_see.shape == (16, 16)
    assert may_see[:6, :6].all() and may_see[6:12, 6:12].all() and may_see[:, 12:].all()
    assert not may_see[:6, 6:12].any() and not may_see[6:12, :6].any() and not may_see[12:, :12].any()


def test_the_less_spoilt_copies_are_to_find_their_objects() -> None:
    (queries, objects), (none, nothing) = spoilt().matches
    assert queries.tolist() == [0, 1, 2, 6, 7, 8] and objects.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(none) == len(nothing) == 0
    assert spoil_objects(BOXES[1:], CLASS_IDS[1:], num_classes=5, num_spoilt=7, num_queries=4) is None


def test_the_chosen_queries_learn_as_they_would_alone() -> None:
    torch.manual_seed(0)
    model = build_model("rtdetr-pico", num_classes=NUM_CLASSES).train()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()  # so that both passes see the same
    images = torch.randn(2, 3, 96, 128)
    scale = torch.tensor([128.0, 96, 128, 96])
    targets = Targets(boxes_xyxy=[cxcywh_to_xyxy(boxes) * scale for boxes in BOXES], class_ids=CLASS_IDS)
    with torch.no_grad():
        alone, together = model.loss(model(images), targets), model.training_loss(images, targets)
    for name in ("class", "l1", "giou", "auxiliary"):
        torch.testing.assert_close(together[name], alone[name], rtol=1e-4, atol=1e-4)
    assert together["denoising"] > 0
    torch.testing.assert_close(together["loss"], alone["loss"] + together["denoising"], rtol=1e-4, atol=1e-4)


def test_more_objects_than_queries_leave_the_dearest_without() -> None:
    model = build_model("rtdetr-pico", num_classes=2).train()
    count = model.decode_spec((96, 96)).num_queries + 5
    corners = torch.rand(count, 2) * 60
    targets = Targets(
        boxes_xyxy=[torch.cat([corners, corners + 20], dim=1)] * 2,  # BatchNorm wants two images
        class_ids=[torch.zeros(count, dtype=torch.int64)] * 2,
    )
    parts = model.training_loss(torch.randn(2, 3, 96, 96), targets)
    assert all(part.isfinite() for part in parts.values()) and parts["giou"] > 0


def test_weights_without_the_layer_of_training_alone_are_read() -> None:
    model = build_model("rtdetr-pico", num_classes=NUM_CLASSES).eval()
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "denoising_class_embed.weight"}
    imported = import_checkpoint(state, "rtdetr-pico")
    assert imported.num_classes == NUM_CLASSES
    other = build_model("rtdetr-pico", num_classes=NUM_CLASSES).eval()
    load_weights(other, imported.state, "file")
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(other(images)["class_logits"], model(images)["class_logits"])
