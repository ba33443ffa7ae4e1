"""`train(config)`: from a data set and a model's name, or a checkpoint, to trained weights."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch.utils.data import DataLoader

from boxwright import __version__
from boxwright.bench.accuracy import AccuracyResult
from boxwright.core.errors import InputError, OutputError
from boxwright.core.files import check_writable, write_text
from boxwright.core.manifest import Manifest
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import preset
from boxwright.data import Dataset, list_splits, load_dataset
from boxwright.data.problems import DESCRIPTIONS
from boxwright.models import DetectionModel
from boxwright.models.common.loading import ModelChoice, Weights, choose_model, read_weights
from boxwright.models.common.targets import Targets
from boxwright.training.callback import RunKeeper
from boxwright.training.class_images import load_class_images
from boxwright.training.classification_data import ClassificationData
from boxwright.training.config import TrainConfig
from boxwright.training.crowded_images import note_crowded_images
from boxwright.training.dataset import Collate, EpochSampler, SampleKey, TrainDataset
from boxwright.training.engine import (
    choose_device,
    default_workers,
    lightning_precision,
    one_opencv_thread,
    plain_interrupt,
    quiet_lightning,
)
from boxwright.training.fit_anchors import fit_anchors
from boxwright.training.fitting import fitting_indices
from boxwright.training.identity_batchnorm import has_identity_batchnorm, reestimate_batchnorm
from boxwright.training.initial_weights import start_from_weights
from boxwright.training.lightning_module import TrainingModule
from boxwright.training.operating_point import OperatingPoint
from boxwright.training.reporting import MetricsLog, TrainingDisplay
from boxwright.training.schedule import RunClock
from boxwright.training.settings import settings_to_json
from boxwright.training.state import BEST, LAST, EpochRecord, SavedRun, read_saved_run
from boxwright.training.step_options import StepOptions

CONFIG_FILE = "train.json"
REESTIMATION_IMAGES = 128
_MOST_NAMED_PROBLEMS = 10


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What came out of a run.

    Attributes:
        out: its folder.
        best: checkpoint of the highest mAP on the val split; the last where there is no val split.
        last: checkpoint of the last epoch, with all that `resume` needs.
        best_map: of `best`; None without a val split.
        best_map50: of `best`.
        epochs_done: by this and earlier processes.
        seconds: likewise.
        history: a record an epoch.
        accuracy: last measurement of this process; None where there was none.
        operating_point: likewise, precision and recall at the score with the best balance.
        unreadable: training images that were passed over, each with the reason.
        is_exportable: whether a graph can hold the detector.
    """

    out: Path
    best: Path
    last: Path
    best_map: float | None
    best_map50: float | None
    epochs_done: int
    seconds: float
    history: tuple[EpochRecord, ...]
    accuracy: AccuracyResult | None
    operating_point: OperatingPoint | None
    unreadable: tuple[str, ...]
    is_exportable: bool = True


def train(
    config: TrainConfig,
    *,
    show_progress: bool = True,
    now: Callable[[], float] = time.monotonic,
    prepare: Callable[[DetectionModel], None] | None = None,
    is_measured: bool = True,
) -> TrainResult:
    """Train a detector.

    Args:
        config: of the run.
        show_progress: on stderr.
        now: the clock, in seconds, that `max_minutes` is counted on; `time.process_time` for the processor's time,
            which does not depend on what else the machine does.
        prepare: changes the module that the run begins with, or goes on with.
        is_measured: on the val split; else the last weights are kept, as where there is no such split.

    Returns:
        Where the checkpoints are and how good they are.

    Raises:
        InputError: where something in the configuration, the data or the checkpoint does not fit.
        OutputError: where the results cannot be written.
        AnswerIsNoError: where training diverges.
    """
    torch.manual_seed(config.seed)  # of a .cfg, whose network is made when it is opened
    choice = choose_model(config.model)
    device = choose_device(config.device)
    saved = read_saved_run(config) if config.resume else None
    _check_folder(config)
    with TrainingDisplay(config.epochs, is_shown=show_progress) as display:
        dataset = load_dataset(config.data, config.train_split, class_names=choice.class_names)
        val = _load_val(config, dataset, display)
        _tell_problems([dataset] if val is None else [dataset, val], display)
        plan = _plan(config, choice, dataset, saved, prepare)
        if saved is not None and saved.state.is_finished:
            display.note(f"{saved.path}: this run is finished; nothing is left to do")
            return _result(config, plan.module, saved.state.history, None, None, (), saved.state.elapsed)
        return _Run(config, plan, dataset, val if is_measured else None, display, device, saved, now).execute()


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The model of a run and what belongs to it."""

    module: DetectionModel
    manifest: Manifest
    size_hw: tuple[int, int]
    class_images: ClassificationData | None
    notes: tuple[str, ...]


def _plan(
    config: TrainConfig,
    choice: ModelChoice,
    dataset: Dataset,
    saved: SavedRun | None,
    prepare: Callable[[DetectionModel], None] | None,
) -> _Plan:
    if saved is not None and saved.manifest.class_names != dataset.class_names:
        raise InputError(
            f"--resume {saved.path}",
            expected="data with the classes " + ", ".join(saved.manifest.class_names),
            got=", ".join(dataset.class_names),
            fix="pass the --data that the run was begun with",
        )
    torch.manual_seed(config.seed)
    weights = None if config.weights is None else read_weights(config.weights, model=config.model)
    size_hw = _size_hw(config, choice, weights)
    module = choice.build(len(dataset.class_names), size_hw=size_hw)
    preprocess = _preprocess(config, module, weights, size_hw)
    notes: tuple[str, ...] = ()
    class_images = None
    if config.class_images is not None:
        class_images = load_class_images(config.class_images, config.train_split, module, dataset.class_names)
        notes += (f"{config.class_images}: {len(class_images.samples)} images that teach their class alone",)
    if weights is not None and (saved is None or prepare is not None):
        notes += start_from_weights(module, weights, dataset.class_names, str(config.weights))
    if prepare is not None:
        prepare(module)
    if saved is not None:
        module.load_state_dict(saved.current)
    if saved is None:  # a resumed run's anchors came with its weights
        notes += fit_anchors(module, dataset, preprocess, config.anchors, config.seed)
    notes += note_crowded_images(module, dataset, size_hw)
    manifest = Manifest(
        family=module.family,
        variant=module.variant,
        class_names=dataset.class_names,
        preprocess=preprocess,
        decode=module.decode_spec(size_hw),
        stage="raw",
        iou_threshold=module.nms_iou_threshold,
        boxwright_version=__version__,
    )
    return _Plan(module=module, manifest=manifest, size_hw=size_hw, class_images=class_images, notes=notes)


def _size_hw(config: TrainConfig, choice: ModelChoice, weights: Weights | None) -> tuple[int, int]:
    if config.size_hw is not None:
        return config.size_hw
    if weights is not None and weights.manifest is not None and weights.manifest.preprocess.size_hw is not None:
        return weights.manifest.preprocess.size_hw
    return choice.size_hw


def _preprocess(
    config: TrainConfig, module: DetectionModel, weights: Weights | None, size_hw: tuple[int, int]
) -> Preprocess:
    if config.preprocess is not None:
        return preset(config.preprocess, size_hw)
    if weights is not None and weights.manifest is not None:
        given = weights.manifest.preprocess
        return given if given.size_hw is None else dataclasses.replace(given, size_hw=size_hw)
    return module.default_preprocess(size_hw)


class _Run:
    """A run from the first step to the result."""

    def __init__(
        self,
        config: TrainConfig,
        plan: _Plan,
        dataset: Dataset,
        val: Dataset | None,
        display: TrainingDisplay,
        device: torch.device,
        saved: SavedRun | None,
        now: Callable[[], float],
    ) -> None:
        self.config, self.plan, self.val, self.display, self.device, self.saved = (
            config,
            plan,
            val,
            display,
            device,
            saved,
        )
        self.precision = lightning_precision(config.precision, device)
        self.samples = TrainDataset(
            dataset,
            preprocess=plan.manifest.preprocess,
            size_hw=plan.size_hw,
            augmentation=config.augmentation.resolved(plan.module.suggested_augmentation),
            seed=config.seed,
            class_images=plan.class_images,
        )
        sampler = EpochSampler(
            len(self.samples),
            config.batch,
            config.seed,
            epoch=lambda: self.training.epoch,
            strong=lambda: self.training.wants_strong_augmentation(),
        )
        self.loader = _loader(config, self.samples, sampler, device)
        clock = RunClock(
            len(sampler) * config.epochs,
            None if config.max_minutes is None else config.max_minutes * 60,
            elapsed=0.0 if saved is None else saved.state.elapsed,
            now=now,
        )
        self.options = StepOptions(plan.module, config, plan.manifest.preprocess, plan.size_hw)
        self.training = TrainingModule(
            plan.module,
            config,
            clock,
            self.options,
            steps_per_epoch=len(sampler),
            start_epoch=0 if saved is None else saved.state.epochs_done,
        )

    def execute(self) -> TrainResult:
        """Train, and say what came out."""
        fitting = None
        if (count := self.plan.module.num_fitting_images) > 0:
            fitting = partial(self._fitting_batches, fitting_indices(self.samples.dataset, count, self.config.seed))
        self._prepare_module()
        if self.saved is None:  # only now nothing that was asked for can be refused any more
            write_text(self.config.out / CONFIG_FILE, settings_to_json(self.config))
        log = MetricsLog(self.config.out, () if self.saved is None else self.saved.state.history)
        keeper = RunKeeper(self.config, self.plan.manifest, self.val, self.display, log, self.saved, fitting)
        try:
            with quiet_lightning(), plain_interrupt():
                self._trainer(keeper).fit(self.training, train_dataloaders=self.loader)
        finally:
            log.close()
        unreadable = tuple(self.training.unreadable)
        if unreadable:
            self.display.note(f"{len(unreadable)} training images could not be read and were passed over")
        elapsed = self.training.clock.elapsed()
        history, module = tuple(keeper.history), self.plan.module
        return _result(self.config, module, history, keeper.accuracy, keeper.operating_point, unreadable, elapsed)

    def _prepare_module(self) -> None:
        for note in self.plan.notes:
            self.display.note(note)
        # Convolutions on the CPU are about twice as fast in this order of memory.
        self.plan.module.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.saved is None and self.config.weights is not None and has_identity_batchnorm(self.plan.module):
            changed = reestimate_batchnorm(self.plan.module, self._images_for_statistics())
            self.display.note(
                f"{self.config.weights} has identity BatchNorm; the statistics of {changed} layers were estimated on "
                "training images, their function unchanged"
            )
        for note in self.options.transform_model():
            self.display.note(note)
        self.training.start_average()
        if self.saved is not None:
            if self.training.average is not None and self.saved.num_averaged is not None:
                self.training.average.module.load_state_dict(self.saved.kept)
                self.training.average.num_updates = self.saved.num_averaged
            self.training.is_final_phase = self.saved.state.is_final_phase
            if self.training.is_final_phase:
                self.plan.module.enter_final_phase()

    def _fitting_batches(self, chosen: list[int]) -> Iterator[tuple[torch.Tensor, Targets]]:
        """These images, varied as in the final phase."""
        collate = Collate(preprocess=self.plan.manifest.preprocess)
        for start in range(0, len(chosen), self.config.batch):
            part = chosen[start : start + self.config.batch]
            batch = collate([self.samples[SampleKey(0, index, strong=False)] for index in part])
            yield batch.images.to(self.device, memory_format=torch.channels_last), batch.targets.to(self.device)

    def _images_for_statistics(self) -> Iterator[torch.Tensor]:
        batches = max(1, -(-REESTIMATION_IMAGES // self.config.batch))
        collate = Collate(preprocess=self.plan.manifest.preprocess)
        sampler = EpochSampler(
            len(self.samples), self.config.batch, self.config.seed, epoch=lambda: 0, strong=lambda: True
        )
        for _, keys in zip(range(batches), sampler, strict=False):
            images = collate([self.samples[key] for key in keys]).images
            yield images.to(self.device, memory_format=torch.channels_last)

    def _trainer(self, keeper: RunKeeper) -> lightning.Trainer:
        device = self.device
        return lightning.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=[device.index or 0] if device.type == "cuda" else 1,
            precision=self.precision,
            max_epochs=self.config.epochs - self.training.start_epoch,
            gradient_clip_val=self.config.clip_norm or None,
            callbacks=[keeper],
            default_root_dir=str(self.config.out),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )


def _loader(config: TrainConfig, samples: TrainDataset, sampler: EpochSampler, device: torch.device) -> DataLoader[Any]:
    workers = default_workers() if config.workers is None else config.workers
    return DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=Collate(preprocess=samples.preprocess),
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=one_opencv_thread if workers > 0 else None,
    )


def _check_folder(config: TrainConfig) -> None:
    if not config.resume and (config.out / LAST).exists():
        raise OutputError(
            str(config.out),
            expected="a folder without a run in it",
            got=f"one with {LAST}",
            fix="pass --resume to go on with that run, or another --out",
        )
    check_writable(config.out / LAST, leaves_folder=False)


def _load_val(config: TrainConfig, dataset: Dataset, display: TrainingDisplay) -> Dataset | None:
    """The val split, or None (and a note) where there is none or nothing in it to measure on."""
    if config.val_split not in list_splits(config.data):
        display.note(f"{config.data} has no split {config.val_split!r}: nothing is measured, the last weights are kept")
        return None
    val = load_dataset(config.data, config.val_split, class_names=dataset.class_names)
    if not any((~sample.is_crowd).any() for sample in val.samples):
        display.note(f"the split {config.val_split!r} has no boxes: nothing is measured, the last weights are kept")
        return None
    return val


def _tell_problems(datasets: list[Dataset], display: TrainingDisplay) -> None:
    for dataset in datasets:
        display.note(f"{dataset.name}, {dataset.split}: {len(dataset)} images, {dataset.num_boxes} boxes")
        counts = Counter(problem.kind for problem in dataset.problems)
        for kind, count in counts.items():
            display.note(f"  {count} {DESCRIPTIONS[kind]} ({kind})")
        for problem in dataset.problems[:_MOST_NAMED_PROBLEMS]:
            display.note(f"    {problem.file}: {problem.detail}")
        if len(dataset.problems) > _MOST_NAMED_PROBLEMS:
            display.note(f"    ... run 'boxwright doctor --data {dataset.root}' for all {len(dataset.problems)}")


def _result(
    config: TrainConfig,
    module: DetectionModel,
    history: tuple[EpochRecord, ...],
    accuracy: AccuracyResult | None,
    operating_point: OperatingPoint | None,
    unreadable: tuple[str, ...],
    seconds: float,
) -> TrainResult:
    measured = [record for record in history if record.map is not None]
    best = max(measured, key=lambda record: (record.map, record.epoch), default=None)
    return TrainResult(
        out=config.out,
        best=config.out / BEST,
        last=config.out / LAST,
        best_map=None if best is None else best.map,
        best_map50=None if best is None else best.map50,
        epochs_done=history[-1].epoch if history else 0,
        seconds=seconds,
        history=history,
        accuracy=accuracy,
        operating_point=operating_point,
        unreadable=unreadable,
        is_exportable=module.is_exportable,
    )
