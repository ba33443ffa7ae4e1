"""What a training run can be told, validated before anything is done."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from boxwright.core.errors import InputError

OptimizerName = Literal["adamw", "sgd"]
PrecisionName = Literal["auto", "fp32", "fp16", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are varied, on top of which the model's own preprocessing follows.

    Attributes:
        mosaic: probability that an image becomes one of four in a mosaic.
        mixup: probability that another image is blended in.
        flip: probability of a horizontal mirror image.
        scale_range: factors of size.
        translate: largest shift, as a part of the side.
        degrees: largest rotation.
        hue: largest change, as a part of the colour circle.
        saturation: largest change, as a part of the value.
        brightness: likewise.
    """

    mosaic: float = 0.5
    mixup: float = 0.1
    flip: float = 0.5
    scale_range: tuple[float, float] = (0.6, 1.4)
    translate: float = 0.1
    degrees: float = 0.0
    hue: float = 0.015
    saturation: float = 0.5
    brightness: float = 0.4

    def __post_init__(self) -> None:
        for name in ("mosaic", "mixup", "flip", "translate", "hue", "saturation", "brightness"):
            _require(0 <= getattr(self, name) <= 1, f"augmentation.{name}", "a number in [0, 1]", getattr(self, name))
        low, high = self.scale_range
        _require(0 < low <= high, "augmentation.scale_range", "two ascending positive numbers", self.scale_range)
        _require(0 <= self.degrees <= 180, "augmentation.degrees", "a number in [0, 180]", self.degrees)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run.

    Attributes:
        data: COCO or VOC folder, or YOLO data.yaml.
        model: variant, e.g. "yolox-nano".
        out: folder for checkpoints and logs.
        epochs: passes over the training images.
        weights: checkpoint to start from.
        preprocess: name of a preset; that of `weights`, or the family's default, where None.
        size_hw: of the network's input; the variant's usual one where None.
        batch: images a step.
        learning_rate: at its peak; by the optimizer, the batch and `weights` where None.
        optimizer: "adamw" or "sgd" (Nesterov, momentum 0.9).
        weight_decay: of all weights but biases and normalisation.
        warmup: part of the run in which the learning rate rises.
        final_phase: part of the run, at its end, without mosaic and mixup, at the lowest learning rate.
        final_lr_ratio: lowest learning rate as a part of the peak.
        ema: whether an exponential moving average of the weights is what is kept.
        clip_norm: largest norm of the gradient; 0 for no limit.
        augmentation: of the training images.
        seed: of everything random.
        workers: processes that load images; by the machine where None.
        device: "auto", "cpu", "cuda" or "cuda:1".
        precision: "auto" (mixed precision where the device is a GPU), "fp32", "fp16" or "bf16".
        max_minutes: the run is shortened to about this, its schedule with it; no limit where None.
        train_split: of the data set.
        val_split: of the data set.
        val_every: epochs between measurements on the val split; 0 measures after the last alone.
        resume: go on from `out`/last.pt.
    """

    data: Path
    model: str
    out: Path
    epochs: int = 100
    weights: Path | None = None
    preprocess: str | None = None
    size_hw: tuple[int, int] | None = None
    batch: int = 16
    learning_rate: float | None = None
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.0005
    warmup: float = 0.05
    final_phase: float = 0.15
    final_lr_ratio: float = 0.05
    ema: bool = True
    clip_norm: float = 10.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    workers: int | None = None
    device: str = "auto"
    precision: PrecisionName = "auto"
    max_minutes: float | None = None
    train_split: str = "train"
    val_split: str = "val"
    val_every: int = 1
    resume: bool = False

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "--epochs", "at least 1", self.epochs)
        _require(self.batch >= 1, "--batch", "at least 1", self.batch)
        _require(self.optimizer in get_args(OptimizerName), "--optimizer", "adamw or sgd", self.optimizer)
        _require(self.precision in get_args(PrecisionName), "--precision", "auto, fp32, fp16 or bf16", self.precision)
        _require(self.learning_rate is None or self.learning_rate > 0, "--lr", "a positive number", self.learning_rate)
        _require(self.max_minutes is None or self.max_minutes > 0, "--max-minutes", "a positive number", 0)
        _require(self.workers is None or self.workers >= 0, "--workers", "0 or more", self.workers)
        _require(self.val_every >= 0, "--val-every", "0 or more", self.val_every)
        for name in ("weight_decay", "clip_norm"):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        for name in ("warmup", "final_phase", "final_lr_ratio"):
            _require(0 <= getattr(self, name) <= 1, name, "a number in [0, 1]", getattr(self, name))
        _require(self.warmup + self.final_phase <= 1, "warmup and final_phase", "at most 1 in sum", self.final_phase)

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or what usually suits the optimizer, the batch and the start."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.optimizer == "sgd":
            return 0.01 * self.batch / 64
        return 1e-3 * math.sqrt(self.batch / 16)

    def fingerprint(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the one that it goes on with."""
        fields = dataclasses.asdict(self)
        for name in ("data", "out", "weights", "workers", "device", "precision", "resume", "max_minutes", "val_every"):
            del fields[name]
        plain: dict[str, Any] = _plain(fields)
        return plain


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise InputError(name, expected=expected, got=repr(got), fix="correct the value")
