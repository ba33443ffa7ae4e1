"""What every detector family must do; a family is found by its file and tested in its smallest variant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from boxwright.bench.accuracy import evaluate
from boxwright.core.decode import decode_nms
from boxwright.core.manifest import Manifest
from boxwright.data import Dataset
from boxwright.models import Targets, list_models, load_model
from boxwright.models.common.saving import save_checkpoint
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.torch import TorchBackend
from family_models import FAMILIES, NUM_CLASSES, TrainedFamily, as_loaded, every_family, small_model

RAW_HEADS = {"box_regression", "class_logits", "objectness", "priors", "image_size_hw"}


def test_there_are_families() -> None:
    assert "yolox" in FAMILIES


def test_every_variant_is_listed_with_its_cost() -> None:
    for info in list_models():
        assert info.num_parameters > 1000 and info.gflops > 0.001, info
        assert info.imports, info


@every_family
@pytest.mark.parametrize(("batch", "units_hw"), [(1, (4, 4)), (2, (4, 5))])
def test_forward_shapes_are_those_of_the_decode_spec(family: str, batch: int, units_hw: tuple[int, int]) -> None:
    model = small_model(family).eval()
    size_hw = tuple(units * model.size_divisor for units in units_hw)
    images = torch.randn(batch, 3, *size_hw)
    with torch.no_grad():
        heads = {name: head for name, head in model(images).items() if not name.startswith("_")}
    assert heads.keys() <= RAW_HEADS
    spec = model.decode_spec(size_hw)
    assert spec.num_classes == NUM_CLASSES
    num_anchors = heads["class_logits"].shape[1]
    assert heads["class_logits"].shape == (batch, num_anchors, spec.num_logits)
    assert heads["box_regression"].shape[:2] == (batch, num_anchors)
    assert ("objectness" in heads) == spec.has_objectness
    priors = spec.priors()
    assert priors is None or priors.shape == (num_anchors, 4)
    assert all(head.isfinite().all() for head in heads.values())
    output = decode_nms(
        heads["box_regression"].numpy(),
        heads["class_logits"].numpy(),
        objectness=heads["objectness"].numpy() if "objectness" in heads else None,
        priors=heads["priors"].numpy() if "priors" in heads else priors,
        image_size_hw=(
            heads["image_size_hw"].numpy()
            if "image_size_hw" in heads
            else np.array([size_hw] * batch, dtype=np.float32)
        ),
        attributes=spec.attributes(),
        score_threshold=0.0,
        iou_threshold=0.7,
    )
    assert output.boxes.shape == (batch, spec.max_detections, 4)


@every_family
def test_items_of_a_batch_do_not_touch_each_other(family: str) -> None:
    model = small_model(family).eval()
    side = 3 * model.size_divisor
    images = torch.randn(2, 3, side, 2 * model.size_divisor)
    with torch.no_grad():
        together, alone = model(images), model(images[1:])
    for name, head in alone.items():
        if not name.startswith("_"):
            torch.testing.assert_close(together[name][1:], head, rtol=1e-4, atol=1e-4)


@every_family
def test_sizes_that_do_not_fit_are_refused_in_one_line(family: str) -> None:
    model = small_model(family)
    if model.size_divisor == 1:
        pytest.skip("takes every size")
    with pytest.raises(ValueError, match="multiples of") as caught:
        model.decode_spec((model.size_divisor + 1, model.size_divisor))
    assert "\n" not in str(caught.value)
    if model.largest_stride > model.size_divisor:
        with pytest.raises(ValueError, match=f"{model.largest_stride} at least.*{model.largest_stride}x"):
            model.decode_spec((model.largest_stride, model.largest_stride - model.size_divisor))


def random_targets(counts: list[int], size_hw: tuple[int, int]) -> Targets:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([size_hw[1], size_hw[0]], dtype=torch.float32)
    boxes, class_ids = [], []
    for count in counts:
        corners = torch.rand(count, 2, generator=generator) * 0.6
        sizes = 0.1 + torch.rand(count, 2, generator=generator) * 0.3
        boxes.append(torch.cat([corners * scale, (corners + sizes) * scale], dim=1))
        class_ids.append(torch.randint(0, NUM_CLASSES, (count,), generator=generator))
    return Targets(boxes_xyxy=boxes, class_ids=class_ids)


@every_family
@pytest.mark.parametrize("counts", [[3, 1], [2, 0], [0, 0]], ids=["objects", "one empty image", "no objects"])
def test_loss_is_finite_and_reaches_the_weights(family: str, counts: list[int]) -> None:
    model = small_model(family).train()
    size_hw = (4 * model.size_divisor, 5 * model.size_divisor)
    parts = model.training_loss(torch.randn(2, 3, *size_hw), random_targets(counts, size_hw))
    assert all(value.isfinite() and value.ndim == 0 for value in parts.values())
    parts["loss"].backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


@every_family
def test_checkpoint_round_trip(family: str, tmp_path: Path) -> None:
    model = small_model(family, seed=3).eval()
    size_hw = (4 * model.size_divisor, 5 * model.size_divisor)
    names = ("a", "b", "c", "d")
    before = as_loaded(model, size_hw, names)
    save_checkpoint(tmp_path / "m.pt", model.state_dict(), before.manifest())
    after = load_model(tmp_path / "m.pt")
    assert (after.family, after.variant, after.class_names) == (family, model.variant, names)
    assert (after.preprocess, after.size_hw) == (before.preprocess, size_hw)
    images = torch.randn(1, 3, *size_hw)
    with torch.no_grad():
        expected, found = model(images), after.module(images)
    assert all(torch.equal(found[name], head) for name, head in expected.items())
    assert after.source_sha256 is not None and len(after.source_sha256) == 64
    assert Manifest.from_json(after.manifest().to_json()) == after.manifest()


@every_family
def test_overfits_eight_generated_images(
    family: str, eight_images: Dataset, trained: Callable[[str], TrainedFamily]
) -> None:
    result = trained(family)
    assert np.isfinite(result.losses).all()
    assert np.mean(result.losses[-10:]) < 0.6 * np.mean(result.losses[:10]), "the loss does not fall"
    manifest = result.loaded.manifest()
    backend = TorchBackend.from_module(result.loaded.module, manifest)
    detector = Detector.from_backend(backend, manifest, conf=0.01, iou=0.6)
    accuracy = evaluate(detector, eight_images)
    assert accuracy.map50 is not None and accuracy.map50 >= 0.9, (accuracy, result.losses[::10])
