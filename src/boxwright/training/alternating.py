"""Alternating training: the parts of a detector take turns, each turn a training of its own.

Source: Ren et al., Faster R-CNN, 2015, sec. 3.2.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from boxwright.core.errors import OutputError
from boxwright.core.files import atomic_file
from boxwright.models import DetectionModel, load_model
from boxwright.models.common.loading import choose_model
from boxwright.training.config import TrainConfig
from boxwright.training.run import TrainResult, train
from boxwright.training.state import BEST, LAST


def train_alternating(
    config: TrainConfig, *, show_progress: bool = True, tell: Callable[[str], None] = lambda line: None
) -> TrainResult:
    """Train the steps of a detector one after the other, each for all epochs, in folders of their own.

    Args:
        config: of every step; `max_minutes` is that of each. With `resume` finished steps are left as they are.
        show_progress: on stderr.
        tell: is told in a line which step begins.

    Returns:
        What the last step brought, with the epochs and seconds of all; its checkpoints are copied into `config.out`.

    Raises:
        InputError: where something does not fit, or the detector has no such steps.
        OutputError: where the results cannot be written.
        AnswerIsNoError: where training diverges.
    """
    num_steps = _num_steps(config)
    if not config.resume and (config.out / LAST).exists():
        raise OutputError(
            str(config.out),
            expected="a folder without a run in it",
            got=f"one with {LAST}",
            fix="pass --resume to go on with that run, or another --out",
        )
    initial: dict[str, Tensor] = {}
    results = []
    for step in range(1, num_steps + 1):
        out = step_folder(config.out, step)
        tell(f"step {step} of {num_steps}, in {out}")
        results.append(
            train(
                dataclasses.replace(config, out=out, resume=config.resume and (out / LAST).exists()),
                show_progress=show_progress,
                prepare=_preparation(config.out, step, initial),
                # Only the last one's boxes and proposals belong together, so before it there is nothing to measure.
                is_measured=step == num_steps,
            )
        )
    for name in (BEST, LAST):
        with atomic_file(config.out / name) as temporary:
            shutil.copyfile(results[-1].out / name, temporary)
    return dataclasses.replace(
        results[-1],
        out=config.out,
        best=config.out / BEST,
        last=config.out / LAST,
        epochs_done=sum(result.epochs_done for result in results),
        seconds=sum(result.seconds for result in results),
    )


def step_folder(out: Path, step: int) -> Path:
    """Where a step leaves what it writes."""
    return out / f"step{step}"


def _num_steps(config: TrainConfig) -> int:
    with torch.device("meta"):
        model = choose_model(config.model).example()
    if model.num_alternating_steps == 0:
        model.begin_alternating_step(1, {})  # refuses in the detector's own words
    return model.num_alternating_steps


def _preparation(out: Path, step: int, initial: dict[str, Tensor]) -> Callable[[DetectionModel], None]:
    """What makes a step of a module that has just been built; the first step remembers the weights it begins with."""

    def prepare(module: DetectionModel) -> None:
        if step == 1:
            initial.update(_copied(module.state_dict()))
        else:
            before = load_model(step_folder(out, step - 1) / LAST).module
            module.load_state_dict(before.state_dict())
        module.begin_alternating_step(step, initial)

    return prepare


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}
