"""What a run writes so that it can go on, and be used, after it was killed: `last.pt` and `best.pt`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from boxwright.core.errors import CheckpointError
from boxwright.core.manifest import Manifest
from boxwright.models.common.checkpoint import read_checkpoint
from boxwright.models.common.saving import save_checkpoint
from boxwright.training.config import TrainConfig, usual_settings
from boxwright.training.lightning_module import TrainingModule
from boxwright.training.settings import check_same_settings

LAST, BEST = "last.pt", "best.pt"


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of the run's history.

    Attributes:
        epoch: from 1.
        step: steps done when it ended.
        learning_rate: of its last step.
        losses: mean of each part over the epoch, `loss` being the total.
        map: COCO AP on the val split, 0 to 1; None where it was not measured.
        map50: at IoU 0.5.
        seconds: since the run began.
    """

    epoch: int
    step: int
    learning_rate: float
    losses: dict[str, float]
    map: float | None
    map50: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands besides its weights.

    Attributes:
        epochs_done: whole epochs.
        elapsed: seconds.
        history: a record an epoch.
        is_final_phase: whether the final phase had begun.
        is_finished: whether nothing is left to do.
    """

    epochs_done: int
    elapsed: float
    history: tuple[EpochRecord, ...]
    is_final_phase: bool
    is_finished: bool


def write_checkpoints(
    training: TrainingModule, manifest: Manifest, state: RunState, config: TrainConfig, *, is_best: bool
) -> None:
    """Write `last.pt` with all that a resumed run needs, and `best.pt` with the weights where they are the best yet."""
    kept = training.kept_module.state_dict()
    if is_best:
        save_checkpoint(config.out / BEST, kept, manifest)
    trainer = {
        "state": json.dumps(asdict(state)),
        "config": json.dumps(config.fingerprint()),
        "model": {name: tensor.detach().cpu() for name, tensor in training.detector.state_dict().items()},
        "precision": training.trainer.precision_plugin.state_dict(),
    }
    extras: dict[str, Any] = {"optimizer": training.trainer.optimizers[0].state_dict(), "trainer": trainer}
    if training.average is not None:
        extras["ema"] = {"num_updates": training.average.num_updates}
    save_checkpoint(config.out / LAST, kept, manifest, extras)


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """The content of a `last.pt`.

    Attributes:
        path: of the file.
        state: where the run stood.
        manifest: of its model.
        kept: weights that are measured: the average where there is one.
        current: weights that are trained.
        optimizer: its state.
        precision: state of the gradient scaler, where there is one.
        num_averaged: updates of the moving average; None without.
    """

    path: Path
    state: RunState
    manifest: Manifest
    kept: dict[str, torch.Tensor]
    current: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    precision: dict[str, Any]
    num_averaged: int | None


def read_saved_run(config: TrainConfig) -> SavedRun:
    """Read `last.pt` of the run's folder.

    Raises:
        CheckpointError: where there is none, or it is no training checkpoint.
        InputError: where it was begun with other settings.
    """
    path = config.out / LAST
    if not path.is_file():
        raise CheckpointError(
            f"--resume {config.out}", expected=f"a run with {LAST}", got="none", fix="start it without --resume"
        )
    content = read_checkpoint(path).content
    try:
        trainer = content["trainer"]
        state: dict[str, Any] = json.loads(trainer["state"])
        state["history"] = tuple(EpochRecord(**record) for record in state["history"])
        saved = SavedRun(
            path=path,
            state=RunState(**state),
            manifest=Manifest.from_json(content["manifest"], str(path)),
            kept=dict(content["model"]),
            current=dict(trainer["model"]),
            optimizer=content["optimizer"],
            precision=trainer["precision"],
            num_averaged=content["ema"]["num_updates"] if "ema" in content else None,
        )
        settings: dict[str, Any] = json.loads(trainer["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            str(path), expected="the state of a training run", got=f"another ({error!r})", fix="start a new run"
        ) from error
    check_same_settings({**usual_settings(), **settings}, config.fingerprint(), path, what="run")
    return saved


def restore_optimizer(training: TrainingModule, saved: SavedRun) -> None:
    """Put the optimizer and the gradient scaler back to where they stood."""
    training.trainer.optimizers[0].load_state_dict(saved.optimizer)
    if saved.precision:
        training.trainer.precision_plugin.load_state_dict(saved.precision)
