"""YOLO9000's hierarchy: reading, conditional softmax, descent and learning, against a plain walk down the tree."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from boxwright.core.errors import CheckpointError, InputError
from boxwright.export import ExportOptions, export
from boxwright.models import Targets, build_model, load_model
from boxwright.models.common.darknet_files import parse_cfg
from boxwright.models.common.saving import save_checkpoint
from boxwright.models.common.word_tree import Hierarchy, WordTree, parse_tree, tree_cross_entropy
from boxwright.models.darknet import Darknet
from region_cfg import region_cfg

# animal: dog (terrier, hound, pug), cat; vehicle: car, plane; and a lone child of car.
TREE = """
animal -1
vehicle -1
dog 0
cat 0
car 1
plane 1
terrier 2
hound 2
pug 2
cabriolet 4
"""
ANIMAL, VEHICLE, DOG, CAT, CAR, PLANE, TERRIER, HOUND, PUG, CABRIOLET = range(10)


def tree() -> WordTree:
    return parse_tree(TREE, "a.tree")


def test_reading() -> None:
    found = tree()
    assert found.names[:3] == ("animal", "vehicle", "dog")
    assert found.groups == ((0, 1), (2, 3), (4, 5), (6, 7, 8), (9,))
    assert found.path(HOUND) == (HOUND, DOG, ANIMAL)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "empty"),
        ("animal\n", "a name and the number"),
        ("animal x\n", "a name and the number"),
        ("animal 0\n", "before this node"),
        ("animal -1\ndog 7\n", "before this node"),
        ("animal -2\n", "before this node"),
        ("a -1\nb 0\nc 1\nd 0\n", "one after the other"),
        ("a -1\nb 0\na 0\n", "names that differ, got 'a' twice"),
    ],
)
def test_trees_that_make_no_sense(text: str, named: str) -> None:
    with pytest.raises(CheckpointError, match=named) as caught:
        parse_tree(text, "a.tree")
    assert "a.tree" in str(caught.value) and "\n" not in str(caught.value)


def walk(logits: Tensor, found: WordTree, threshold: float) -> tuple[int, float]:
    """The class that is reached and its probability, by descending step by step."""
    children = {found.parents[group[0]]: group for group in found.groups}
    node, probability = -1, 1.0
    while node in children:
        group = list(children[node])
        softmax = logits[group].softmax(0)
        best = int(softmax.argmax())
        if node != -1 and probability * float(softmax[best]) <= threshold:
            break
        node, probability = group[best], probability * float(softmax[best])
    return node, probability


def test_scores_are_those_of_the_walk() -> None:
    found = tree()
    logits = torch.randn(2, 50, 10, generator=torch.Generator().manual_seed(1)) * 3
    scores = Hierarchy(found)(logits)
    reached = set()
    for image in range(2):
        for anchor in range(50):
            node, probability = walk(logits[image, anchor], found, 0.5)
            expected = torch.zeros(10)
            expected[node] = probability
            torch.testing.assert_close(scores[image, anchor], expected)
            reached.add(node)
    assert {DOG, CAT, HOUND, CABRIOLET} <= reached and len(reached) > 6


def test_an_uncertain_descent_stops_above() -> None:
    logits = torch.full((1, 1, 10), 0.0)
    logits[..., ANIMAL], logits[..., DOG] = 3.0, 3.0
    scores = Hierarchy(tree())(logits)[0, 0]
    sigmoid = 1 / (1 + math.exp(-3))
    assert scores.nonzero()[:, 0].tolist() == [DOG]
    assert scores[DOG].item() == pytest.approx(sigmoid**2)  # its breeds share it in three, so none is likely enough


def test_probabilities_multiply_down_the_path_and_sum_to_one() -> None:
    logits = torch.randn(1, 7, 10)
    probabilities = Hierarchy(tree()).probabilities(logits)
    torch.testing.assert_close(probabilities[..., [ANIMAL, VEHICLE]].sum(-1), torch.ones(1, 7))
    torch.testing.assert_close(probabilities[..., [TERRIER, HOUND, PUG]].sum(-1), probabilities[..., DOG])
    torch.testing.assert_close(probabilities[..., CABRIOLET], probabilities[..., CAR])


def test_cross_entropy_on_the_path() -> None:
    logits = torch.randn(2, 10)
    found = tree_cross_entropy(logits, torch.tensor([HOUND, VEHICLE]), tree())
    first = (
        -logits[0, [0, 1]].log_softmax(0)[0]
        - logits[0, [2, 3]].log_softmax(0)[0]
        - logits[0, [6, 7, 8]].log_softmax(0)[1]
    )
    torch.testing.assert_close(found, torch.stack([first, -logits[1, [0, 1]].log_softmax(0)[1]]))


CFG = region_cfg(size_hw=(64, 64), stride=4, classes=10, head_lines="tree=data/a.tree\nmap=data/some.map")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    (tmp_path / "net.cfg").write_text(CFG)
    (tmp_path / "a.tree").write_text(TREE)
    return tmp_path / "net.cfg"


def test_a_network_with_a_tree_names_its_classes_and_survives_in_a_checkpoint(network: Path) -> None:
    torch.manual_seed(0)
    before = load_model(network)
    assert before.class_names == tree().names
    spec = before.module.decode_spec((64, 64))
    assert spec.score_activation == "none" and spec.has_objectness
    save_checkpoint(network.with_name("m.pt"), before.module.state_dict(), before.manifest())
    network.unlink()
    network.with_name("a.tree").unlink()
    after = load_model(network.with_name("m.pt"))
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        expected, found = before.module(images), after.module(images)
    assert all(torch.equal(found[name], head) for name, head in expected.items())
    assert ((found["class_logits"] > 0).sum(dim=-1) == 1).all()


def test_the_hierarchy_is_in_the_exported_graph(network: Path) -> None:
    torch.manual_seed(0)
    model = load_model(network).module
    images = torch.randn(1, 3, 64, 64)
    path = network.with_name("m.onnx")
    torch.onnx.export(model, (images,), path, dynamo=True, verbose=False, opset_version=18)
    session = onnxruntime.InferenceSession(path)
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = model(images)
    for array, (name, head) in zip(found, expected.items(), strict=True):
        np.testing.assert_allclose(array, head.numpy(), atol=1e-5, err_msg=name)


def test_detections_of_an_export_are_those_of_the_network(network: Path) -> None:
    torch.manual_seed(0)
    source = load_model(network)
    save_checkpoint(network.with_name("m.pt"), source.module.state_dict(), source.manifest())
    result = export(network.with_name("m.pt"), network.with_name("m.onnx"), options=ExportOptions(nms="graph"))
    assert result.verification.proven
    assert result.manifest.class_names == tree().names


def test_a_missing_tree_is_asked_for(network: Path) -> None:
    network.with_name("a.tree").unlink()
    with pytest.raises(CheckpointError, match=r"a\.tree.*beside net\.cfg"):
        load_model(network)


def test_a_tree_of_another_size_is_refused(network: Path) -> None:
    network.with_name("a.tree").write_text("animal -1\nvehicle -1\n")
    with pytest.raises(CheckpointError, match="10 classes, got 2 nodes"):
        load_model(network)


def targets_of(boxes: list[list[float]], class_id: int, *, class_only: bool) -> Targets:
    return Targets(
        boxes_xyxy=[torch.tensor(boxes), torch.zeros(0, 4)],
        class_ids=[torch.tensor([class_id]), torch.zeros(0, dtype=torch.int64)],
        is_class_only=(class_only, False),
    )


def test_images_of_which_the_class_alone_is_known_teach_classes_alone(network: Path) -> None:
    torch.manual_seed(0)
    model = load_model(network).module
    assert isinstance(model, Darknet)
    heads = {
        name: head.detach().requires_grad_() if head.is_floating_point() else head
        for name, head in model.train()(torch.randn(2, 3, 64, 64)).items()
    }
    boxes = [[8.0, 8.0, 40.0, 56.0]]
    parts = model.loss(heads, targets_of(boxes, HOUND, class_only=True))
    other_box = model.loss(heads, targets_of([[30.0, 30.0, 60.0, 60.0]], HOUND, class_only=True))
    torch.testing.assert_close(parts["loss"], other_box["loss"])  # where it lies says nothing
    parts["loss"].backward()
    gradient = {name: heads[name].grad for name in ("box_regression", "class_logits", "objectness")}
    assert not gradient["box_regression"][0].any()
    # One prediction learns, and of its classes those on the path to the class with their siblings.
    likely = Hierarchy(tree()).probabilities(heads["class_logits"])[0, :, HOUND] * heads["objectness"][0].sigmoid()
    learner = int(likely.argmax())
    assert gradient["class_logits"][0].any(dim=1).nonzero()[:, 0].tolist() == [learner]
    touched = gradient["class_logits"][0, learner].nonzero()[:, 0].tolist()
    assert touched == [ANIMAL, VEHICLE, DOG, CAT, TERRIER, HOUND, PUG]
    assert set(gradient["objectness"][0].nonzero()[:, 0].tolist()) <= {learner}
    # The other image has boxes to tell of, if none: its empty cells learn that there is nothing.
    assert gradient["objectness"][1].all()


def test_objectness_is_raised_to_the_assumed_overlap_and_not_above(network: Path) -> None:
    model = load_model(network).module.train()
    heads = dict(model(torch.randn(2, 3, 64, 64)))
    for probability, expected in ((0.1, 5 * (0.3 - 0.1) ** 2 / 2), (0.7, 0.0)):
        logit = math.log(probability / (1 - probability))
        only_first = {**heads, "objectness": torch.full_like(heads["objectness"], logit)}
        both = model.loss(only_first, targets_of([[8.0, 8.0, 40.0, 56.0]], HOUND, class_only=True))["object"].item()
        second_image = 2 * 16 * 16 * probability**2 / 2
        assert both == pytest.approx(expected + second_image, rel=1e-4)


def test_the_class_is_learned_without_boxes(network: Path) -> None:
    torch.manual_seed(0)
    model = load_model(network).module.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    images, targets = torch.randn(2, 3, 64, 64), targets_of([[0.0, 0.0, 64.0, 64.0]], PUG, class_only=True)
    losses = []
    for _ in range(30):
        parts = model.training_loss(images, targets)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        losses.append(parts["class"].item())
    assert losses[-1] < 0.2 * losses[0]


def test_other_families_refuse_such_images() -> None:
    model = build_model("yolov5-pico", num_classes=10)
    with pytest.raises(InputError, match="class alone"):
        model.training_loss(torch.randn(2, 3, 64, 64), targets_of([[0.0, 0.0, 9.0, 9.0]], 3, class_only=True))
    with pytest.raises(InputError, match="is_class_only"):
        Targets(boxes_xyxy=[torch.zeros(0, 4)], class_ids=[torch.zeros(0)], is_class_only=(True, False))


def test_yolov2_learns_from_such_images_without_a_tree() -> None:
    sections = parse_cfg(CFG.replace("tree=data/a.tree\n", ""), "net.cfg")
    model = Darknet(variant="net", sections=sections).train()
    parts = model.training_loss(torch.randn(2, 3, 64, 64), targets_of([[0.0, 0.0, 9.0, 9.0]], 3, class_only=True))
    assert parts["class"].item() > 0 and parts["box"].item() == 0


def test_yolo9000_by_name_is_one_softmax(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model("yolo9000", num_classes=3).eval()
    images = torch.randn(1, 3, 64, 64)
    raw: list[Tensor] = []
    assert isinstance(model, Darknet) and model.hierarchy is not None
    model.hierarchy.register_forward_pre_hook(lambda _, inputs: raw.append(inputs[0]))
    with torch.no_grad():
        scores = model(images)["class_logits"]
    assert scores.shape == (1, 3 * 2 * 2, 3)  # three priors on cells of 32 pixels
    best, index = raw[0].softmax(dim=-1).max(dim=-1, keepdim=True)
    torch.testing.assert_close(scores, torch.zeros_like(scores).scatter(-1, index, best))
    targets = Targets(boxes_xyxy=[torch.tensor([[8.0, 8, 40, 40]])], class_ids=[torch.tensor([1])])
    losses = model.train().loss(model(images), targets)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_yolo9000_of_the_release_has_its_width() -> None:
    with torch.device("meta"):
        model = build_model("yolo9000", num_classes=9418)
    assert isinstance(model, Darknet)
    last = model.network.layers[-2]
    assert isinstance(last[0], torch.nn.Conv2d) and last[0].out_channels == 28269


def test_a_tree_alone_is_a_yolo9000_that_survives_in_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "animals.tree").write_text(TREE)
    torch.manual_seed(0)
    before = load_model(tmp_path / "animals.tree", size_hw=(64, 64))
    assert before.class_names == tree().names and before.variant == "animals"
    assert build_model(str(tmp_path / "animals.tree"), num_classes=10).num_classes == 10
    save_checkpoint(tmp_path / "m.pt", before.module.state_dict(), before.manifest())
    (tmp_path / "animals.tree").unlink()
    after = load_model(tmp_path / "m.pt")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = before.module(images), after.module(images)
    assert all(torch.equal(found[name], head) for name, head in expected.items())


def test_trees_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.tree.*No such file"):
        load_model(tmp_path / "none.tree")
    (tmp_path / "a.tree").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="not text"):
        load_model(tmp_path / "a.tree")
    (tmp_path / "b.tree").write_text(TREE)
    with pytest.raises(InputError, match="3 classes"):
        build_model(str(tmp_path / "b.tree"), num_classes=3)
