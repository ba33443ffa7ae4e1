"""What every detector family must do; a family is found by its file and tested in its smallest variant."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from boxwright.bench.accuracy import evaluate
from boxwright.core.decode import decode_nms
from boxwright.core.images import read_image
from boxwright.core.manifest import Manifest
from boxwright.data import Dataset, load_dataset
from boxwright.data.shapes import generate_shapes
from boxwright.models import DetectionModel, LoadedModel, Targets, build_model, list_models, load_model
from boxwright.models.common.registry import families
from boxwright.models.common.saving import save_checkpoint
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.torch import TorchBackend

NUM_CLASSES = 4
RAW_HEADS = {"box_regression", "class_logits", "objectness", "priors", "image_size_hw"}
OVERFIT_SIZE_HW = (128, 128)
OVERFIT_STEPS = 250


@cache
def smallest_variants() -> dict[str, str]:
    """Family -> its variant with the fewest parameters."""
    smallest: dict[str, tuple[int, str]] = {}
    for info in list_models():
        entry = (info.num_parameters, info.variant)
        smallest[info.family] = min(entry, smallest.get(info.family, entry))
    return {family: variant for family, (_, variant) in smallest.items()}


FAMILIES = sorted(families())
every_family = pytest.mark.parametrize("family", FAMILIES)


def small_model(family: str, seed: int = 0) -> DetectionModel:
    torch.manual_seed(seed)
    return build_model(smallest_variants()[family], num_classes=NUM_CLASSES)


def test_there_are_families() -> None:
    assert "yolox" in FAMILIES


def test_every_variant_is_listed_with_its_cost() -> None:
    for info in list_models():
        assert info.num_parameters > 1000 and info.gflops > 0.001, info
        assert info.imports, info


@every_family
@pytest.mark.parametrize(("batch", "units_hw"), [(1, (4, 4)), (2, (3, 5))])
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
    size_hw = (3 * model.size_divisor, 4 * model.size_divisor)
    parts = model.training_loss(torch.randn(2, 3, *size_hw), random_targets(counts, size_hw))
    assert all(value.isfinite() and value.ndim == 0 for value in parts.values())
    parts["loss"].backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def _wrap(model: DetectionModel, size_hw: tuple[int, int], class_names: tuple[str, ...]) -> LoadedModel:
    return LoadedModel(
        module=model,
        family=model.family,
        variant=model.variant,
        class_names=class_names,
        preprocess=model.default_preprocess(size_hw),
        size_hw=size_hw,
    )


@every_family
def test_checkpoint_round_trip(family: str, tmp_path: Path) -> None:
    model = small_model(family, seed=3).eval()
    size_hw = (2 * model.size_divisor, 3 * model.size_divisor)
    names = ("a", "b", "c", "d")
    before = _wrap(model, size_hw, names)
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


@pytest.fixture(scope="module")
def eight_images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("eight") / "shapes"
    generate_shapes(folder, num_train=12, num_val=1, seed=5, image_size_hw=OVERFIT_SIZE_HW)
    dataset = load_dataset(folder, "train")
    return dataset.with_samples([sample for sample in dataset.samples if len(sample) > 0][:8])


@every_family
def test_overfits_eight_generated_images(family: str, eight_images: Dataset) -> None:
    model = small_model(family)
    losses = _overfit(model, eight_images)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10]), "the loss does not fall"
    manifest = _wrap(model, OVERFIT_SIZE_HW, eight_images.class_names).manifest()
    detector = Detector.from_backend(TorchBackend.from_module(model, manifest), manifest, conf=0.01, iou=0.6)
    accuracy = evaluate(detector, eight_images)
    assert accuracy.map50 is not None and accuracy.map50 >= 0.9, (accuracy, losses[::10])


def _overfit(model: DetectionModel, dataset: Dataset) -> list[float]:
    """Train on the images as they are, the last fifth of the steps in the final phase."""
    preprocess = model.default_preprocess(OVERFIT_SIZE_HW)
    images = torch.stack([torch.from_numpy(preprocess.apply(read_image(s.image_path))[0]) for s in dataset.samples])
    targets = Targets(
        boxes_xyxy=[torch.from_numpy(sample.boxes_xyxy) for sample in dataset.samples],
        class_ids=[torch.from_numpy(sample.class_ids) for sample in dataset.samples],
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=OVERFIT_STEPS)
    losses = []
    for step in range(OVERFIT_STEPS):
        if step == int(OVERFIT_STEPS * 0.8):
            model.enter_final_phase()
        loss = model.train().training_loss(images, targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses
