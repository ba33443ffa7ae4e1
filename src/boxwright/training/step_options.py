"""The options of a run that change the model or act on every step, put together in one place."""

from __future__ import annotations

import dataclasses

import torch

from boxwright.core.errors import InputError
from boxwright.core.placement import rules_for
from boxwright.core.preprocess import Preprocess
from boxwright.models import DetectionModel
from boxwright.training.backbone import find_frozen, freeze_parameters, keep_frozen_statistics
from boxwright.training.config import TrainConfig
from boxwright.training.cross_iteration_norm import (
    forget_past_batches,
    insert_cross_iteration_norm,
    look_back,
)
from boxwright.training.dataset import TrainBatch
from boxwright.training.drop_block import insert_drop_block, set_drop_probability
from boxwright.training.fake_quantization import insert_fake_quantization
from boxwright.training.multi_scale import Size, resize_batch, scaled_sizes, size_of_batch
from boxwright.training.self_adversarial import alter_against, is_altered


class StepOptions:
    """What a run does beyond the plain step, each part only where it was asked for.

    Args:
        module: the detector.
        config: of the run.
        preprocess: of the detector.
        size_hw: of its usual input.

    Raises:
        InputError: where the detector cannot do what is asked for.
    """

    def __init__(self, module: DetectionModel, config: TrainConfig, preprocess: Preprocess, size_hw: Size) -> None:
        self.module = module
        self.config = config
        self.preprocess = preprocess
        self.size_hw = size_hw
        self.sizes: tuple[Size, ...] = self._sizes()
        self.frozen = find_frozen(module, config.freeze) if config.freeze else ()
        module.set_loss_options(config.loss_options)

    def _sizes(self) -> tuple[Size, ...]:
        if self.config.multi_scale == 0:
            return ()
        if self.preprocess.size_hw is None:
            raise InputError(
                "--multi-scale",
                expected="a preprocessing with a fixed input size",
                got=f"{self.preprocess.resize} without one, whose batches vary by themselves",
                fix="leave --multi-scale out",
            )
        return scaled_sizes(self.module, self.size_hw, self.config.multi_scale)

    def transform_model(self) -> tuple[str, ...]:
        """Freeze and insert what is asked for; the state dict keeps its keys.

        Returns:
            Notes for people.
        """
        notes = []
        if self.frozen:
            freeze_parameters(self.module, self.frozen)
            total = sum(1 for _ in self.module.parameters())
            notes.append(f"{len(self.frozen)} of {total} parameter tensors are frozen, with their normalisation")
        if self.config.drop_block > 0:
            notes.append("DropBlock follows " + ", ".join(insert_drop_block(self.module)))
        if self.config.cross_iteration_norm > 1:
            example = torch.zeros(1, 3, *self.size_hw, device=next(self.module.parameters()).device)
            replaced = insert_cross_iteration_norm(self.module, self.config.cross_iteration_norm, example)
            window = self.config.cross_iteration_norm
            notes.append(f"{len(replaced)} BatchNorm layers look back over {window} batches")
        if self.config.qat:
            example = torch.zeros(1, 3, *self.size_hw, device=next(self.module.parameters()).device)
            rounded = insert_fake_quantization(self.module, example, rules_for(self.config.qat_engine))
            notes.append(
                f"{len(rounded)} layers compute with numbers rounded as INT8 on {self.config.qat_engine} rounds them"
            )
        if self.sizes:
            smallest, largest = self.sizes[0], self.sizes[-1]
            notes.append(f"{len(self.sizes)} input sizes from {_shown(smallest)} to {_shown(largest)}")
        return tuple(notes)

    def start_epoch(self) -> None:
        """Get the model ready for an epoch; it has just been put into training mode."""
        if self.frozen:
            keep_frozen_statistics(self.module)
        forget_past_batches(self.module)

    def start_step(self, progress: float) -> None:
        """Set what changes over the run.

        Args:
            progress: part in [0, 1] of the run that is done.
        """
        if self.config.cross_iteration_norm > 1:
            look_back(self.module, is_active=progress >= self.config.rise)
        if self.config.drop_block > 0:
            set_drop_probability(self.module, self.config.drop_block * progress)

    def prepare_batch(self, batch: TrainBatch, *, epoch: int, batch_index: int) -> TrainBatch:
        """The batch at the size that it is to have, altered against the network where the draw says so."""
        place = {"seed": self.config.seed, "epoch": epoch, "batch_index": batch_index}
        if self.sizes:
            batch = resize_batch(batch, size_of_batch(self.sizes, **place))
        if self.config.self_adversarial > 0 and is_altered(self.config.self_adversarial, **place):
            images = alter_against(self.module, batch.images, batch.pixel_mask, self.preprocess)
            batch = dataclasses.replace(batch, images=images)
        return batch


def _shown(size_hw: Size) -> str:
    return f"{size_hw[0]}x{size_hw[1]}"
