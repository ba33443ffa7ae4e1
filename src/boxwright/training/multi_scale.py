"""Batches of changing size: one size a batch, every side a multiple of what the network needs.

Source: Redmon and Farhadi, YOLO9000, CVPR 2017, sec. 2, "Multi-Scale Training".
"""

from __future__ import annotations

import dataclasses

import numpy as np
from torch.nn import functional

from boxwright.core.errors import InputError
from boxwright.models import DetectionModel, Targets
from boxwright.training.dataset import TrainBatch

Size = tuple[int, int]
# Told from other uses of the same seed, epoch and batch.
_STREAM = 0x5CA1E


def scaled_sizes(module: DetectionModel, size_hw: Size, spread: float) -> tuple[Size, ...]:
    """The sizes that batches may have.

    Args:
        module: the detector, whose `size_divisor` divides every side.
        size_hw: of the usual input.
        spread: largest change of a side, as a part of it.

    Returns:
        At least two sizes, ascending, of nearly the shape of `size_hw`; that one among them.

    Raises:
        InputError: where the network takes no other size, or none lies within the spread.
    """
    divisor = module.size_divisor
    sizes = {size_hw}
    for step in range(1, max(size_hw) // divisor + 1):
        for sign in (-1, 1):
            height = size_hw[0] + sign * step * divisor
            width = round(size_hw[1] * height / size_hw[0] / divisor) * divisor
            changes = [abs(new - old) / old for new, old in zip((height, width), size_hw, strict=True)]
            if height >= divisor and width >= divisor and max(changes) <= spread + 1e-9:
                sizes.add((height, width))
    if len(sizes) < 2:
        raise InputError(
            "--multi-scale",
            expected=f"a part of {size_hw[0]}x{size_hw[1]} that reaches another multiple of {divisor}",
            got=str(spread),
            fix=f"pass at least {divisor / min(size_hw):.3f}, or leave it out",
        )
    for size in sizes:
        _check_takes(module, size)
    return tuple(sorted(sizes))


def _check_takes(module: DetectionModel, size_hw: Size) -> None:
    try:
        module.decode_spec(size_hw)
    except InputError as error:
        raise InputError(
            "--multi-scale",
            expected="a network that takes inputs of several sizes",
            got=f"{module.variant}, which refuses {size_hw[0]}x{size_hw[1]} ({error})",
            fix="leave --multi-scale out",
        ) from error


def size_of_batch(sizes: tuple[Size, ...], *, seed: int, epoch: int, batch_index: int) -> Size:
    """The size of a batch, drawn from the run's seed and the batch's place alone.

    So all processes of a distributed run and a resumed run draw the same.
    """
    random = np.random.default_rng([seed, epoch, batch_index, _STREAM])
    return sizes[int(random.integers(len(sizes)))]


def resize_batch(batch: TrainBatch, size_hw: Size) -> TrainBatch:
    """The batch at another size, its boxes with it."""
    old_hw = (batch.images.shape[2], batch.images.shape[3])
    if old_hw == size_hw:
        return batch
    images = functional.interpolate(batch.images, size=size_hw, mode="bilinear", align_corners=False, antialias=True)
    ratio_y, ratio_x = size_hw[0] / old_hw[0], size_hw[1] / old_hw[1]
    targets = Targets(
        boxes_xyxy=[boxes * boxes.new_tensor([ratio_x, ratio_y] * 2) for boxes in batch.targets.boxes_xyxy],
        class_ids=batch.targets.class_ids,
        is_class_only=batch.targets.is_class_only,
    )
    mask = batch.pixel_mask
    if mask is not None:
        mask = functional.interpolate(mask[:, None].float(), size=size_hw, mode="nearest")[:, 0].to(mask.dtype)
    return dataclasses.replace(batch, images=images, targets=targets, pixel_mask=mask)
