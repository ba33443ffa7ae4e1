"""What a training run can be told, validated before anything is done."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from boxwright.core.errors import InputError
from boxwright.models.common.boxes import OverlapKind
from boxwright.models.common.detector import Suggestions
from boxwright.models.common.loss_options import LossOptions

OptimizerName = Literal["adamw", "sgd"]
ScheduleName = Literal["cosine", "one-cycle"]
AnchorSource = Literal["family", "kmeans", "auto"]
EngineName = Literal["openvino", "onnxruntime", "tensorrt"]
# One-cycle: a third of the run up, and down to nothing. Source: Smith and Topin, Super-Convergence, 2018, sec. 3.
USUAL_WARMUP: dict[str, float] = {"cosine": 0.05, "one-cycle": 0.3}
USUAL_FINAL_LR_RATIO: dict[str, float] = {"cosine": 0.05, "one-cycle": 1e-4}
USUAL_ADAMW_LEARNING_RATE = 1e-3  # for 16 images a step
PrecisionName = Literal["auto", "fp32", "fp16", "bf16"]
# What a family that suggests nothing is trained with.
USUAL_PROBABILITIES: dict[str, float] = {"mosaic": 0.5, "mixup": 0.1, "ssd_crop": 0.0}
USUAL_SCALE_RANGE = (0.6, 1.4)
USUAL_CHANGES: dict[str, float] = {"translate": 0.1, "hue": 0.015, "saturation": 0.5, "brightness": 0.4}
_PROBABILITIES = (
    *USUAL_PROBABILITIES,
    *USUAL_CHANGES,
    *("mosaic9", "copy_paste", "flip"),
)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are varied, on top of which the model's own preprocessing follows.

    Where something is None, the detector's family says what is usual for it (see `resolved`).

    Attributes:
        mosaic: probability that an image becomes one of four in a mosaic.
        mosaic9: probability that it becomes one of nine instead.
        mixup: probability that another image is blended in.
        copy_paste: probability that boxes of another image are pasted in.
        ssd_crop: probability that it is enlarged or cropped as SSD does, instead of the mosaics and the scaling.
        flip: probability of a horizontal mirror image.
        scale_range: factors of size.
        translate: largest shift, as a part of the side.
        degrees: largest rotation.
        hue: largest change, as a part of the colour circle.
        saturation: largest change, as a part of the value.
        brightness: likewise.
    """

    mosaic: float | None = None
    mosaic9: float = 0.0
    mixup: float | None = None
    copy_paste: float = 0.0
    ssd_crop: float | None = None
    flip: float = 0.5
    scale_range: tuple[float, float] | None = None
    translate: float | None = None
    degrees: float = 0.0
    hue: float | None = None
    saturation: float | None = None
    brightness: float | None = None

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            value = getattr(self, name)
            in_range = value is None or 0 <= value <= 1
            _require(in_range, f"augmentation.{name}", "a number in [0, 1]", value)
        both = (self.mosaic or 0.0) + self.mosaic9
        _require(both <= 1, "--mosaic and --mosaic9", "probabilities of at most 1 in sum", both)
        low, high = self.scale_range or USUAL_SCALE_RANGE
        _require(0 < low <= high, "augmentation.scale_range", "two ascending positive numbers", self.scale_range)
        _require(0 <= self.degrees <= 180, "augmentation.degrees", "a number in [0, 180]", self.degrees)

    def change(self, name: str) -> float:
        """The largest change of that name: translate, hue, saturation or brightness; the usual one where None."""
        value: float | None = getattr(self, name)
        return USUAL_CHANGES[name] if value is None else value

    def resolved(self, suggested: Suggestions | None = None) -> Augmentation:
        """The same with a number where None stood: what the family suggests, else what is usual.

        Args:
            suggested: by the names of the attributes.
        """
        usual: dict[str, Any] = {
            **USUAL_PROBABILITIES,
            **USUAL_CHANGES,
            "scale_range": USUAL_SCALE_RANGE,
            **(suggested or {}),
        }
        every_image_as_ssd = (usual["ssd_crop"] if self.ssd_crop is None else self.ssd_crop) == 1
        usual["mosaic"] = 0.0 if every_image_as_ssd else min(usual["mosaic"], 1 - self.mosaic9)
        missing = {name: value for name, value in usual.items() if getattr(self, name) is None}
        asked = (self.mosaic or 0) + self.mosaic9
        has_room = not every_image_as_ssd or asked == 0
        _require(has_room, "--mosaic", "an --ssd-crop below 1 beside it, which leaves it room", 1.0)
        return dataclasses.replace(self, **missing)


# Settings that may be others when a run is resumed.
_OWN_OF_A_START = frozenset(
    {
        "data",
        "out",
        "class_images",
        "weights",
        "workers",
        "device",
        "precision",
        "resume",
        "max_minutes",
        "val_every",
    }
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run.

    Attributes:
        data: COCO or VOC folder, or YOLO data.yaml.
        model: variant, e.g. "yolox-nano".
        out: folder for checkpoints and logs.
        epochs: passes over the training images.
        class_images: folder of images of which the class alone is known, to train on too (YOLOv2, YOLO9000).
        weights: checkpoint to start from.
        preprocess: name of a preset; that of `weights`, or the family's default, where None.
        size_hw: of the network's input; the variant's usual one where None.
        batch: images a step.
        learning_rate: at its peak; by the optimizer, the batch and `weights` where None.
        optimizer: "adamw" or "sgd" (Nesterov, momentum 0.9).
        weight_decay: of all weights but biases and normalisation.
        schedule: "cosine" or "one-cycle" of the learning rate.
        warmup: part of the run in which the learning rate rises; by the schedule where None.
        final_phase: part of the run, at its end, without the strong augmentations; the cosine is flat there.
        final_lr_ratio: lowest learning rate as a part of the peak; by the schedule where None.
        freeze: "backbone", or beginnings of the names of parameters, that do not learn.
        layer_decay: factor of the learning rate from each layer of the backbone to the one below it.
        label_smoothing: epsilon of the class targets.
        box_loss: overlap whose loss replaces the family's own loss of boxes.
        anchors: "kmeans" fits the anchors to the training boxes, "auto" refines them by random mutations.
        qat: whether layers compute with numbers rounded as INT8 will round them.
        qat_engine: "openvino", "onnxruntime" or "tensorrt", whose rounding that is.
        multi_scale: largest change of the input's size from batch to batch, as a part of it.
        drop_block: part of the backbone's last features that DropBlock takes out at the end of the run.
        cross_iteration_norm: batches that batch normalisation looks back over; 1 for its own alone.
        self_adversarial: probability that the network first alters a batch against itself.
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
    class_images: Path | None = None
    weights: Path | None = None
    preprocess: str | None = None
    size_hw: tuple[int, int] | None = None
    batch: int = 16
    learning_rate: float | None = None
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.0005
    schedule: ScheduleName = "cosine"
    warmup: float | None = None
    final_phase: float = 0.15
    final_lr_ratio: float | None = None
    freeze: tuple[str, ...] = ()
    layer_decay: float = 1.0
    label_smoothing: float = 0.0
    box_loss: OverlapKind | None = None
    anchors: AnchorSource = "family"
    qat: bool = False
    qat_engine: EngineName = "openvino"
    multi_scale: float = 0.0
    drop_block: float = 0.0
    cross_iteration_norm: int = 1
    self_adversarial: float = 0.0
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
        _require(self.schedule in get_args(ScheduleName), "--schedule", "cosine or one-cycle", self.schedule)
        for name in ("final_phase", "rise", "lowest_lr_ratio"):
            _require(0 <= getattr(self, name) <= 1, name, "a number in [0, 1]", getattr(self, name))
        _require(self.rise + self.final_phase <= 1, "warmup and final_phase", "at most 1 in sum", self.final_phase)
        self._check_extras()

    def _check_extras(self) -> None:
        _require(self.anchors in get_args(AnchorSource), "--anchors", "family, kmeans or auto", self.anchors)
        _require(all(self.freeze), "--freeze", "names that are not empty", self.freeze)
        _require(0 < self.layer_decay <= 1, "--layer-decay", "a number in (0, 1]", self.layer_decay)
        _require(0 <= self.multi_scale < 1, "--multi-scale", "a number in [0, 1)", self.multi_scale)
        _require(0 <= self.drop_block < 1, "--drop-block", "a number in [0, 1)", self.drop_block)
        _require(0 <= self.self_adversarial <= 1, "--self-adversarial", "a number in [0, 1]", self.self_adversarial)
        _require(self.cross_iteration_norm >= 1, "--cross-iteration-norm", "at least 1", self.cross_iteration_norm)
        engines = get_args(EngineName)
        _require(self.qat_engine in engines, "--qat-engine", "openvino, onnxruntime or tensorrt", self.qat_engine)
        _ = self.loss_options  # checks itself

    @property
    def loss_options(self) -> LossOptions:
        """What is asked of the family's loss."""
        return LossOptions(label_smoothing=self.label_smoothing, box_loss=self.box_loss)

    @property
    def rise(self) -> float:
        """`warmup`, or what is usual with the schedule."""
        return USUAL_WARMUP[self.schedule] if self.warmup is None else self.warmup

    @property
    def lowest_lr_ratio(self) -> float:
        """`final_lr_ratio`, or what is usual with the schedule."""
        return USUAL_FINAL_LR_RATIO[self.schedule] if self.final_lr_ratio is None else self.final_lr_ratio

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or what usually suits the optimizer, the batch and the start."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.optimizer == "sgd":
            return 0.01 * self.batch / 64
        return USUAL_ADAMW_LEARNING_RATE * math.sqrt(self.batch / 16)

    def peak_for(self, suggested: float | None) -> float:
        """`peak_learning_rate` of a model that may suggest another one.

        Args:
            suggested: for AdamW with 16 images a step; used where the run has not said.
        """
        is_open = self.learning_rate is None and self.optimizer == "adamw"
        factor = suggested / USUAL_ADAMW_LEARNING_RATE if is_open and suggested is not None else 1.0
        return self.peak_learning_rate * factor

    def fingerprint(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the one that it goes on with."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in _OWN_OF_A_START}
        plain: dict[str, Any] = _plain(fields)
        return plain


def usual_settings() -> dict[str, Any]:
    """Of each setting that has one its default, as in `TrainConfig.fingerprint`: what runs had before it was there."""
    usual: dict[str, Any] = {}
    for field_ in dataclasses.fields(TrainConfig):
        if field_.default is not dataclasses.MISSING:
            usual[field_.name] = _plain(field_.default)
    return {name: value for name, value in usual.items() if name not in _OWN_OF_A_START}


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise InputError(name, expected=expected, got=repr(got), fix="correct the value")
