"""YOLO v2, 9000, v3 and v4 in Darknet's .cfg language, written by functions so that the number of classes is free.

Sources: Redmon and Farhadi, YOLO9000, CVPR 2017, table 6; the same, YOLOv3, 2018, table 1 and sec. 2.3; Bochkovskiy et
al., YOLOv4, 2020, sec. 3.4; Wang et al., Scaled-YOLOv4, CVPR 2021, sec. 4.3 (tiny).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

YOLOV2_ANCHORS = "0.57273,0.677385, 1.87446,2.06253, 3.33843,5.47434, 7.88282,3.52778, 9.77052,9.16828"
YOLO9000_ANCHORS = "0.77871,1.14074, 3.00525,4.31277, 9.22725,9.61974"
YOLOV3_ANCHORS = "10,13, 16,30, 33,23, 30,61, 62,45, 59,119, 116,90, 156,198, 373,326"
YOLOV4_ANCHORS = "12,16, 19,36, 40,28, 36,75, 76,55, 72,146, 142,110, 192,243, 459,401"
TINY_ANCHORS = "10,14, 23,27, 37,58, 81,82, 135,169, 344,319"


class CfgWriter:
    """Writes sections one after the other and knows the index of the last."""

    def __init__(self, size_hw: tuple[int, int], activation: str, num_classes: int) -> None:
        self.text = f"[net]\nheight={size_hw[0]}\nwidth={size_hw[1]}\nchannels=3\n"
        self.activation = activation
        self.num_classes = num_classes
        self.last = -1

    def section(self, name: str, **options: object) -> int:
        """Append a section; returns its layer's index."""
        lines = "".join(f"{key}={value}\n" for key, value in options.items())
        self.text += f"\n[{name}]\n{lines}"
        self.last += 1
        return self.last

    def conv(self, filters: int, size: int = 3, stride: int = 1, activation: str | None = None) -> int:
        """A normalised convolution."""
        return self.section(
            "convolutional",
            batch_normalize=1,
            filters=filters,
            size=size,
            stride=stride,
            pad=1,
            activation=activation or self.activation,
        )

    def route(self, *layers: int, groups: int = 1, group_id: int = 0) -> int:
        """Join the outputs of layers, or take a group of their channels."""
        options = {} if groups == 1 else {"groups": groups, "group_id": group_id}
        return self.section("route", layers=",".join(map(str, layers)), **options)

    def shortcut(self, layer: int) -> int:
        """Add the output of a layer."""
        return self.section("shortcut", **{"from": layer, "activation": "linear"})

    def maxpool(self, size: int, stride: int) -> int:
        """A max-pool."""
        return self.section("maxpool", size=size, stride=stride)

    def yolo(self, anchors: str, mask: Sequence[int], **options: object) -> int:
        """The last convolution and its `[yolo]` section."""
        self.section(
            "convolutional",
            filters=len(mask) * (5 + self.num_classes),
            size=1,
            stride=1,
            pad=1,
            activation="linear",
        )
        return self.section(
            "yolo",
            mask=",".join(map(str, mask)),
            anchors=anchors,
            classes=self.num_classes,
            num=anchors.count(",") // 2 + 1,
            **options,
        )


def yolov2(size_hw: tuple[int, int], num_classes: int) -> str:
    """YOLOv2 on Darknet-19 with the passthrough from the 26 x 26 map."""
    cfg = CfgWriter(size_hw, "leaky", num_classes)
    fine = _darknet19(cfg)
    cfg.conv(1024)
    coarse = cfg.conv(1024)
    cfg.route(fine)
    cfg.conv(64, 1)
    passthrough = cfg.section("reorg", stride=2)
    cfg.route(passthrough, coarse)
    cfg.conv(1024)
    _region(cfg, YOLOV2_ANCHORS)
    return cfg.text


def yolo9000(size_hw: tuple[int, int], num_classes: int) -> str:
    """YOLO9000: three priors on Darknet-19, as in the authors' release without a passthrough. Its tree is not in it."""
    cfg = CfgWriter(size_hw, "leaky", num_classes)
    _darknet19(cfg)
    _region(cfg, YOLO9000_ANCHORS)
    return cfg.text


def _darknet19(cfg: CfgWriter) -> int:
    """Darknet-19 without its classifier; returns the index of the last layer of stride 16."""
    for widths in ((32,), (64,), (128, 64, 128), (256, 128, 256)):
        _narrow_and_widen(cfg, widths)
        cfg.maxpool(2, 2)
    _narrow_and_widen(cfg, (512, 256, 512, 256, 512))
    fine = cfg.last
    cfg.maxpool(2, 2)
    _narrow_and_widen(cfg, (1024, 512, 1024, 512, 1024))
    return fine


def _narrow_and_widen(cfg: CfgWriter, widths: Sequence[int]) -> None:
    """3x3 and 1x1 convolutions in turn."""
    for position, width in enumerate(widths):
        cfg.conv(width, 3 if position % 2 == 0 else 1)


def yolov2_tiny(size_hw: tuple[int, int], num_classes: int) -> str:
    """Tiny YOLOv2."""
    cfg = CfgWriter(size_hw, "leaky", num_classes)
    for width in (16, 32, 64, 128, 256):
        cfg.conv(width)
        cfg.maxpool(2, 2)
    cfg.conv(512)
    cfg.maxpool(2, 1)
    cfg.conv(1024)
    cfg.conv(512)
    _region(cfg, YOLOV2_ANCHORS)
    return cfg.text


def _region(cfg: CfgWriter, anchors: str) -> None:
    num_anchors = len(anchors.split(",")) // 2
    cfg.section(
        "convolutional",
        filters=num_anchors * (5 + cfg.num_classes),
        size=1,
        stride=1,
        pad=1,
        activation="linear",
    )
    cfg.section(
        "region",
        anchors=anchors,
        classes=cfg.num_classes,
        coords=4,
        num=num_anchors,
        softmax=1,
        object_scale=5,
        noobject_scale=1,
        class_scale=1,
        coord_scale=1,
        thresh=0.6,
    )


def yolov3(size_hw: tuple[int, int], num_classes: int) -> str:
    """YOLOv3 on Darknet-53 with heads at strides 32, 16 and 8."""
    cfg = CfgWriter(size_hw, "leaky", num_classes)
    cfg.conv(32)
    ends = []
    for width, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        cfg.conv(width, 3, 2)
        for _ in range(blocks):
            cfg.conv(width // 2, 1)
            cfg.conv(width)
            cfg.shortcut(-3)
        ends.append(cfg.last)
    for width, mask, finer in ((512, (6, 7, 8), ends[3]), (256, (3, 4, 5), ends[2]), (128, (0, 1, 2), None)):
        for _ in range(2):
            cfg.conv(width, 1)
            cfg.conv(width * 2)
        branch = cfg.conv(width, 1)
        cfg.conv(width * 2)
        cfg.yolo(YOLOV3_ANCHORS, mask, ignore_thresh=0.7)
        if finer is not None:
            _upsample_beside(cfg, branch, width // 2, finer)
    return cfg.text


def _upsample_beside(cfg: CfgWriter, branch: int, width: int, finer: int) -> None:
    cfg.route(branch)
    cfg.conv(width, 1)
    upsampled = cfg.section("upsample", stride=2)
    cfg.route(upsampled, finer)


def yolov3_tiny(size_hw: tuple[int, int], num_classes: int) -> str:
    """Tiny YOLOv3 with heads at strides 32 and 16."""
    cfg = CfgWriter(size_hw, "leaky", num_classes)
    finer = -1
    for width in (16, 32, 64, 128, 256):
        finer = cfg.conv(width)
        cfg.maxpool(2, 2)
    cfg.conv(512)
    cfg.maxpool(2, 1)
    cfg.conv(1024)
    branch = cfg.conv(256, 1)
    cfg.conv(512)
    cfg.yolo(TINY_ANCHORS, (3, 4, 5), ignore_thresh=0.7)
    _upsample_beside(cfg, branch, 128, finer)
    cfg.conv(256)
    cfg.yolo(TINY_ANCHORS, (0, 1, 2), ignore_thresh=0.7)
    return cfg.text


_YOLOV4_RULES = {"ignore_thresh": 0.7, "iou_loss": "ciou", "iou_normalizer": 0.07, "nms_kind": "diounms"}


def yolov4(size_hw: tuple[int, int], num_classes: int) -> str:
    """YOLOv4: CSPDarknet-53, spatial pyramid pooling and a path aggregation neck."""
    cfg = CfgWriter(size_hw, "mish", num_classes)
    cfg.conv(32)
    ends = [_csp_stage(cfg, width, blocks) for width, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))]
    cfg.activation = "leaky"
    p5 = _spatial_pyramid(cfg)
    p4 = _merge_finer(cfg, p5, 256, ends[3])
    p3 = _merge_finer(cfg, p4, 128, ends[2])
    rules = {**_YOLOV4_RULES, "iou_thresh": 0.213}
    cfg.conv(256)
    cfg.yolo(YOLOV4_ANCHORS, (0, 1, 2), scale_x_y=1.2, **rules)
    p4 = _merge_coarser(cfg, p3, 256, p4)
    cfg.conv(512)
    cfg.yolo(YOLOV4_ANCHORS, (3, 4, 5), scale_x_y=1.1, **rules)
    _merge_coarser(cfg, p4, 512, p5)
    cfg.conv(1024)
    cfg.yolo(YOLOV4_ANCHORS, (6, 7, 8), scale_x_y=1.05, **rules)
    return cfg.text


def _csp_stage(cfg: CfgWriter, width: int, blocks: int) -> int:
    """Half of the channels through residual blocks; the first stage keeps the full width."""
    half = width if width == 64 else width // 2
    start = cfg.conv(width, 3, 2)
    around = cfg.conv(half, 1)
    cfg.route(start)
    cfg.conv(half, 1)
    for _ in range(blocks):
        cfg.conv(half if width != 64 else 32, 1)
        cfg.conv(half)
        cfg.shortcut(-3)
    through = cfg.conv(half, 1)
    cfg.route(through, around)
    return cfg.conv(width, 1)


def _spatial_pyramid(cfg: CfgWriter) -> int:
    cfg.conv(512, 1)
    cfg.conv(1024)
    reduced = cfg.conv(512, 1)
    pools: list[int] = []
    for size in (5, 9, 13):
        if pools:
            cfg.route(reduced)
        pools.append(cfg.maxpool(size, 1))
    cfg.route(*reversed(pools), reduced)
    cfg.conv(512, 1)
    cfg.conv(1024)
    return cfg.conv(512, 1)


def _merge_finer(cfg: CfgWriter, coarse: int, width: int, finer: int) -> int:
    cfg.route(coarse)
    cfg.conv(width, 1)
    upsampled = cfg.section("upsample", stride=2)
    cfg.route(finer)
    lateral = cfg.conv(width, 1)
    cfg.route(lateral, upsampled)
    return _five_convs(cfg, width)


def _merge_coarser(cfg: CfgWriter, finer: int, width: int, coarse: int) -> int:
    cfg.route(finer)
    downsampled = cfg.conv(width, 3, 2)
    cfg.route(downsampled, coarse)
    return _five_convs(cfg, width)


def _five_convs(cfg: CfgWriter, width: int) -> int:
    for _ in range(2):
        cfg.conv(width, 1)
        cfg.conv(width * 2)
    return cfg.conv(width, 1)


def _yolov4_tiny_of(width: int) -> Callable[[tuple[int, int], int], str]:
    def write(size_hw: tuple[int, int], num_classes: int) -> str:
        cfg = CfgWriter(size_hw, "leaky", num_classes)
        cfg.conv(width, 3, 2)
        cfg.conv(2 * width, 3, 2)
        finer = -1
        for stage in (2 * width, 4 * width, 8 * width):
            whole = cfg.conv(stage)
            cfg.route(whole, groups=2, group_id=1)
            first = cfg.conv(stage // 2)
            second = cfg.conv(stage // 2)
            cfg.route(second, first)
            finer = cfg.conv(stage, 1)
            cfg.route(whole, finer)
            cfg.maxpool(2, 2)
        cfg.conv(16 * width)
        branch = cfg.conv(8 * width, 1)
        cfg.conv(16 * width)
        rules = {"scale_x_y": 1.05, **_YOLOV4_RULES, "nms_kind": "greedynms"}
        cfg.yolo(TINY_ANCHORS, (3, 4, 5), **rules)
        _upsample_beside(cfg, branch, 4 * width, finer)
        cfg.conv(8 * width)
        cfg.yolo(TINY_ANCHORS, (0, 1, 2), **rules)
        return cfg.text

    return write


# YOLOv4-tiny; the narrow one is ours, for tests and first steps on a CPU.
yolov4_tiny = _yolov4_tiny_of(32)
yolov4_pico = _yolov4_tiny_of(8)
