"""From pixels to the network's input and back: the same in training, validation, export and deployment."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from boxwright.core import kernels
from boxwright.core.boxes import FloatArray
from boxwright.core.errors import ImageError, InputError

ResizeMode = Literal["letterbox", "letterbox_topleft", "stretch", "shortest_edge"]
ChannelOrder = Literal["RGB", "BGR"]
Interpolation = Literal["linear", "area", "cubic"]
MIN_SIDE_PIXELS = 2
_MOST_PLANS = 256


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Where an image lies on the network's input.

    A point (x, y) of the original image lies at (x * scale_xy[0] + offset_xy[0], y * scale_xy[1] + offset_xy[1]).

    Attributes:
        image_size_hw: of the original image, in pixels.
        resized_hw: of the image on the canvas.
        offset_xy: left and top padding.
    """

    image_size_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    offset_xy: tuple[int, int] = (0, 0)

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Network pixels an image pixel, exactly as the resize made them."""
        return self.resized_hw[1] / self.image_size_hw[1], self.resized_hw[0] / self.image_size_hw[0]

    def to_original(self, boxes_xyxy: FloatArray) -> FloatArray:
        """Boxes (N, 4) in network pixels to boxes in pixels of the original image, clipped to it."""
        left, top = self.offset_xy
        return kernels.boxes_to_image(
            boxes_xyxy, resized_hw=self.resized_hw, offset_tl=(top, left), image_size_hw=self.image_size_hw
        )

    def to_network(self, boxes_xyxy: FloatArray) -> FloatArray:
        """Boxes (N, 4) in pixels of the original image to network pixels."""
        scales = np.array(self.scale_xy * 2, dtype=np.float32)
        offsets = np.array(self.offset_xy * 2, dtype=np.float32)
        result: FloatArray = (boxes_xyxy * scales + offsets).astype(np.float32)
        return result


class PreprocessedBatch(NamedTuple):
    """What the network gets, and the way back for each image."""

    images: FloatArray | NDArray[np.uint8]  # (B, 3, H, W); uint8 (B, H, W, 3) where the graph preprocesses
    transforms: tuple[ImageTransform, ...]
    pixel_mask: NDArray[np.int64] | None  # (B, H, W), 1 where the image is, 0 in the padding


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes the network's input.

    Attributes:
        size_hw: height and width of the input. None only with `shortest_edge`, whose input is then as large as the
            largest image of the batch; with a size, the image is placed on a canvas of that size.
        resize: `letterbox` (keep the shape, pad on all sides), `letterbox_topleft` (pad right and below), `stretch`,
            or `shortest_edge` (the shorter side becomes `shortest_edge`, the longer at most `max_size`).
        pad_value: of the padding in the units of the image (0 to 255), per channel in `channel_order`.
        channel_order: of the input; images come as BGR.
        scale: factor before mean and std, e.g. 1/255.
        mean: subtracted after scaling, per channel in `channel_order`.
        std: divisor after the mean.
        shortest_edge: pixels, for that mode.
        max_size: pixels, for that mode.
        divisor: the input's sides are rounded up to a multiple of this, for that mode without `size_hw`.
        pixel_mask: whether the network takes a second input that marks the padding.
        interpolation: of the resize.
        resize_in_float: resize float32 instead of uint8 pixels, as torchvision's detectors do.
    """

    size_hw: tuple[int, int] | None
    resize: ResizeMode = "letterbox"
    pad_value: tuple[float, float, float] = (114.0, 114.0, 114.0)
    channel_order: ChannelOrder = "RGB"
    scale: float = 1.0 / 255.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shortest_edge: int = 0
    max_size: int = 0
    divisor: int = 1
    pixel_mask: bool = False
    interpolation: Interpolation = "linear"
    resize_in_float: bool = False

    def __post_init__(self) -> None:
        _require(
            self.resize in get_args(ResizeMode), "resize", "one of " + ", ".join(get_args(ResizeMode)), self.resize
        )
        _require(self.channel_order in get_args(ChannelOrder), "channel_order", "RGB or BGR", self.channel_order)
        _require(
            self.interpolation in get_args(Interpolation), "interpolation", "linear, area or cubic", self.interpolation
        )
        if self.size_hw is None:
            _require(self.resize == "shortest_edge", "size_hw", f"height and width for {self.resize}", None)
        else:
            positive = len(self.size_hw) == 2 and all(side >= 1 for side in self.size_hw)
            _require(positive, "size_hw", "two positive numbers", self.size_hw)
        if self.resize == "shortest_edge":
            _require(self.shortest_edge >= 1, "shortest_edge", "a positive number", self.shortest_edge)
            _require(self.max_size >= self.shortest_edge, "max_size", "at least shortest_edge", self.max_size)
        for name in ("pad_value", "mean", "std"):
            _require(len(getattr(self, name)) == 3, name, "three numbers", getattr(self, name))
        _require(all(value > 0 for value in self.std), "std", "positive numbers", self.std)
        _require(self.scale > 0, "scale", "a positive number", self.scale)
        _require(self.divisor >= 1, "divisor", "a positive number", self.divisor)

    def plan(self, image_size_hw: tuple[int, int]) -> ImageTransform:
        """Where an image of this size will lie on the input.

        Raises:
            ImageError: where a side is, or would become, shorter than two pixels.
        """
        known = self._plans.get(image_size_hw)
        if known is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            known = self._plans[image_size_hw] = self._plan(image_size_hw)
        return known

    @functools.cached_property
    def _plans(self) -> dict[tuple[int, int], ImageTransform]:
        """What `plan` found before: the images of a video or a camera are all of one size."""
        return {}

    def _plan(self, image_size_hw: tuple[int, int]) -> ImageTransform:
        height, width = image_size_hw
        if min(height, width) < MIN_SIDE_PIXELS:
            raise ImageError(
                "image",
                expected=f"at least {MIN_SIDE_PIXELS}x{MIN_SIDE_PIXELS} pixels",
                got=f"{width}x{height}",
                fix="leave it out or give a larger one",
            )
        resized_hw = self._resized_hw(height, width)
        if min(resized_hw) < MIN_SIDE_PIXELS:
            raise ImageError(
                "image",
                expected=f"a shape that leaves at least {MIN_SIDE_PIXELS} pixels a side at the network's input",
                got=f"{width}x{height}, which becomes {resized_hw[1]}x{resized_hw[0]}",
                fix="cut it into tiles of a milder aspect ratio",
            )
        offset_xy = (0, 0)
        if self.resize == "letterbox":
            assert self.size_hw is not None
            offset_xy = ((self.size_hw[1] - resized_hw[1]) // 2, (self.size_hw[0] - resized_hw[0]) // 2)
        return ImageTransform(image_size_hw=image_size_hw, resized_hw=resized_hw, offset_xy=offset_xy)

    def _resized_hw(self, height: int, width: int) -> tuple[int, int]:
        if self.resize == "shortest_edge":
            ratio = min(self.shortest_edge / min(height, width), self.max_size / max(height, width))
            resized_hw = int(height * ratio + 1e-6), int(width * ratio + 1e-6)
            if self.size_hw is None or (resized_hw[0] <= self.size_hw[0] and resized_hw[1] <= self.size_hw[1]):
                return resized_hw
            # The canvas of an exported model is fixed; an image that would not fit is made to.
            ratio = min(self.size_hw[0] / height, self.size_hw[1] / width)
            return int(height * ratio + 1e-6), int(width * ratio + 1e-6)
        assert self.size_hw is not None
        if self.resize == "stretch":
            return self.size_hw
        ratio = min(self.size_hw[0] / height, self.size_hw[1] / width)
        if self.resize == "letterbox":
            return max(1, round(height * ratio)), max(1, round(width * ratio))
        # YOLOX truncates; the small addend keeps 416 from becoming 415 where the ratio is not exact in binary.
        return max(1, int(height * ratio + 1e-6)), max(1, int(width * ratio + 1e-6))

    def apply(self, image: NDArray[np.uint8], out: FloatArray | None = None) -> tuple[FloatArray, ImageTransform]:
        """Make the network's input from one image.

        Args:
            image: (H, W, 3) uint8, BGR.
            out: (3, H', W') float32 to write into; a new array where None.

        Returns:
            The input (3, H', W') float32, without the batch axis, and the way back.

        Raises:
            ImageError: where the array is not such an image, or too small or thin.
        """
        check_image(image)
        transform = self.plan((image.shape[0], image.shape[1]))
        return self._place(image, transform, self.canvas_hw([transform]), out), transform

    def apply_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        allocate: Callable[[tuple[int, int, int, int]], FloatArray] | None = None,
    ) -> PreprocessedBatch:
        """Make the network's input from several images, padded to a common size.

        Args:
            images: (H, W, 3) uint8 BGR each, of any sizes; at least one.
            allocate: gives the float32 array of a shape to write the input into; a new array where None.
        """
        for image in images:
            check_image(image)
        transforms = tuple(self.plan((image.shape[0], image.shape[1])) for image in images)
        height, width = self.canvas_hw(transforms)
        shape = (len(images), 3, height, width)
        batch = np.empty(shape, dtype=np.float32) if allocate is None else allocate(shape)
        for row, image, transform in zip(batch, images, transforms, strict=True):
            self._place(image, transform, (height, width), row)
        mask = None
        if self.pixel_mask:
            mask = np.zeros((len(images), height, width), dtype=np.int64)
            for row_mask, transform in zip(mask, transforms, strict=True):
                left, top = transform.offset_xy
                row_mask[top : top + transform.resized_hw[0], left : left + transform.resized_hw[1]] = 1
        return PreprocessedBatch(batch, transforms, mask)

    def canvas_hw(self, transforms: Sequence[ImageTransform]) -> tuple[int, int]:
        """Height and width of the input that takes all these images."""
        if self.size_hw is not None:
            return self.size_hw
        height = max(transform.resized_hw[0] for transform in transforms)
        width = max(transform.resized_hw[1] for transform in transforms)
        return -(-height // self.divisor) * self.divisor, -(-width // self.divisor) * self.divisor

    @functools.cached_property
    def _normalization(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Factor and addend of each channel of an image of 0 to 255."""
        (mean_0, mean_1, mean_2), (std_0, std_1, std_2) = self.mean, self.std
        factors = self.scale / std_0, self.scale / std_1, self.scale / std_2
        return factors, (-mean_0 / std_0, -mean_1 / std_1, -mean_2 / std_2)

    def _place(
        self,
        image: NDArray[np.uint8],
        transform: ImageTransform,
        canvas_hw: tuple[int, int],
        out: FloatArray | None,
    ) -> FloatArray:
        factors, offsets = self._normalization
        pixels: NDArray[np.uint8] | FloatArray = image.astype(np.float32) if self.resize_in_float else image
        return kernels.letterbox(
            pixels,
            resized_hw=transform.resized_hw,
            offset_tl=(transform.offset_xy[1], transform.offset_xy[0]),
            size_hw=canvas_hw,
            pad_value=self.pad_value,
            scale=factors,
            bias=offsets,
            swap_channels=self.channel_order == "RGB",
            interpolation=self.interpolation,
            out=out,
        )


def check_image(image: object) -> None:
    """Raise `ImageError` where this is not an (H, W, 3) uint8 array."""
    if not isinstance(image, np.ndarray):
        got = type(image).__name__
    elif image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        got = f"{image.dtype} array of shape {image.shape}"
    else:
        return
    raise ImageError(
        "image",
        expected="a uint8 array (H, W, 3) in BGR order",
        got=got,
        fix="convert it first, e.g. with cv2.cvtColor and by scaling to 0..255 and astype('uint8')",
    )


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise InputError(f"Preprocess.{name}", expected=expected, got=repr(got), fix="correct the value")
