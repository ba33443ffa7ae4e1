"""Named preprocessings, as well-known detectors were trained with; the name goes to `--preprocess`."""

from __future__ import annotations

from collections.abc import Callable

from boxwright.core.errors import InputError
from boxwright.core.preprocess import Preprocess

SizeHw = tuple[int, int]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The mean colour that VGG16 was trained with (123, 117, 104), as torchvision writes it.
VGG_MEAN = (0.48235, 0.45882, 0.40784)
# Of the images of COCO, in the order blue, green, red.
COCO_MEAN_BGR = (0.40789654, 0.44719302, 0.47026115)
COCO_STD_BGR = (0.28863828, 0.27408164, 0.27809835)
# The colour 114 that YOLOX and the YOLO line pad with.
GREY = (114.0, 114.0, 114.0)
# A stretched image leaves nothing to pad.
NO_PADDING = (0.0, 0.0, 0.0)


def _yolox(size_hw: SizeHw) -> Preprocess:
    """YOLOX since release 0.1.1: BGR, 0 to 255, neither scaled nor normalised."""
    return Preprocess(size_hw=size_hw, resize="letterbox_topleft", pad_value=GREY, channel_order="BGR", scale=1.0)


def _yolox_legacy(size_hw: SizeHw) -> Preprocess:
    """YOLOX release 0.1.0: RGB, divided by 255, ImageNet mean and standard deviation, padded before normalising."""
    return Preprocess(size_hw=size_hw, resize="letterbox_topleft", pad_value=GREY, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _yolo(size_hw: SizeHw) -> Preprocess:
    """YOLOv5 to v8 and their kin: centred letterbox, RGB, divided by 255."""
    return Preprocess(size_hw=size_hw, resize="letterbox", pad_value=GREY)


def _darknet(size_hw: SizeHw) -> Preprocess:
    """Darknet as OpenCV reads it: stretched, RGB, divided by 255."""
    return Preprocess(size_hw=size_hw, resize="stretch", pad_value=(0.0, 0.0, 0.0))


def _imagenet_stretch(size_hw: SizeHw) -> Preprocess:
    """Stretched, RGB, divided by 255, ImageNet mean and standard deviation."""
    return Preprocess(
        size_hw=size_hw, resize="stretch", pad_value=(0.0, 0.0, 0.0), mean=IMAGENET_MEAN, std=IMAGENET_STD
    )


def _imagenet_letterbox(size_hw: SizeHw) -> Preprocess:
    """Letterboxed to the top left, the padding 0 after normalising; RGB, ImageNet mean and standard deviation."""
    padding = tuple(255.0 * mean for mean in IMAGENET_MEAN)
    return Preprocess(
        size_hw=size_hw,
        resize="letterbox_topleft",
        pad_value=(padding[0], padding[1], padding[2]),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _ssd300(size_hw: SizeHw) -> Preprocess:
    """SSD on VGG16 as torchvision trains it: stretched, RGB, 0 to 255 less the mean colour."""
    to_255 = (1.0 / 255.0,) * 3
    return Preprocess(size_hw=size_hw, resize="stretch", pad_value=NO_PADDING, mean=VGG_MEAN, std=to_255)


def _ssdlite(size_hw: SizeHw) -> Preprocess:
    """SSDLite as torchvision trains it: stretched, RGB, to the range -1 to 1."""
    half = (0.5, 0.5, 0.5)
    return Preprocess(size_hw=size_hw, resize="stretch", pad_value=NO_PADDING, mean=half, std=half)


def _stretch(size_hw: SizeHw) -> Preprocess:
    """Stretched, RGB, divided by 255 (RT-DETR)."""
    return _darknet(size_hw)


def _centernet(size_hw: SizeHw) -> Preprocess:
    """CenterNet: centred letterbox, padded with black, BGR, divided by 255, mean and standard deviation of COCO."""
    return Preprocess(
        size_hw=size_hw,
        resize="letterbox",
        pad_value=(0.0, 0.0, 0.0),
        channel_order="BGR",
        mean=COCO_MEAN_BGR,
        std=COCO_STD_BGR,
    )


def _efficientdet(size_hw: SizeHw) -> Preprocess:
    """EfficientDet: letterboxed to the top left, padded with the mean colour; RGB, ImageNet mean and deviation."""
    return Preprocess(
        size_hw=size_hw,
        resize="letterbox_topleft",
        pad_value=(124.0, 116.0, 104.0),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _efficientdet_advprop(size_hw: SizeHw) -> Preprocess:
    """EfficientDet trained with AdvProp: the same, padded with black, to the range -1 to 1."""
    half = (0.5, 0.5, 0.5)
    return Preprocess(size_hw=size_hw, resize="letterbox_topleft", pad_value=(0.0, 0.0, 0.0), mean=half, std=half)


PRESETS: dict[str, Callable[[SizeHw], Preprocess]] = {
    "yolox": _yolox,
    "yolox-legacy": _yolox_legacy,
    "yolov5": _yolo,
    "yolov8": _yolo,
    "darknet": _darknet,
    "stretch": _stretch,
    "imagenet-stretch": _imagenet_stretch,
    "imagenet-letterbox": _imagenet_letterbox,
    "ssd300": _ssd300,
    "ssdlite": _ssdlite,
    "centernet": _centernet,
    "efficientdet": _efficientdet,
    "efficientdet-advprop": _efficientdet_advprop,
}


def preset(name: str, size_hw: SizeHw) -> Preprocess:
    """The preprocessing of that name for an input of that size.

    Args:
        name: one of `PRESETS`.
        size_hw: height and width of the network's input.

    Raises:
        InputError: where there is none of that name.
    """
    if name not in PRESETS:
        raise InputError(
            "--preprocess", expected="one of " + ", ".join(PRESETS), got=repr(name), fix="pass one of these names"
        )
    return PRESETS[name](size_hw)
