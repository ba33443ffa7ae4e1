"""Classification pre-training: the backbone of a detector learns to tell images apart before it learns to find things.

Cheap labels (a class an image), or the objects of the detection data itself, with CutMix and label smoothing. The
result is a checkpoint of the detector whose backbone is trained and whose other layers are still random: something to
start a training from with `--weights`, not to deploy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright import __version__
from boxwright.core.errors import AnswerIsNoError, DatasetError, InputError, OutputError
from boxwright.core.files import check_writable, write_text
from boxwright.core.manifest import Manifest
from boxwright.core.preprocess import Preprocess
from boxwright.core.preprocess_presets import preset
from boxwright.models import DetectionModel
from boxwright.models.common.class_targets import softmax_class_targets
from boxwright.models.common.loading import ModelChoice, Weights, choose_model, read_weights
from boxwright.models.common.saving import save_checkpoint
from boxwright.training.classification_data import ClassificationData, ClassificationImages, load_classification
from boxwright.training.config import TrainConfig
from boxwright.training.cutmix import cutmix
from boxwright.training.engine import choose_device
from boxwright.training.initial_weights import start_from_weights
from boxwright.training.lightning_module import make_optimizer, make_schedule, set_rates
from boxwright.training.reporting import TrainingDisplay

BACKBONE_FILE, RESULT_FILE = "backbone.pt", "pretrain.json"
USUAL_SIZE_HW = (128, 128)


@dataclass(frozen=True, kw_only=True)
class PretrainEpoch:
    """An epoch: mean training loss, and the part of the val images that were classified right (None without any)."""

    epoch: int
    loss: float
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """What came out of a pre-training.

    Attributes:
        backbone: checkpoint to start a detector's training from.
        class_names: that were told apart.
        num_images: of the training split.
        accuracy: top-1 on the val split after the last epoch; None without such a split.
        history: an entry an epoch.
        unreadable: images that were passed over, each with the reason.
    """

    backbone: Path
    class_names: tuple[str, ...]
    num_images: int
    accuracy: float | None
    history: tuple[PretrainEpoch, ...]
    unreadable: tuple[str, ...]


class BackboneClassifier(nn.Module):
    """A detector's backbone with a linear layer on the mean of its last feature map.

    Args:
        backbone: gives a map, or a list or dict of maps with the coarsest last.
        num_classes: to tell apart.
        example: images (1, 3, H, W), to see how wide the last map is.

    Raises:
        InputError: where the backbone gives no maps.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, example: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        was_training = backbone.training
        with torch.no_grad():
            width = _last_map(backbone.eval()(example)).shape[1]
        backbone.train(was_training)
        self.classify = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classify(_last_map(self.backbone(images)).mean(dim=(2, 3)))  # (B, C)
        return logits


def _last_map(output: Any) -> Tensor:
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)) and output:
        output = output[-1]
    if isinstance(output, Tensor) and output.ndim == 4:
        return output
    raise InputError(
        "--pretrain-classification",
        expected="a family whose backbone gives feature maps",
        got=f"one that gives {type(output).__name__}",
        fix="train another family",
    )


def pretrain_classification(
    config: TrainConfig, *, cutmix_probability: float = 0.5, show_progress: bool = True
) -> PretrainResult:
    """Train a detector's backbone to classify images.

    Args:
        config: of the run; data, model, weights, out, epochs, batch, size_hw, preprocess, learning rate, optimizer,
            schedule, label smoothing, colours and mirror images, seed and device are used.
        cutmix_probability: that a batch is mixed.
        show_progress: on stderr.

    Raises:
        InputError: where the family's backbone cannot be trained by itself, or something does not fit.
        CheckpointError: where the weights are not of that variant.
        DatasetError: where there is nothing to learn from.
        OutputError: where the result would replace another, or cannot be written.
        AnswerIsNoError: where training diverges.
    """
    device = choose_device(config.device)
    if (config.out / BACKBONE_FILE).exists():
        raise OutputError(
            str(config.out), expected="a folder without a result", got=f"one with {BACKBONE_FILE}", fix="pass another"
        )
    check_writable(config.out / BACKBONE_FILE, leaves_folder=False)
    torch.manual_seed(config.seed)  # of a .cfg, whose network is made when it is opened
    choice = choose_model(config.model)
    # What is wrong with the model is said before the data are read and tell how many classes it has.
    _classifier(choice.example(), 2, config.size_hw or USUAL_SIZE_HW)
    weights = None if config.weights is None else read_weights(config.weights, model=config.model)
    data = load_classification(config.data, config.train_split)
    if data is None or len(data.class_names) < 2:
        raise DatasetError(
            str(config.data),
            expected=f"two classes or more of images in {config.train_split}/<class>/, or a detection data set",
            got="none" if data is None else f"{len(data.class_names)} class",
            fix="pass another --data",
        )
    torch.manual_seed(config.seed)
    # A file's network keeps its classes: the layers that tell them apart stay random.
    module = choice.build(len(data.class_names)) if choice.network is None else choice.network.module
    notes = () if weights is None else start_from_weights(module, weights, data.class_names, str(config.weights))
    with TrainingDisplay(config.epochs, is_shown=show_progress) as display:
        display.note(f"{config.data}: {len(data.samples)} images of {len(data.class_names)} classes")
        for note in notes:
            display.note(note)
        run = _Pretraining(config, module, data, device, cutmix_probability, weights)
        history = []
        for epoch in range(config.epochs):
            history.append(run.do_epoch(epoch))
            accuracy = history[-1].accuracy
            shown = "" if accuracy is None else f"  top-1 {accuracy:.4f}"
            display.note(f"epoch {epoch + 1}/{config.epochs}  loss {history[-1].loss:.3f}{shown}")
        for problem in run.unreadable:
            display.note(f"passed over: {problem}")
    result = PretrainResult(
        backbone=config.out / BACKBONE_FILE,
        class_names=data.class_names,
        num_images=len(data.samples),
        accuracy=history[-1].accuracy,
        history=tuple(history),
        unreadable=tuple(run.unreadable),
    )
    _write(config, choice, module, weights, result)
    return result


def _classifier(module: DetectionModel, num_classes: int, size_hw: tuple[int, int]) -> BackboneClassifier:
    backbone = module.backbone_module()
    if backbone is None:
        raise InputError(
            "--pretrain-classification",
            expected="a family whose backbone runs by itself",
            got=module.variant,
            fix="train another family",
        )
    return BackboneClassifier(backbone, num_classes, torch.zeros(1, 3, *size_hw))


class _Pretraining:
    """The loop over the images."""

    def __init__(
        self,
        config: TrainConfig,
        module: DetectionModel,
        data: ClassificationData,
        device: torch.device,
        cutmix_probability: float,
        weights: Weights | None,
    ) -> None:
        self.config = config
        self.device = device
        self.num_classes = len(data.class_names)
        self.cutmix_probability = cutmix_probability
        self.unreadable: dict[str, None] = {}
        self.size_hw = USUAL_SIZE_HW if config.size_hw is None else config.size_hw
        self.preprocess = _preprocess(config, module, weights, self.size_hw)
        self.classifier = _classifier(module, self.num_classes, self.size_hw).to(device)
        self.optimizer = make_optimizer(config, [(1.0, group) for group in _groups(self.classifier, config)])
        self.schedule = make_schedule(config)
        colors = config.augmentation.resolved()
        self.train = ClassificationImages(data, size_hw=self.size_hw, seed=config.seed, augmentation=colors)
        val = load_classification(config.data, config.val_split)
        self.val = (
            None
            if val is None
            else ClassificationImages(val, size_hw=self.size_hw, seed=config.seed, augmentation=None)
        )
        self.batch = min(config.batch, len(data.samples))
        self.steps_per_epoch = len(data.samples) // self.batch

    def do_epoch(self, epoch: int) -> PretrainEpoch:
        self.classifier.train()
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.train.data.samples)).tolist()
        losses = []
        for step in range(self.steps_per_epoch):
            done = epoch * self.steps_per_epoch + step
            set_rates(self.optimizer, self.schedule, [1.0, 1.0], done / (self.steps_per_epoch * self.config.epochs))
            torch.manual_seed(self.config.seed * 100_003 + done)
            indices = order[step * self.batch : (step + 1) * self.batch]
            loss = self._loss(indices, epoch, np.random.default_rng([self.config.seed, epoch, step, 1]))
            if loss is None:
                continue
            self.optimizer.zero_grad()
            loss.backward()
            if self.config.clip_norm:
                nn.utils.clip_grad_norm_(self.classifier.parameters(), self.config.clip_norm)
            self.optimizer.step()
            losses.append(loss.item())
        mean_loss = sum(losses) / len(losses) if losses else math.nan
        if not math.isfinite(mean_loss):
            raise AnswerIsNoError(
                f"pre-training: expected a finite loss, got {mean_loss} in epoch {epoch + 1}; pass a lower --lr, or "
                "check that the images can be read"
            )
        return PretrainEpoch(epoch=epoch + 1, loss=mean_loss, accuracy=self._accuracy())

    def _loss(self, indices: list[int], epoch: int, random: np.random.Generator) -> Tensor | None:
        images, class_ids, problems = self.train.read_batch(indices, epoch)
        self.unreadable.update(dict.fromkeys(problems))
        if len(images) < 2:  # nothing to normalise over
            return None
        targets = softmax_class_targets(
            torch.tensor(class_ids), self.num_classes, smoothing=self.config.label_smoothing
        ).to(self.device)
        pixels = torch.from_numpy(self.preprocess.apply_batch(images).images).to(self.device)
        if random.random() < self.cutmix_probability:
            pixels, targets = cutmix(pixels, targets, random)
        return functional.cross_entropy(self.classifier(pixels), targets)

    @torch.no_grad()
    def _accuracy(self) -> float | None:
        if self.val is None:
            return None
        self.classifier.eval()
        num_right = num_seen = 0
        for indices in _chunks(len(self.val.data.samples), self.batch):
            images, class_ids, problems = self.val.read_batch(indices, 0)
            self.unreadable.update(dict.fromkeys(problems))
            if images:
                pixels = torch.from_numpy(self.preprocess.apply_batch(images).images).to(self.device)
                found = self.classifier(pixels).argmax(dim=1).cpu()
                num_right += int((found == torch.tensor(class_ids)).sum())
                num_seen += len(images)
        return num_right / num_seen if num_seen else None


def _chunks(count: int, size: int) -> Iterator[list[int]]:
    for start in range(0, count, size):
        yield list(range(start, min(start + size, count)))


def _groups(classifier: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    parameters = list(classifier.parameters())
    return [
        {"params": [tensor for tensor in parameters if tensor.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [tensor for tensor in parameters if tensor.ndim <= 1], "weight_decay": 0.0},
    ]


def _preprocess(
    config: TrainConfig, module: DetectionModel, weights: Weights | None, size_hw: tuple[int, int]
) -> Preprocess:
    if config.preprocess is not None:
        return preset(config.preprocess, size_hw)
    if weights is not None and weights.manifest is not None:
        given = weights.manifest.preprocess
        return given if given.size_hw is None else replace(given, size_hw=size_hw)
    return module.default_preprocess(size_hw)


def _write(
    config: TrainConfig,
    choice: ModelChoice,
    module: DetectionModel,
    weights: Weights | None,
    result: PretrainResult,
) -> None:
    numbered = tuple(f"class{index}" for index in range(module.num_classes))
    names = result.class_names if choice.network is None else choice.class_names or numbered
    manifest = Manifest(
        family=module.family,
        variant=module.variant,
        class_names=names,
        preprocess=_preprocess(config, module, weights, choice.size_hw),
        decode=module.decode_spec(choice.size_hw),
        stage="raw",
        boxwright_version=__version__,
        iou_threshold=module.nms_iou_threshold,
    )
    save_checkpoint(result.backbone, module.cpu().state_dict(), manifest)
    document = {
        "class_names": result.class_names,
        "num_images": result.num_images,
        "accuracy": result.accuracy,
        "history": [asdict(entry) for entry in result.history],
        "unreadable": result.unreadable,
    }
    write_text(config.out / RESULT_FILE, json.dumps(document, indent=2) + "\n")
