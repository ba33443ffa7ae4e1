"""What torchvision's Faster R-CNN files have that modules built today have not."""

from __future__ import annotations

import re

from boxwright.models.common.checkpoint import StateDict

# Batch normalisation adds this to the variance; the frozen one of torchvision's trained detectors adds nothing.
NORM_EPSILON = 1e-5


def without_old_names(state: StateDict) -> StateDict:
    """The names of today: in files before 2022 the convolutions of the RPN and the pyramid were not nested."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1", name)
        name = re.sub(r"^(backbone\.fpn\.\w+_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", name)
        renamed[name] = tensor
    return renamed


def without_frozen_norms(state: StateDict) -> StateDict:
    """Variances less the epsilon that a module's batch normalisation adds, where the file's adds none.

    A frozen normalisation has no step counter. Those of ResNet's trained files were trained with epsilon 0, which
    torchvision sets when it loads them; where a file was trained with 1e-5 after all, this changes nothing that counts.
    """
    frozen = {
        name.removesuffix("running_var")
        for name in state
        if name.startswith(("backbone.body.layer", "backbone.body.bn1"))
        if name.endswith("running_var") and name.replace("running_var", "num_batches_tracked") not in state
    }
    return {
        name: tensor - NORM_EPSILON
        if name.endswith("running_var") and name.removesuffix("running_var") in frozen
        else tensor
        for name, tensor in state.items()
    }
