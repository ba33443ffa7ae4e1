"""`boxwright train`: from a data set to a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from boxwright.cli._options import DataOption, ImageSizeOption, JsonOption, parse_image_size
from boxwright.cli._output import print_json, stdout_console
from boxwright.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from boxwright.training import TrainResult


def train(
    data: DataOption,
    model: Annotated[str, typer.Option("--model", help="Variant, e.g. yolox-nano; see 'boxwright models'.")],
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the training images.")] = 100,
    weights: Annotated[Path | None, typer.Option("--weights", help="Checkpoint to start from.")] = None,
    preprocess: Annotated[str | None, typer.Option("--preprocess", help="Preprocessing, by name.")] = None,
    imgsz: ImageSizeOption = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images a step.")] = 16,
    out: Annotated[Path, typer.Option("--out", help="Folder for checkpoints and logs.")] = Path("runs/train"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    max_minutes: Annotated[float | None, typer.Option("--max-minutes", help="Shorten the run to about this.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Highest learning rate.")] = None,
    optimizer: Annotated[Literal["adamw", "sgd"], typer.Option("--optimizer", help="How weights are moved.")] = "adamw",
    mosaic: Annotated[float, typer.Option("--mosaic", min=0.0, max=1.0, help="Probability of a mosaic of 4.")] = 0.5,
    mixup: Annotated[float, typer.Option("--mixup", min=0.0, max=1.0, help="Probability of a blended image.")] = 0.1,
    val_every: Annotated[int, typer.Option("--val-every", min=0, help="Epochs between mAPs; 0: at the end.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything random.")] = 0,
    workers: Annotated[int | None, typer.Option("--workers", min=0, help="Processes that load images.")] = None,
    device: Annotated[str, typer.Option("--device", help="Where to train: auto, cpu, cuda, cuda:1.")] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "fp16", "bf16"], typer.Option("--precision", help="auto: mixed on a GPU.")
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a detector on your own data, from scratch or from a checkpoint."""
    try:
        from boxwright.training import Augmentation, TrainConfig
        from boxwright.training import train as run_training
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("boxwright"):
            raise
        raise MissingDependencyError(error.name, extra="train", needed_for="boxwright train") from error

    config = TrainConfig(
        data=data,
        model=model,
        out=out,
        epochs=epochs,
        weights=weights,
        preprocess=preprocess,
        size_hw=None if imgsz is None else parse_image_size(imgsz),
        batch=batch,
        learning_rate=lr,
        optimizer=optimizer,
        augmentation=Augmentation(mosaic=mosaic, mixup=mixup),
        seed=seed,
        workers=workers,
        device=device,
        precision=precision,
        max_minutes=max_minutes,
        val_every=val_every,
        resume=resume,
    )
    result = run_training(config)
    if as_json:
        print_json(_to_jsonable(result))
    else:
        _print_result(result)


def _to_jsonable(result: TrainResult) -> dict[str, Any]:
    return {
        "out": result.out,
        "best": result.best,
        "last": result.last,
        "map": result.best_map,
        "map50": result.best_map50,
        "epochs_done": result.epochs_done,
        "seconds": result.seconds,
        "unreadable": result.unreadable,
        "history": [dataclasses.asdict(record) for record in result.history],
    }


def _print_result(result: TrainResult) -> None:
    console = stdout_console()
    measured = "" if result.best_map is None else f" (mAP {result.best_map:.4f}, mAP50 {result.best_map50 or 0:.4f})"
    for line in (
        f"{result.epochs_done} epochs in {result.seconds:.0f} s",
        f"best: {result.best}{measured}",
        f"last: {result.last}",
        f"next: boxwright export {result.best} --out model.onnx",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
