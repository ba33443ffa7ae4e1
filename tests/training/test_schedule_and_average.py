"""Learning rate, clock and moving average against their definitions."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from boxwright.training.config import TrainConfig
from boxwright.training.ema import MovingAverage
from boxwright.training.lightning_module import make_schedule
from boxwright.training.schedule import CosineSchedule, OneCycleSchedule, RunClock

SCHEDULE = CosineSchedule(peak=0.1, warmup=0.1, final_phase=0.2, final_ratio=0.05)
POINTS = [
    (0.0, 0.1 * 1e-4),
    (0.05, 0.1 * 0.25),
    (0.1, 0.1),
    (0.45, 0.005 + 0.095 / 2),  # half way down the cosine
    (0.8, 0.005),
    (0.9, 0.005),
    (1.0, 0.005),
]


@pytest.mark.parametrize(("progress", "expected"), POINTS)
def test_learning_rate(progress: float, expected: float) -> None:
    assert SCHEDULE.at(progress) == pytest.approx(expected)


def test_learning_rate_without_warmup_or_end() -> None:
    plain = CosineSchedule(peak=1.0, warmup=0.0, final_phase=0.0, final_ratio=0.0)
    assert plain.at(0.0) == 1.0
    assert plain.at(0.25) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert plain.at(1.0) == 0.0
    flat = CosineSchedule(peak=1.0, warmup=0.5, final_phase=0.5, final_ratio=0.1)
    assert flat.at(0.5) == pytest.approx(0.1)


ONE_CYCLE = OneCycleSchedule(peak=0.5, warmup=0.3, final_ratio=1e-4)


def test_one_cycle_by_hand() -> None:
    points = {0.0: 0.02, 0.15: 0.26, 0.3: 0.5, 0.65: 0.250025, 1.0: 5e-5}
    for progress, expected in points.items():
        assert ONE_CYCLE.at(progress) == pytest.approx(expected), progress
    momenta = {0.0: 0.95, 0.15: 0.9, 0.3: 0.85, 0.65: 0.9, 1.0: 0.95}
    for progress, expected in momenta.items():
        assert ONE_CYCLE.momentum_at(progress) == pytest.approx(expected), progress
    assert SCHEDULE.momentum_at(0.5) is None


def test_one_cycle_is_pytorchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    steps = 101
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.5, total_steps=steps, pct_start=0.3, div_factor=25, final_div_factor=1e4 / 25
    )
    # Theirs counts whole steps, the last of the rise being one before the part of the run that it is given.
    ours = OneCycleSchedule(peak=0.5, warmup=(0.3 * steps - 1) / (steps - 1), final_ratio=1e-4)
    for step in range(steps):
        group = optimizer.param_groups[0]
        assert ours.at(step / (steps - 1)) == pytest.approx(group["lr"], rel=1e-6), step
        assert ours.momentum_at(step / (steps - 1)) == pytest.approx(group["momentum"], rel=1e-6), step
        optimizer.step()
        if step < steps - 1:
            theirs.step()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0.003),
        ({"batch": 64}, 0.006),
        ({"learning_rate": 0.0004}, 0.0004),
        ({"optimizer": "sgd", "batch": 64}, 0.01),  # the suggestion is AdamW's
    ],
)
def test_a_model_suggests_the_learning_rate_where_the_run_does_not_say(
    settings: dict[str, Any], expected: float
) -> None:
    config = TrainConfig(data=Path("d"), model="m", out=Path("o"), **settings)
    assert config.peak_for(0.003) == pytest.approx(expected)
    assert config.peak_for(None) == config.peak_learning_rate
    assert make_schedule(config, 0.003).peak == pytest.approx(expected)


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_progress_is_by_steps_without_a_limit() -> None:
    clock = Clock()
    run = RunClock(200, None, now=clock)
    clock.seconds += 1e6
    assert run.progress(50) == 0.25
    assert run.progress(500) == 1.0


def test_progress_is_by_time_where_that_is_further() -> None:
    clock = Clock()
    run = RunClock(200, 60.0, now=clock)
    clock.seconds += 15
    assert run.progress(10) == pytest.approx(0.25)
    assert run.progress(100) == 0.5
    assert run.remaining(10) == pytest.approx(45)
    run.measurement_took(10)  # as long again is reserved for the last one
    assert run.progress(10) == pytest.approx(15 / 50)
    clock.seconds += 40
    assert run.progress(10) == 1.0


def test_steps_of_the_run_follow_the_pace() -> None:
    clock = Clock()
    assert RunClock(200, None, now=clock).expected_steps(3) == 200
    run = RunClock(200, 60.0, now=clock)
    assert run.expected_steps(0) == 200
    clock.seconds += 15
    assert run.expected_steps(10) == pytest.approx(40)
    assert run.expected_steps(150) == pytest.approx(200)  # all of them, long before the time is up


def test_time_of_earlier_processes_counts() -> None:
    clock = Clock()
    run = RunClock(200, 60.0, elapsed=30.0, now=clock)
    assert run.elapsed() == 30
    assert run.progress(0) == 0.5
    assert run.remaining(0) == pytest.approx(30)


def test_moving_average_is_the_recursion_of_its_definition() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = MovingAverage(module, total_steps=100)
    assert average.horizon == 5
    expected = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for step in range(4):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        module(torch.randn(6, 3))
        average.update(module)
        keep = (1 - 1 / 5) * (1 - math.exp(-(step + 1) / 5))
        for name, tensor in module.state_dict().items():
            expected[name] = keep * expected[name] + (1 - keep) * tensor if tensor.is_floating_point() else tensor
    for name, tensor in average.module.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert not average.module.training and module.training


@pytest.mark.parametrize(("steps", "horizon"), [(1, 1.0), (10, 1.0), (400, 20.0), (1_000_000, 5000)])
def test_horizon_suits_the_length_of_the_run(steps: int, horizon: float) -> None:
    assert MovingAverage(nn.Linear(1, 1), total_steps=steps).horizon == horizon


def test_horizon_shrinks_with_a_run_that_is_cut_short() -> None:
    average = MovingAverage(nn.Linear(1, 1), total_steps=10_000)
    average.expect(600)
    assert average.horizon == 30
