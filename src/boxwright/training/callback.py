"""What happens around the steps: display, measurement on the val split, logs, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import lightning.pytorch as lightning
import torch

from boxwright.bench.accuracy import AccuracyResult, predict_all, score
from boxwright.core.errors import AnswerIsNoError
from boxwright.core.manifest import Manifest
from boxwright.data import Dataset
from boxwright.models import DetectionModel
from boxwright.models.common.targets import Targets
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.torch import TorchBackend
from boxwright.training.config import TrainConfig
from boxwright.training.lightning_module import TrainingModule
from boxwright.training.operating_point import OperatingPoint, best_operating_point
from boxwright.training.reporting import MetricsLog, TrainingDisplay
from boxwright.training.state import EpochRecord, RunState, SavedRun, restore_optimizer, write_checkpoints

# As `boxwright val` measures.
VAL_SCORE_THRESHOLD = 0.001
VAL_IOU_THRESHOLD = 0.7
STEPS_BETWEEN_LOOKS_ON_GPU = 10


class RunKeeper(lightning.Callback):
    """Measures, logs and saves at the end of every epoch.

    Args:
        config: of the run.
        manifest: of the model.
        val: data to measure on; None for none, and then the last weights count as the best.
        display: to show progress on.
        metrics: to log to.
        saved: the run that is gone on with.
        fitting_batches: for `DetectionModel.fit`; None where the family has nothing to fit.

    Attributes:
        history: a record an epoch.
        accuracy: the last measurement.
        operating_point: of the last measurement.
    """

    def __init__(
        self,
        config: TrainConfig,
        manifest: Manifest,
        val: Dataset | None,
        display: TrainingDisplay,
        metrics: MetricsLog,
        saved: SavedRun | None,
        fitting_batches: Callable[[], Iterable[tuple[torch.Tensor, Targets]]] | None = None,
    ) -> None:
        self.config = config
        self.manifest = manifest
        self.val = val
        self.display = display
        self.metrics = metrics
        self.saved = saved
        self.fitting_batches = fitting_batches
        self.history: list[EpochRecord] = [] if saved is None else list(saved.state.history)
        self.accuracy: AccuracyResult | None = None
        self.operating_point: OperatingPoint | None = None
        self._num_unreadable_told = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.saved is not None:
            restore_optimizer(_training(pl_module), self.saved)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        training = _training(pl_module)
        for reason in list(training.unreadable)[self._num_unreadable_told :]:
            self.display.note(f"passed over: {reason}")
        self._num_unreadable_told = len(training.unreadable)
        # Looking at the loss makes a GPU wait.
        if training.device.type != "cpu" and batch_idx % STEPS_BETWEEN_LOOKS_ON_GPU != 0:
            return
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            _raise_diverged(training.epoch, training.schedule.peak)
        clock, steps = training.clock, training.steps_done
        self.display.step(training.epoch + 1, clock.progress(steps), loss, clock.remaining(steps))

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        training = _training(pl_module)
        losses = training.mean_losses()
        steps = training.steps_done
        is_last = trainer.should_stop or training.epoch + 1 >= self.config.epochs or training.clock.progress(steps) >= 1
        if is_last:
            trainer.should_stop = True
            self._fit(training)
        measured = self._measure(training) if self._is_measured(training.epoch, is_last=is_last) else None
        record = EpochRecord(
            epoch=training.epoch + 1,
            step=steps,
            learning_rate=training.learning_rate(),
            losses=losses,
            map=None if measured is None else measured.map,
            map50=None if measured is None else measured.map50,
            seconds=training.clock.elapsed(),
        )
        is_best = self._is_best(record)
        self.history.append(record)
        self.metrics.add(record)
        self._save(training, is_best=is_best, is_finished=is_last)
        self.display.epoch(record, training.clock.remaining(steps))

    def _fit(self, training: TrainingModule) -> None:
        if self.fitting_batches is None:
            return
        self.display.note("fitting what is not trained by gradients")
        kept, was_training = training.kept_module, training.detector.training
        assert isinstance(kept, DetectionModel)
        kept.fit(self.fitting_batches())
        training.detector.train(was_training)

    def _is_measured(self, epoch: int, *, is_last: bool) -> bool:
        if self.val is None:
            return False
        return is_last or (self.config.val_every > 0 and (epoch + 1) % self.config.val_every == 0)

    def _is_best(self, record: EpochRecord) -> bool:
        """Whether these weights are at least as good as all before; the later of equals, which was trained longer."""
        if self.val is None:
            return True
        best = max((entry.map for entry in self.history if entry.map is not None), default=-1.0)
        return record.map is not None and record.map >= best

    def _measure(self, training: TrainingModule) -> AccuracyResult:
        assert self.val is not None
        started = training.clock.now()
        device = str(training.device)
        backend = TorchBackend.from_module(training.kept_module, self.manifest, device=device)
        was_training = training.detector.training
        detector = Detector.from_backend(backend, self.manifest, conf=VAL_SCORE_THRESHOLD, iou=VAL_IOU_THRESHOLD)
        predictions = predict_all(detector, self.val, on_progress=self.display.measuring)
        self.accuracy = score(predictions, self.val)
        self.operating_point = best_operating_point(predictions)
        training.detector.train(was_training)  # without an average it is the detector itself that was measured
        training.clock.measurement_took(training.clock.now() - started)
        return self.accuracy

    def _save(self, training: TrainingModule, *, is_best: bool, is_finished: bool) -> None:
        state = RunState(
            epochs_done=training.epoch + 1,
            elapsed=training.clock.elapsed(),
            history=tuple(self.history),
            is_final_phase=training.is_final_phase,
            is_finished=is_finished,
        )
        write_checkpoints(training, self.manifest, state, self.config, is_best=is_best)


def _training(module: lightning.LightningModule) -> TrainingModule:
    assert isinstance(module, TrainingModule)
    return module


def _raise_diverged(epoch: int, peak_learning_rate: float) -> None:
    raise AnswerIsNoError(
        f"training diverged: expected a finite loss, got one that is not in epoch {epoch + 1}; pass a --lr below "
        f"{peak_learning_rate:.1e} (last.pt holds the epoch before)"
    )
