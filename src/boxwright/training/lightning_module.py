"""The training step as Lightning wants it: forward, loss, learning rate, moving average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

from boxwright.models import DetectionModel
from boxwright.training.backbone import parameter_groups
from boxwright.training.config import TrainConfig
from boxwright.training.dataset import TrainBatch
from boxwright.training.ema import MovingAverage
from boxwright.training.schedule import CosineSchedule, OneCycleSchedule, RunClock, Schedule
from boxwright.training.step_options import StepOptions

SGD_MOMENTUM = 0.9
# Lightning skips the rest of an epoch where the hook before a batch returns this.
_SKIP_EPOCH = -1


class TrainingModule(lightning.LightningModule):
    """A detector in training.

    Args:
        module: the detector.
        config: of the run.
        clock: of the run.
        options: what is done beyond the plain step.
        steps_per_epoch: of the run.
        start_epoch: epochs that earlier processes did.

    Attributes:
        average: the moving average of the weights; None without.
        unreadable: images that were passed over, in order of appearance.
        is_final_phase: whether the strong augmentations rest.
    """

    def __init__(
        self,
        module: DetectionModel,
        config: TrainConfig,
        clock: RunClock,
        options: StepOptions,
        *,
        steps_per_epoch: int,
        start_epoch: int = 0,
    ) -> None:
        super().__init__()
        self.detector = module
        self.config = config
        self.clock = clock
        self.options = options
        self.steps_per_epoch = steps_per_epoch
        self.start_epoch = start_epoch
        self.schedule = make_schedule(config, module.suggested_learning_rate)
        self._rate_factors: list[float] = []
        self.average: MovingAverage | None = None
        self.unreadable: dict[str, None] = {}
        self.is_final_phase = False
        self._loss_sums: dict[str, Tensor] = {}
        self._num_summed = 0

    @property
    def epoch(self) -> int:
        """Of the whole run, from 0."""
        return self.start_epoch + self.current_epoch

    @property
    def steps_done(self) -> int:
        """Of the whole run."""
        return self.start_epoch * self.steps_per_epoch + self.global_step

    @property
    def kept_module(self) -> nn.Module:
        """The module that is measured and kept: the average where there is one."""
        return self.detector if self.average is None else self.average.module

    def start_average(self) -> None:
        """Begin the moving average at the present weights."""
        if self.config.ema:
            self.average = MovingAverage(self.detector, self.clock.total_steps)

    def wants_strong_augmentation(self) -> bool:
        """Whether the middle of the epoch that begins lies before the final phase."""
        return self.clock.progress(self.steps_done + 0.5 * self.steps_per_epoch) < 1 - self.config.final_phase

    def configure_optimizers(self) -> torch.optim.Optimizer:
        pairs = parameter_groups(
            self.detector, weight_decay=self.config.weight_decay, layer_decay=self.config.layer_decay
        )
        self._rate_factors = [factor for factor, _ in pairs]
        return make_optimizer(self.config, pairs)

    def on_fit_start(self) -> None:
        if self.average is not None:
            self.average.module.to(self.device)

    def on_train_epoch_start(self) -> None:
        if not self.is_final_phase and not self.wants_strong_augmentation():
            self.is_final_phase = True
            self.detector.enter_final_phase()
        self.options.start_epoch()
        self._loss_sums, self._num_summed = {}, 0

    def transfer_batch_to_device(self, batch: TrainBatch, device: torch.device, dataloader_idx: int) -> TrainBatch:
        images = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
        mask = None if batch.pixel_mask is None else batch.pixel_mask.to(device, non_blocking=True)
        return TrainBatch(images=images, targets=batch.targets.to(device), pixel_mask=mask, unreadable=batch.unreadable)

    def on_train_batch_start(self, batch: TrainBatch, batch_idx: int) -> int | None:
        progress = self.clock.progress(self.steps_done)
        # Out of time. An epoch that has begun makes a step all the same, since what a run measures and keeps at its end
        # belongs to the last epoch, and the one before did not know that it would be.
        if progress >= 1 and batch_idx > 0:
            self.trainer.should_stop = True
            return _SKIP_EPOCH
        set_rates(self._optimizer(), self.schedule, self._rate_factors, progress)
        self.options.start_step(progress)
        # Dropout and the like: seeded by the step, so that a resumed run draws the same whatever was drawn before.
        torch.manual_seed(self.config.seed * 100_003 + self.steps_done)
        return None

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        self.unreadable.update(dict.fromkeys(batch.unreadable))
        if not self.is_final_phase:
            batch = self.options.prepare_batch(batch, epoch=self.epoch, batch_index=batch_idx)
        parts = self.detector.training_loss(batch.images, batch.targets, batch.pixel_mask)
        for name, value in parts.items():
            detached = value.detach()
            self._loss_sums[name] = self._loss_sums[name] + detached if name in self._loss_sums else detached.clone()
        self._num_summed += 1
        return parts["loss"]

    def on_train_batch_end(self, outputs: Any, batch: TrainBatch, batch_idx: int) -> None:
        if self.average is not None:
            self.average.expect(self.clock.expected_steps(self.steps_done))
            self.average.update(self.detector)

    def mean_losses(self) -> dict[str, float]:
        """The mean of each part of the loss over the epoch so far."""
        return {name: total.item() / self._num_summed for name, total in self._loss_sums.items()}

    def learning_rate(self) -> float:
        """Of the last step, for the layers that learn at the full rate."""
        return float(self._optimizer().param_groups[0]["lr"]) / self._rate_factors[0]

    def _optimizer(self) -> torch.optim.Optimizer:
        return self.trainer.optimizers[0]


def make_schedule(config: TrainConfig, suggested_learning_rate: float | None = None) -> Schedule:
    """The schedule that a run asks for.

    Args:
        config: of the run.
        suggested_learning_rate: the model's, for AdamW with 16 images a step, where the run does not say.
    """
    peak = config.peak_for(suggested_learning_rate)
    if config.schedule == "one-cycle":
        return OneCycleSchedule(peak=peak, warmup=config.rise, final_ratio=config.lowest_lr_ratio)
    return CosineSchedule(
        peak=peak,
        warmup=config.rise,
        final_phase=config.final_phase,
        final_ratio=config.lowest_lr_ratio,
    )


def make_optimizer(config: TrainConfig, pairs: Sequence[tuple[float, dict[str, Any]]]) -> torch.optim.Optimizer:
    """The optimizer that a run asks for, of groups that come with the factors of their learning rates."""
    groups = [group for _, group in pairs]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.peak_learning_rate, momentum=SGD_MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, lr=config.peak_learning_rate)


def set_rates(optimizer: torch.optim.Optimizer, schedule: Schedule, factors: Sequence[float], progress: float) -> None:
    """Give every group its learning rate, and the momentum where the schedule has one.

    Args:
        optimizer: of the run.
        schedule: likewise.
        factors: of the learning rate, one a group.
        progress: part in [0, 1] of the run that is done.
    """
    momentum = schedule.momentum_at(progress)
    for group, factor in zip(optimizer.param_groups, factors, strict=True):
        group["lr"] = schedule.at(progress) * factor
        if momentum is None:
            continue
        if "betas" in group:  # the first of Adam's two decay rates does what SGD's momentum does
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum
