"""An exponential moving average of a module's weights, which is what gets measured and kept."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

# With this many steps or more in a run the average reaches back this many; shorter runs forget faster.
LONGEST_HORIZON = 5000
HORIZON_PER_STEP = 0.05


class MovingAverage:
    """Average of weights and buffers.

    Args:
        module: to follow.
        total_steps: of the run; the average reaches back over a twentieth of them, so that it is not still full of
            the first weights when a short run ends.
    """

    horizon: float  # steps

    def __init__(self, module: nn.Module, total_steps: float) -> None:
        self.module = copy.deepcopy(module).eval()
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        self.num_updates = 0
        self.expect(total_steps)

    def expect(self, total_steps: float) -> None:
        """Suit the horizon to a run of so many steps, which a run that is limited by time learns on the way."""
        self.horizon = min(LONGEST_HORIZON, max(1.0, HORIZON_PER_STEP * total_steps))

    def decay(self) -> float:
        """The part of the average that the next update leaves; small at first, since the first weights are random."""
        return (1 - 1 / self.horizon) * (1 - math.exp(-(self.num_updates + 1) / self.horizon))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the module's present weights."""
        keep = self.decay()
        averaged, current = [], []
        for own, other in zip(self.module.state_dict().values(), module.state_dict().values(), strict=True):
            if own.dtype.is_floating_point:
                averaged.append(own)
                current.append(other)
            else:
                own.copy_(other)
        torch._foreach_lerp_(averaged, current, 1 - keep)
        self.num_updates += 1
