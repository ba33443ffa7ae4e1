"""What a TensorRT engine is to be, beyond what every export can be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from boxwright.core.errors import InputError

Shape = tuple[int, ...]
ENGINE_PRECISIONS = ("fp32", "fp16", "int8")
# Of an engine for any batch size, where nothing else is asked for.
_MOST_IMAGES_A_BATCH = 16
# Of images that a graph takes as pixels, of any size: the smallest, the usual and the largest.
_PIXEL_SIZES_HW = ((2, 2), (720, 1280), (1080, 1920))


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Shapes of the input `images` that an engine takes; it is fastest at one of them.

    Attributes:
        smallest: of every axis.
        usual: that kernels are chosen for.
        largest: of every axis.
    """

    smallest: Shape
    usual: Shape
    largest: Shape

    def __post_init__(self) -> None:
        same_rank = len(self.smallest) == len(self.usual) == len(self.largest)
        rows = zip(self.smallest, self.usual, self.largest, strict=False)
        if not same_rank or not all(1 <= low <= middle <= high for low, middle, high in rows):
            raise InputError(
                "--profile",
                expected="a smallest, a usual and a largest shape, in this order",
                got=str(self),
                fix="pass e.g. --profile 1x3x416x416,4x3x416x416,16x3x416x416",
            )

    def __str__(self) -> str:
        return ",".join("x".join(map(str, shape)) for shape in (self.smallest, self.usual, self.largest))

    @classmethod
    def parse(cls, text: str) -> Profile:
        """From "1x3x416x416,4x3x416x416,16x3x416x416", or one shape for all three."""
        shapes = text.split(",")
        if len(shapes) == 1:
            shapes *= 3
        if len(shapes) != 3 or not all(re.fullmatch(r"\d+(x\d+)*", shape) for shape in shapes):
            raise InputError(
                "--profile",
                expected="one shape, or three between commas",
                got=repr(text),
                fix="pass e.g. --profile 1x3x416x416,4x3x416x416,16x3x416x416",
            )
        smallest, usual, largest = map(_numbers, shapes)
        return cls(smallest=smallest, usual=usual, largest=largest)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine is built.

    Attributes:
        workspace_mb: of the GPU's memory that layers may use for themselves, in MiB; TensorRT's own limit where None.
        timing_cache: file that keeps what the builder measured, read where it is there, and written.
        dla_core: of a Jetson, to build for; layers that it cannot run stay on the GPU.
        float_layers: ONNX nodes that stay in float32; where None they are found by comparing detections.
        profiles: shapes of the input; where there are none, they follow from the batch.
        calibration_cache: file of ranges for INT8 up to TensorRT 10, read where it is there, else written.
        gpu: number of the GPU to build on and for.
        without_cudnn: take no kernels of cuDNN and cuBLAS, which TensorRT 8 uses where they are installed.
        fixed_thresholds: make constants of the thresholds, for programs that feed images alone.
    """

    workspace_mb: int | None = None
    timing_cache: Path | None = None
    dla_core: int | None = None
    float_layers: tuple[str, ...] | None = None
    profiles: tuple[Profile, ...] = ()
    calibration_cache: Path | None = None
    gpu: int = 0
    without_cudnn: bool = False
    fixed_thresholds: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--workspace", self.workspace_mb, 1),
            ("--dla-core", self.dla_core, 0),
            ("--gpu", self.gpu, 0),
        ):
            if value is not None and value < least:
                raise InputError(name, expected=f"at least {least}", got=str(value), fix="pass one that fits")

    def arguments(self) -> list[str]:
        """The command line's arguments that say the same."""
        given: list[str] = []
        if self.workspace_mb is not None:
            given += ["--workspace", str(self.workspace_mb)]
        if self.timing_cache is not None:
            given += ["--timing-cache", str(self.timing_cache)]
        if self.dla_core is not None:
            given += ["--dla-core", str(self.dla_core)]
        if self.float_layers is not None:
            given += ["--float-layers", ",".join(self.float_layers) or "none"]
        for profile in self.profiles:
            given += ["--profile", str(profile)]
        if self.without_cudnn:
            given.append("--without-cudnn")
        if self.fixed_thresholds:
            given.append("--fixed-thresholds")
        if self.gpu:
            given += ["--gpu", str(self.gpu)]
        if self.calibration_cache is not None:
            given += ["--calibration-cache", str(self.calibration_cache)]
        return given


def parse_float_layers(text: str) -> tuple[str, ...] | None:
    """From "auto", "none" or names between commas."""
    if text == "auto":
        return None
    return () if text == "none" else tuple(name for name in text.split(",") if name)


def default_profile(shape: Sequence[int], batch: int) -> Profile:
    """The shapes of an engine whose input has open sizes (-1), where none are asked for.

    Args:
        shape: of the input, (B, 3, H, W) or (B, H, W, 3).
        batch: images that it is to be fastest at; 1 with an open batch leaves room for more.
    """
    most = batch if batch > 1 else _MOST_IMAGES_A_BATCH
    rows = []
    for images, size_hw in zip((1, batch, most), _PIXEL_SIZES_HW, strict=True):
        sides = iter(size_hw)
        rows.append((images if shape[0] < 0 else shape[0], *(next(sides) if size < 0 else size for size in shape[1:])))
    return Profile(smallest=rows[0], usual=rows[1], largest=rows[2])


def check_profile(profile: Profile, shape: Sequence[int]) -> None:
    """Raise `InputError` where the shapes are none of the input's."""
    for asked in (profile.smallest, profile.usual, profile.largest):
        fits = len(asked) == len(shape) and all(
            size < 0 or size == wanted for size, wanted in zip(shape, asked, strict=True)
        )
        if not fits:
            raise InputError(
                "--profile",
                expected="shapes of the input images, " + "x".join("?" if size < 0 else str(size) for size in shape),
                got="x".join(map(str, asked)),
                fix="pass shapes that fit, or export with --dynamic",
            )


def _numbers(text: str) -> Shape:
    return tuple(int(size) for size in text.split("x"))
