"""YOLOX against the authors' numbers and files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from boxwright.core import decode as reference_decode
from boxwright.core.errors import InputError
from boxwright.models import Targets, build_model, list_models, load_model, yolox
from boxwright.models.common.boxes import cxcywh_to_xyxy
from tolerances import RAW_HEADS

# Millions of parameters and GFLOPs, from the tables of the paper (2 and 3) and of the authors' model list.
PUBLISHED_COST = {
    "yolox-nano": (0.91, 1.08),
    "yolox-tiny": (5.06, 6.45),
    "yolox-s": (9.0, 26.8),
    "yolox-m": (25.3, 73.8),
    "yolox-l": (54.2, 155.6),
    "yolox-x": (99.1, 281.9),
}


def test_cost_is_the_published_one() -> None:
    found = {info.variant: info for info in list_models() if info.family == "yolox"}
    assert set(PUBLISHED_COST) <= set(found)
    for variant, (millions, gflops) in PUBLISHED_COST.items():
        assert found[variant].num_parameters / 1e6 == pytest.approx(millions, rel=0.01)
        # The authors' counter includes normalisation and activation, ours convolutions alone.
        assert found[variant].gflops == pytest.approx(gflops, rel=0.04)


@pytest.mark.parametrize("size_hw", [(416, 416), (224, 352)])
def test_raw_heads_of_the_authors_weights_are_those_of_their_onnx(shared_dir: Path, size_hw: tuple[int, int]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    loaded = load_model(
        shared_dir / "weights/yolox_nano_coco.pth",
        model="yolox-nano",
        class_names="coco",
        preprocess="yolox-legacy",
        size_hw=size_hw,
    )
    if size_hw != (416, 416):  # the ONNX file takes this size alone; the module takes others
        assert loaded.module(torch.zeros(2, 3, *size_hw))["class_logits"].shape == (2, 1617, 80)
        return
    images = torch.randn(1, 3, *size_hw, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        heads = loaded.module(images)
    scores = [heads["objectness"].sigmoid()[..., None], heads["class_logits"].sigmoid()]
    found = torch.cat([heads["box_regression"], *scores], dim=-1).numpy()
    session = onnxruntime.InferenceSession(str(shared_dir / "weights/yolox_nano_coco.onnx"))
    expected = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    np.testing.assert_allclose(found, expected, atol=RAW_HEADS, rtol=0)


def test_labels_must_fit_the_authors_weights(shared_dir: Path) -> None:
    path = shared_dir / "weights/yolox_nano_coco.pth"
    with pytest.raises(InputError, match="expected 80 names, one for each class of the head, got 20"):
        load_model(path, model="yolox-nano", class_names="voc")
    with pytest.raises(InputError, match=r"expected the names of the 80 classes.*pass --labels"):
        load_model(path, model="yolox-nano")
    with pytest.raises(InputError, match="of another shape"):
        load_model(path, model="yolox-tiny", class_names="coco")


@pytest.mark.parametrize(("size_hw", "fix"), [((100, 416), "96x416"), ((16, 16), "32x32"), ((0, 64), "32x64")])
def test_sizes_that_the_strides_do_not_divide_are_refused(size_hw: tuple[int, int], fix: str) -> None:
    with pytest.raises(InputError, match=f"multiples of 32.*--imgsz {fix}"):
        build_model("yolox-pico", num_classes=3, size_hw=size_hw)


def small_heads(size_hw: tuple[int, int], num_classes: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cells = yolox.grid_cells(size_hw, torch.device("cpu"))
    shape = (2, len(cells))
    return {
        "box_regression": torch.randn(*shape, 4, generator=generator, requires_grad=True),
        "class_logits": torch.randn(*shape, num_classes, generator=generator, requires_grad=True),
        "objectness": torch.randn(*shape, generator=generator, requires_grad=True),
        "_cells": cells,
    }


def test_decode_is_the_operators() -> None:
    """Training and deployment must read the same box from the same numbers."""
    size_hw = (64, 96)
    model = build_model("yolox-pico", num_classes=3)
    spec = model.decode_spec(size_hw)
    heads = small_heads(size_hw, 3, 0)
    found = yolox.decode(heads["box_regression"], heads["_cells"])[0]
    priors = spec.priors()
    assert priors is not None and len(found) == len(priors)
    every = np.arange(len(priors))
    expected = reference_decode.decode_boxes(
        heads["box_regression"][0].detach().numpy(), priors, every, np.zeros_like(every), spec.attributes()
    )
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-3)


def test_encode_is_the_inverse_of_decode() -> None:
    cells = yolox.grid_cells((64, 96), torch.device("cpu"))
    boxes = cxcywh_to_xyxy(torch.rand(len(cells), 4, generator=torch.Generator().manual_seed(0)) * 50 + 1)
    torch.testing.assert_close(yolox.decode(yolox.encode(boxes, cells)[None], cells)[0], boxes)


def test_perfect_predictions_cost_next_to_nothing() -> None:
    heads = small_heads((64, 64), 3, 0)
    truth = torch.tensor([[8.0, 8, 40, 40]])
    targets = Targets(boxes_xyxy=[truth, truth], class_ids=[torch.tensor([1])] * 2)
    points = (heads["_cells"][:, :2] + heads["_cells"][:, 2:] / 2 - truth[0, :2]) / 32
    is_object = ((points > 0.2) & (points < 0.8)).all(dim=1)  # (N,)
    perfect = {
        "box_regression": yolox.encode(truth.expand(len(points), 4), heads["_cells"]).expand(2, -1, 4),
        "class_logits": torch.tensor([-20.0, 20, -20]).expand(2, len(points), 3),
        "objectness": torch.where(is_object, 20.0, -20.0).expand(2, -1),
        "_cells": heads["_cells"],
    }
    parts = yolox.yolox_loss(perfect, targets, with_l1=True)
    assert parts["loss_box"].item() == pytest.approx(0, abs=1e-4)
    assert parts["loss_class"].item() == pytest.approx(0, abs=1e-4)
    assert parts["loss_l1"].item() == pytest.approx(0, abs=1e-4)
    random_parts = yolox.yolox_loss(heads, targets, with_l1=True)
    assert all(random_parts[name] > parts[name] for name in ("loss_box", "loss_class", "loss_l1", "loss_objectness"))


def test_loss_is_the_sum_of_its_parts_and_l1_comes_last() -> None:
    heads = small_heads((64, 64), 3, 0)
    targets = Targets(
        boxes_xyxy=[torch.tensor([[8.0, 8, 40, 40]]), torch.zeros(0, 4)],
        class_ids=[torch.tensor([1]), torch.zeros(0, dtype=torch.int64)],
    )
    model = build_model("yolox-pico", num_classes=3)
    early = model.loss(heads, targets)
    model.enter_final_phase()
    late = model.loss(heads, targets)
    assert "loss_l1" not in early and "loss_l1" in late
    for parts in (early, late):
        total = sum(value.item() for name, value in parts.items() if name != "loss")
        assert parts["loss"].item() == pytest.approx(total, rel=1e-5)
    assert late["loss"] > early["loss"]


def test_an_image_without_objects_teaches_objectness_alone() -> None:
    heads = small_heads((64, 64), 3, 0)
    empty = Targets(boxes_xyxy=[torch.zeros(0, 4)] * 2, class_ids=[torch.zeros(0, dtype=torch.int64)] * 2)
    parts = yolox.yolox_loss(heads, empty, with_l1=True)
    parts["loss"].backward()
    assert parts["loss"].isfinite()
    assert parts["loss"].item() == pytest.approx(parts["loss_objectness"].item())
    gradient = heads["objectness"].grad
    assert gradient is not None and (gradient > 0).all()
    assert heads["box_regression"].grad is None or not heads["box_regression"].grad.any()
