"""Where and how Lightning runs: device, precision, workers, and manners."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import torch

from boxwright.core.errors import InputError, UnsupportedError

_MOST_WORKERS = 8


def default_workers() -> int:
    """Processes that load images beside the one that trains."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # On two cores the training itself needs both.
    return 0 if cpus <= 2 else min(_MOST_WORKERS, cpus - 1)


def one_opencv_thread(worker: int) -> None:
    """OpenCV would start as many threads as there are cores in every worker."""
    cv2.setNumThreads(0)


def choose_device(name: str) -> torch.device:
    """The device of that name; for "auto" a GPU where there is one.

    Raises:
        InputError: where it is no name of a device.
        UnsupportedError: where there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError("--device", expected="auto, cpu, cuda or cuda:1", got=repr(name), fix="pass one") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnsupportedError(
            "--device",
            expected="a CUDA device that PyTorch sees",
            got=name,
            fix="pass --device cpu, or mend the driver",
        )
    if device.type not in ("cpu", "cuda"):
        raise UnsupportedError("--device", expected="cpu or cuda", got=name, fix="pass one of them")
    return device


def lightning_precision(name: str, device: torch.device) -> Any:
    """What Lightning calls a precision; for "auto" mixed where the device is a GPU.

    Raises:
        UnsupportedError: where the device cannot do it.
    """
    if name == "auto":
        if device.type != "cuda":
            return "32-true"
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    if name == "fp16" and device.type == "cpu":
        raise UnsupportedError(
            "--precision", expected="fp32 or bf16 on the CPU", got="fp16", fix="pass one of them, or a GPU"
        )
    return {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}[name]


@contextmanager
def plain_interrupt() -> Iterator[None]:
    """Let Ctrl-C be a KeyboardInterrupt; Lightning makes an exit of it, and the process deaf to the next one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from error
        raise


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's announcements and its advice on workers from the display; its warnings of substance pass."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # parts that are fixed
        try:
            yield
        finally:
            logger.setLevel(level)
