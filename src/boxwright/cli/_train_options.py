"""The options of `boxwright train`, and what was given of them as settings of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from boxwright.cli._options import parse_image_size
from boxwright.core.errors import InputError

_EXTRAS = "Training extras"
_SEARCH = "Search and pre-training"


def _part(name: str, text: str, *, panel: str | None = None) -> Any:
    return typer.Option(name, min=0.0, max=1.0, help=text, rich_help_panel=panel)


ModelOption = Annotated[
    str, typer.Option("--model", help="Variant, e.g. yolox-nano; see 'boxwright models'. Or a .cfg or .tree file.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="JSON file of settings, such as a run's train.json; flags go first.")
]
EpochsOption = Annotated[int, typer.Option("--epochs", min=1, help="Passes over the training images.")]
WeightsOption = Annotated[Path | None, typer.Option("--weights", help="Checkpoint to start from.")]
ClassImagesOption = Annotated[
    Path | None,
    typer.Option("--class-images", help="Folder of images by class, to learn from too.", rich_help_panel=_EXTRAS),
]
PreprocessNameOption = Annotated[str | None, typer.Option("--preprocess", help="Preprocessing, by name.")]
BatchSizeOption = Annotated[int, typer.Option("--batch", min=1, help="Images a step.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for checkpoints and logs.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
MaxMinutesOption = Annotated[float | None, typer.Option("--max-minutes", help="Shorten the run to about this.")]
LearningRateOption = Annotated[float | None, typer.Option("--lr", help="Highest learning rate.")]
OptimizerOption = Annotated[Literal["adamw", "sgd"], typer.Option("--optimizer", help="How weights are moved.")]
MosaicOption = Annotated[float | None, _part("--mosaic", "Probability of a mosaic of 4; 0.5 or the family's.")]
MixupOption = Annotated[float | None, _part("--mixup", "Probability of a blended image; 0.1 or the family's.")]
ValEveryOption = Annotated[int, typer.Option("--val-every", min=0, help="Epochs between mAPs; 0: at the end.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of everything random.")]
LoadersOption = Annotated[int | None, typer.Option("--workers", min=0, help="Processes that load images.")]
TrainDeviceOption = Annotated[str, typer.Option("--device", help="Where to train: auto, cpu, cuda, cuda:1.")]
TrainPrecisionOption = Annotated[
    Literal["auto", "fp32", "fp16", "bf16"], typer.Option("--precision", help="auto: mixed on a GPU.")
]

ScheduleOption = Annotated[
    Literal["cosine", "one-cycle"],
    typer.Option("--schedule", help="Of the learning rate.", rich_help_panel=_EXTRAS),
]
Mosaic9Option = Annotated[float, _part("--mosaic9", "Probability of a mosaic of 9.", panel=_EXTRAS)]
CopyPasteOption = Annotated[float, _part("--copy-paste", "Probability of boxes from another image.", panel=_EXTRAS)]
SsdCropOption = Annotated[
    float | None, _part("--ssd-crop", "Probability of SSD's crop; 0 or the family's.", panel=_EXTRAS)
]
MultiScaleOption = Annotated[
    float, _part("--multi-scale", "Largest change of the input size from batch to batch.", panel=_EXTRAS)
]
QatOption = Annotated[
    bool,
    typer.Option("--qat", help="Compute with numbers rounded as INT8 rounds them.", rich_help_panel=_EXTRAS),
]
QatEngineOption = Annotated[
    Literal["openvino", "onnxruntime", "tensorrt"],
    typer.Option("--qat-engine", help="With --qat: the engine that it will run on.", rich_help_panel=_EXTRAS),
]
SelfAdversarialOption = Annotated[
    float, _part("--self-adversarial", "Probability that the network alters a batch against itself.", panel=_EXTRAS)
]
LabelSmoothingOption = Annotated[float, _part("--label-smoothing", "Of the class targets.", panel=_EXTRAS)]
BoxLossOption = Annotated[
    Literal["iou", "giou", "diou", "ciou"] | None,
    typer.Option("--box-loss", help="In place of the family's own.", rich_help_panel=_EXTRAS),
]
DropBlockOption = Annotated[
    float, _part("--drop-block", "Part of the backbone's last features taken out at the end.", panel=_EXTRAS)
]
CrossIterationNormOption = Annotated[
    int,
    typer.Option(
        "--cross-iteration-norm", min=1, help="Batches that normalisation looks back over.", rich_help_panel=_EXTRAS
    ),
]
FreezeOption = Annotated[
    list[str] | None,
    typer.Option("--freeze", help="backbone, or a parameter's first names; repeatable.", rich_help_panel=_EXTRAS),
]
LayerDecayOption = Annotated[
    float, _part("--layer-decay", "Learning rate of each backbone layer relative to the next.", panel=_EXTRAS)
]
AnchorsOption = Annotated[
    Literal["family", "kmeans", "auto"],
    typer.Option("--anchors", help="kmeans, auto: fitted to the training boxes.", rich_help_panel=_EXTRAS),
]

AlternatingOption = Annotated[
    bool,
    typer.Option("--alternating", help="Faster R-CNN: proposals and boxes take turns.", rich_help_panel=_EXTRAS),
]

EvolveOption = Annotated[
    int | None,
    typer.Option("--evolve", min=1, help="Search for settings in this many runs.", rich_help_panel=_SEARCH),
]
FitnessOption = Annotated[
    str,
    typer.Option("--fitness", help="With --evolve: weights of precision, recall, mAP.", rich_help_panel=_SEARCH),
]
PretrainOption = Annotated[
    bool,
    typer.Option(
        "--pretrain-classification", help="Train the backbone alone, to classify images.", rich_help_panel=_SEARCH
    ),
]
CutmixOption = Annotated[float, _part("--cutmix", "With --pretrain-classification: probability.", panel=_SEARCH)]

# Flag -> attribute of TrainConfig or Augmentation where the names differ.
_ATTRIBUTES = {"lr": "learning_rate", "imgsz": "size_hw"}
# Options of the verb that are no settings of a run.
_OTHERS = frozenset({"config", "alternating", "evolve", "fitness", "pretrain_classification", "cutmix", "as_json"})


def given_options(context: typer.Context) -> frozenset[str]:
    """The names of the verb's parameters that were given and not left to their defaults."""
    return frozenset(
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")
    )


def to_settings(parameters: Mapping[str, Any], given: frozenset[str]) -> dict[str, Any]:
    """What was given as settings, by the names of `TrainConfig`'s and `Augmentation`'s attributes.

    Raises:
        InputError: where a value has the wrong form.
    """
    settings = {}
    for name in given - _OTHERS:
        value = parameters[name]
        if name == "imgsz":
            value = parse_image_size(value)
        elif name == "freeze":
            value = tuple(part.strip() for entry in value for part in entry.split(","))
        settings[_ATTRIBUTES.get(name, name)] = value
    return settings


def parse_fitness(text: str) -> tuple[float, float, float]:
    """The weights of precision, recall and mAP in what `--fitness` was given.

    Raises:
        InputError: where it is not three numbers.
    """
    try:
        precision, recall, mean_ap = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            "--fitness", expected="three numbers such as 0.1,0.1,0.8", got=repr(text), fix="pass three numbers"
        ) from error
    return precision, recall, mean_ap


def require_with(given: frozenset[str], needed: str, options: tuple[str, ...]) -> None:
    """Raise `InputError` where an option was given that does nothing without another one."""
    for name in options:
        if name in given and needed not in given:
            flag, other = _flag(name), _flag(needed)
            raise InputError(flag, expected=f"{other} beside it", got="none", fix=f"pass {other}, or leave {flag} out")


def refuse_with(given: frozenset[str], mode: str, allowed: frozenset[str]) -> None:
    """Raise `InputError` where an option was given that has no meaning in a mode of the verb."""
    surplus = sorted(given - allowed - {mode})
    if surplus:
        raise InputError(
            _flag(mode),
            expected="none beside it that means nothing there",
            got=", ".join(_flag(name) for name in surplus),
            fix="leave it out",
        )


def _flag(name: str) -> str:
    return "--json" if name == "as_json" else "--" + name.replace("_", "-")
