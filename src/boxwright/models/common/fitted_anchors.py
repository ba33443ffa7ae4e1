"""Anchors fitted to the data, for families whose published anchors follow from a formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from boxwright.core.decode_spec import AnchorLevel
from boxwright.models.common.detector import DetectionModel

FITTED_ANCHORS = "fitted_anchors_wh"


class FittedAnchorModel(DetectionModel):
    """A detector with the published anchors until `set_anchors` gives it others.

    The fitted sizes are a buffer, which is a part of the state dict only once there are some: without them the keys
    are those of the public checkpoints.

    Attributes:
        fitted_anchors_wh: (K, 2) in pixels of the network's input, by ascending area; None for the published ones.
    """

    fitted_anchors_wh: Tensor | None

    def __init__(self, *, variant: str, num_classes: int) -> None:
        super().__init__(variant=variant, num_classes=num_classes)
        self.register_buffer(FITTED_ANCHORS, None)

    @property
    def anchors_per_level(self) -> tuple[int, ...]:
        """How many anchors a cell of each level has, from fine to coarse."""
        raise NotImplementedError

    @property
    def num_anchor_sizes(self) -> int:
        return sum(self.anchors_per_level)

    def set_anchors(self, sizes_wh: Sequence[tuple[float, float]]) -> None:
        sizes = torch.tensor(sizes_wh, dtype=torch.float32, device=next(self.parameters()).device)
        self.fitted_anchors_wh = sizes.view(self.num_anchor_sizes, 2)

    def match_state(self, state: Mapping[str, Tensor]) -> None:
        """Have a place for fitted anchors where a state dict has some, and the published ones where it has none."""
        if FITTED_ANCHORS not in state:
            self.fitted_anchors_wh = None
        elif self.fitted_anchors_wh is None:
            self.set_anchors([(1.0, 1.0)] * self.num_anchor_sizes)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        # A partial state, which is loaded without strictness, says nothing of the anchors by leaving them out.
        if strict or FITTED_ANCHORS in state_dict:
            self.match_state(state_dict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def with_fitted_anchors(self, levels: tuple[AnchorLevel, ...]) -> tuple[AnchorLevel, ...]:
        """The levels with the fitted sizes dealt to them from fine to coarse; as they are where none are fitted."""
        if self.fitted_anchors_wh is None:
            return levels
        sizes_wh, fitted, start = self.fitted_anchors_wh.tolist(), [], 0
        for level, count in zip(levels, self.anchors_per_level, strict=True):
            cells = tuple((-w / 2, -h / 2, w / 2, h / 2) for w, h in sizes_wh[start : start + count])
            fitted.append(replace(level, cell_boxes_xyxy=cells))
            start += count
        return tuple(fitted)
