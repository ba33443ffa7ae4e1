"""The search for the best batch and number of streams, on detectors whose rates are known."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from boxwright.bench.throughput import search_throughput

IMAGES = [np.zeros((4, 4, 3), np.uint8)] * 3
TRIAL_S = 0.06


class SleepingDetector:
    """Takes `call_s` a call and `image_s` an image; sleeping ones run side by side for nothing."""

    def __init__(self, call_s: float, image_s: float, fixed_batch: int | None) -> None:
        self.batch_size = 16
        self.backend = SimpleNamespace(inputs={"images": SimpleNamespace(shape=(fixed_batch, 3, 4, 4))})
        self._call_s, self._image_s = call_s, image_s

    def __call__(self, images: list[Any]) -> None:
        time.sleep(self._call_s + self._image_s * len(images))

    def __enter__(self) -> SleepingDetector:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


@pytest.mark.parametrize(
    ("call_s", "image_s", "fixed_batch", "streams", "expected"),
    [
        (0.002, 0.0, None, (), (4, 16)),  # a call costs, whatever is in it: the more the better, both ways
        (0.0, 0.004, 1, (), (4, 1)),  # the file takes one image at a time
        (0.0, 0.004, 1, (3, 1), (3, 1)),  # what the user names
    ],
)
def test_climbs_to_the_best(
    call_s: float, image_s: float, fixed_batch: int | None, streams: tuple[int, ...], expected: tuple[int, int]
) -> None:
    opened: list[int] = []

    def open_detector(num_threads: int) -> Any:
        opened.append(num_threads)
        return SleepingDetector(call_s, image_s, fixed_batch)

    found = search_throughput(open_detector, IMAGES, num_cores=4, streams=streams, trial_s=TRIAL_S)
    assert (found.streams, found.batch) == expected
    assert found.fps > 0
    assert max(opened) <= 4 and opened[-1] == 1  # four streams on four cores have one each


def test_the_threads_that_the_user_wants_are_kept() -> None:
    opened: list[int] = []

    def open_detector(num_threads: int) -> Any:
        opened.append(num_threads)
        return SleepingDetector(0.001, 0.0, 1)

    search_throughput(open_detector, IMAGES, num_cores=8, num_threads=3, trial_s=0.01)
    assert set(opened) == {3}
