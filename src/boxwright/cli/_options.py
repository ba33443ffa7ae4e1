"""Options that several verbs share, so that a flag means the same everywhere.

A verb writes `conf: ConfOption = 0.25`; the default stays with the verb.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from boxwright.core.errors import InputError

Precision = Literal["fp32", "fp16", "bf16", "int8"]
NmsForm = Literal["graph", "plugin", "none"]
_DATA_HELP = "Data set: a COCO or VOC folder, or a YOLO data.yaml."

AgnosticNmsOption = Annotated[bool, typer.Option("--agnostic-nms", help="A box suppresses boxes of other classes too.")]
BackendOption = Annotated[str | None, typer.Option("--backend", help="Engine; by default the file decides.")]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Images in a batch.")]
ConfOption = Annotated[float, typer.Option("--conf", min=0.0, max=1.0, help="Keep scores above this.")]
DataOption = Annotated[Path, typer.Option("--data", help=_DATA_HELP)]
DataIfAnyOption = Annotated[Path | None, typer.Option("--data", help=_DATA_HELP)]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="Where to run: cpu, cuda, cuda:1, tensorrt ...; by default the engine decides."),
]
DynamicOption = Annotated[bool, typer.Option("--dynamic", help="Leave the batch size open.")]
ImageSizeOption = Annotated[
    str | None, typer.Option("--imgsz", help="Input size in pixels: 416, or height and width as 416x640.")
]
IouOption = Annotated[float, typer.Option("--iou", min=0.0, max=1.0, help="NMS suppresses overlaps above this IoU.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else there.")]
ClassesOption = Annotated[
    str | None, typer.Option("--classes", help="Measure on these classes of the data alone, with commas.")
]
LabelsOption = Annotated[
    str | None, typer.Option("--labels", help="Classes of an author's file: coco, voc, a text file, or a,b,c.")
]
MaxDetectionsOption = Annotated[int, typer.Option("--max-det", min=1, help="Detections kept of an image.")]
NmsOption = Annotated[NmsForm, typer.Option("--nms", help="Where decoding and NMS happen.")]
NumThreadsOption = Annotated[int | None, typer.Option("--num-threads", min=1, help="CPU threads of the engine.")]
OpsetOption = Annotated[
    int | None, typer.Option("--opset", min=17, help="ONNX operator set; 17 if not given, or the oldest that will do.")
]
PrecisionOption = Annotated[Precision, typer.Option("--precision", help="Arithmetic of the engine.")]
RunPrecisionOption = Annotated[
    Precision | None,
    typer.Option("--precision", help="Arithmetic of the engine; fp32 if not given, or what it was built for."),
]
PreprocessOption = Annotated[
    str | None, typer.Option("--preprocess", help="Preprocessing of an author's file, by name.")
]
SplitOption = Annotated[str, typer.Option("--split", help="Which part of the data set: train, val or test.")]
VariantOption = Annotated[str | None, typer.Option("--model", help="Variant of an author's checkpoint: yolox-nano ...")]
WorkersOption = Annotated[int, typer.Option("--workers", min=0, help="Processes that load images.")]


def parse_image_size(text: str) -> tuple[int, int]:
    """Return (height, width) in pixels of what `--imgsz` was given.

    Args:
        text: "416" for a square, or "416x640" for height and width.

    Raises:
        InputError: for anything else.
    """
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text.strip())
    if match is None:
        raise InputError(
            "--imgsz",
            expected="a size such as 416, or height and width such as 416x640",
            got=repr(text),
            fix="pass whole pixels",
        )
    height, width = match[1], match[2] or match[1]
    return int(height), int(width)
