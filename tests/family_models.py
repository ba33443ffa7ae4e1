"""The smallest variant of every family, as it is and trained on eight generated images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch

from boxwright.core.images import read_image
from boxwright.data import Dataset
from boxwright.models import DetectionModel, LoadedModel, Targets, build_model, list_models
from boxwright.models.common.registry import families

NUM_CLASSES = 4
OVERFIT_SIZE_HW = (128, 128)
OVERFIT_STEPS = 250
FAMILIES = sorted(families())
# The tests of a family stay in one process, so that it is trained once.
every_family = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in FAMILIES]
)


@dataclass(frozen=True)
class TrainedFamily:
    """A model that has learned eight images by heart, and its loss at each step."""

    loaded: LoadedModel
    losses: list[float]


@cache
def smallest_variants() -> dict[str, str]:
    """Family -> its variant with the fewest parameters, of those that a graph can hold."""
    smallest: dict[str, tuple[int, str]] = {}
    for info in (info for info in list_models() if info.is_exportable):
        entry = (info.num_parameters, info.variant)
        smallest[info.family] = min(entry, smallest.get(info.family, entry))
    return {family: variant for family, (_, variant) in smallest.items()}


def small_model(family: str, seed: int = 0) -> DetectionModel:
    """The smallest variant with random weights."""
    torch.manual_seed(seed)
    return build_model(smallest_variants()[family], num_classes=NUM_CLASSES)


def as_loaded(model: DetectionModel, size_hw: tuple[int, int], class_names: tuple[str, ...]) -> LoadedModel:
    """A module as if it came from a file."""
    return LoadedModel(
        module=model,
        family=model.family,
        variant=model.variant,
        class_names=class_names,
        preprocess=model.default_preprocess(size_hw),
        size_hw=size_hw,
    )


def train_on(family: str, dataset: Dataset) -> TrainedFamily:
    """Train on the images as they are, the last fifth of the steps in the final phase."""
    model = small_model(family)
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
    return TrainedFamily(as_loaded(model.eval(), OVERFIT_SIZE_HW, dataset.class_names), losses)
