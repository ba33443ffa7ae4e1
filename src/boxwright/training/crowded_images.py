"""Images with more objects than a detector that predicts a set of objects can find."""

from __future__ import annotations

from boxwright.core.decode_spec import Queries
from boxwright.data import Dataset
from boxwright.models import DetectionModel


def note_crowded_images(module: DetectionModel, dataset: Dataset, size_hw: tuple[int, int]) -> tuple[str, ...]:
    """A note for people where there are such images; none for detectors whose number of objects has no such bound.

    Args:
        module: to train.
        dataset: to train on.
        size_hw: of the network's input.
    """
    spec = module.decode_spec(size_hw)
    if not isinstance(spec, Queries):
        return ()
    counts = [int((~sample.is_crowd).sum()) for sample in dataset.samples]
    crowded = sum(count > spec.num_queries for count in counts)
    if crowded == 0:
        return ()
    return (
        f"{crowded} of {len(counts)} training images have more objects (up to {max(counts)}) than {module.variant} has "
        f"queries ({spec.num_queries}): those of them that fit worst teach nothing",
    )
