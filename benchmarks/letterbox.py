"""Times the letterbox kernel against OpenCV and numpy, one thread each, and prints the ratios.

    python benchmarks/letterbox.py [--json]

All three make the same network input from the same image: resize, pad to a square, BGR to RGB, subtract the mean,
divide by the standard deviation, split into planes. The OpenCV side is `cv2.resize`, `copyMakeBorder` and
`cv2.dnn.blobFromImage` (which knows one scale for all channels, so that the standard deviations are equal here); the
numpy side the usual resize, pad, `astype`, arithmetic and transpose.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from boxwright.core import kernels
from boxwright.core.preprocess import Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.225, 0.225, 0.225)
PAD = 114
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


@dataclasses.dataclass(frozen=True)
class Setting:
    """An image size and the square that it goes to."""

    image_hw: tuple[int, int]
    size: int

    @property
    def name(self) -> str:
        return f"{self.image_hw[1]}x{self.image_hw[0]} to {self.size}"

    def preprocess(self) -> Preprocess:
        return Preprocess(size_hw=(self.size, self.size), mean=MEAN, std=STD, pad_value=(PAD, PAD, PAD))


SETTINGS = [Setting((720, 1280), 640), Setting((480, 640), 416)]
Image = NDArray[np.uint8]


def resized_and_padded(image: Image, setting: Setting) -> Image:
    transform = setting.preprocess().plan((image.shape[0], image.shape[1]))
    height, width = transform.resized_hw
    left, top = transform.offset_xy
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    bottom, right = setting.size - height - top, setting.size - width - left
    return cv2.copyMakeBorder(resized, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(PAD, PAD, PAD))


def with_opencv(image: Image, setting: Setting) -> NDArray[np.float32]:
    mean = tuple(255 * value for value in MEAN)
    padded = resized_and_padded(image, setting)
    return cv2.dnn.blobFromImage(padded, 1 / (255 * STD[0]), (setting.size, setting.size), mean, swapRB=True)[0]


def with_numpy(image: Image, setting: Setting) -> NDArray[np.float32]:
    pixels = resized_and_padded(image, setting)[..., ::-1].astype(np.float32) / 255
    normalised = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def with_kernel(setting: Setting) -> Callable[[Image], NDArray[np.float32]]:
    preprocess = setting.preprocess()
    return lambda image: preprocess.apply(image)[0]


def measure(setting: Setting, rounds: int) -> dict[str, Any]:
    """The three in turn, so that a busy machine slows them all; the medians."""
    image = np.random.default_rng(0).integers(0, 256, (*setting.image_hw, 3), dtype=np.uint8)
    kernel = with_kernel(setting)
    sides: dict[str, Callable[[], NDArray[np.float32]]] = {
        "kernel": lambda: kernel(image),
        "opencv": lambda: with_opencv(image, setting),
        "numpy": lambda: with_numpy(image, setting),
    }
    results = {name: side() for name, side in sides.items()}
    for name, result in results.items():
        if np.abs(result - results["kernel"]).max() > 1.01 / 255 / STD[0]:
            sys.exit(f"{setting.name}: {name} makes another input, by more than a grey level")
    times_ms: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            for _ in range(5):
                side()
            times_ms[name].append((time.perf_counter() - start) * 1e3 / 5)
    medians = {name: statistics.median(values) for name, values in times_ms.items()}
    return {
        "setting": setting.name,
        **{f"{name}_ms": round(value, 4) for name, value in medians.items()},
        "ratio_to_opencv": round(medians["opencv"] / medians["kernel"], 2),
        "ratio_to_numpy": round(medians["numpy"] / medians["kernel"], 2),
    }


def keep_freed_memory() -> None:
    """Let the C library reuse large arrays: all sides allocate, and page faults would be most of what is timed."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--rounds", type=int, default=60, help="times that the three are timed in turn")
    arguments = parser.parse_args()
    if not kernels.instruction_sets():
        sys.exit("the compiled kernels are not built: pip install . with a C++ compiler at hand")
    cv2.setNumThreads(1)
    keep_freed_memory()
    results = [measure(setting, arguments.rounds) for setting in SETTINGS]
    if arguments.json:
        print(json.dumps({"instruction_set": kernels.instruction_sets()[0], "results": results}, indent=2))
        return
    print(f"instruction set: {kernels.instruction_sets()[0]}; one thread each; medians of {arguments.rounds} rounds")
    for row in results:
        print(
            f"{row['setting']:17} kernel {row['kernel_ms']:.3f} ms  OpenCV {row['opencv_ms']:.3f} ms "
            f"({row['ratio_to_opencv']:.1f} times, wanted above 1)  numpy {row['numpy_ms']:.3f} ms "
            f"({row['ratio_to_numpy']:.1f} times, wanted 3)"
        )


if __name__ == "__main__":
    main()
