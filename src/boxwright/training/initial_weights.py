"""Starting a training run from a checkpoint, whose classes may be others."""

from __future__ import annotations

import torch
from torch import Tensor

from boxwright.models import DetectionModel, build_model
from boxwright.models.common.checkpoint import load_weights
from boxwright.models.common.loading import Weights, described_network


def start_from_weights(
    module: DetectionModel, weights: Weights, class_names: tuple[str, ...], source: str
) -> tuple[str, ...]:
    """Put a checkpoint's weights into a module; layers that depend on the number of classes keep their random ones.

    Args:
        module: to change.
        weights: of the same variant.
        class_names: that the module is to learn.
        source: named in errors.

    Returns:
        Notes for people.

    Raises:
        CheckpointError: where the checkpoint does not fit the variant.
    """
    num_classes = weights.imported.num_classes
    own = module.state_dict()
    described = {name: tensor for name, tensor in own.items() if name in module.describing_tensors}
    if num_classes == module.num_classes:
        load_weights(module, {**weights.imported.state, **described}, source)
        return (f"started from {source}, all layers",)
    # The module as the checkpoint knows it: what differs in shape depends on the classes.
    with torch.device("meta"):
        original = described_network(weights) or build_model(weights.variant, num_classes=num_classes)
    expected = original.state_dict()
    by_class = [
        name
        for name, tensor in own.items()
        if name not in described and name in expected and expected[name].shape != tensor.shape
    ]
    merged: dict[str, Tensor] = {**weights.imported.state, **{name: own[name] for name in by_class}, **described}
    # Checked against the checkpoint's own class count first, so that an error names what is really wrong.
    load_weights(original.to_empty(device="cpu"), weights.imported.state, source)
    load_weights(module, merged, source)
    return (
        f"started from {source}, which knows {num_classes} classes; new for {module.num_classes}: "
        + ", ".join(sorted({name.rsplit(".", 1)[0] for name in by_class})),
    )
