"""Models that Ultralytics exported: their own description is read, and turned into a manifest.

An export has `metadata.yaml` beside it (or the same keys in an ONNX file's metadata), an input `images` and an output
`output0`: (B, 4 + C, N) with boxes as centre and size in pixels and scores after the sigmoid.
"""

from __future__ import annotations

import ast
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwright.core.decode_spec import Boxes, NmsSpec
from boxwright.core.errors import MissingDependencyError, ModelFileError, UnsupportedError
from boxwright.core.files import atomic_directory
from boxwright.core.manifest import METADATA_KEY, Manifest
from boxwright.core.preprocess_presets import preset

METADATA_FILE = "metadata.yaml"
OUTPUT_NAME = "output0"
PREPROCESS = "yolov8"
HEAD = "yolov8"


@dataclass(frozen=True, kw_only=True)
class UltralyticsModel:
    """What the export says of itself.

    Attributes:
        class_names: in the order of the class ids.
        size_hw: of the input.
        description: e.g. "Ultralytics YOLOv8n model".
    """

    class_names: tuple[str, ...]
    size_hw: tuple[int, int]
    description: str


def is_ultralytics_folder(path: str | os.PathLike[str]) -> bool:
    """Whether this is a folder that Ultralytics exported to."""
    return (Path(path) / METADATA_FILE).is_file()


def is_ultralytics_onnx(path: str | os.PathLike[str]) -> bool:
    """Whether this is an ONNX file with Ultralytics' description and without ours."""
    if Path(path).suffix.lower() != ".onnx":
        return False
    from boxwright.runtimes.model_file import inspect_onnx

    try:
        metadata = inspect_onnx(path).metadata
    except ModelFileError:  # whoever opens it will say so
        return False
    return METADATA_KEY not in metadata and {"names", "imgsz", "task"} <= metadata.keys()


def read_folder(folder: Path) -> UltralyticsModel:
    """Read `metadata.yaml`.

    Raises:
        ModelFileError: where it is not what Ultralytics writes.
        UnsupportedError: where the model does not detect, or ends with NMS of its own.
        MissingDependencyError: where PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise MissingDependencyError("pyyaml", extra="bench", needed_for=str(folder)) from error
    path = folder / METADATA_FILE
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _not_theirs(path, " ".join(str(error).split())) from error
    return _describe(document, path)


def read_onnx(path: Path) -> UltralyticsModel:
    """Read the same keys from an ONNX file, where they are written as Python's literals.

    Raises:
        ModelFileError, UnsupportedError: as `read_folder`.
    """
    from boxwright.runtimes.model_file import inspect_onnx

    document: dict[str, Any] = {}
    for key, text in inspect_onnx(path).metadata.items():
        try:
            document[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):  # plain text
            document[key] = text
    return _describe(document, path)


def adopt_openvino_folder(folder: Path, target: Path) -> None:
    """Write a copy of an OpenVINO export of Ultralytics with raw heads and a manifest.

    Args:
        folder: with one .xml file and `metadata.yaml`.
        target: folder to write.

    Raises:
        ModelFileError: where the model is not what Ultralytics writes.
        UnsupportedError: where it is no detector of the kind that can be adopted.
    """
    import openvino
    from openvino import opset13

    description = read_folder(folder)
    files = sorted(folder.glob("*.xml"))
    if len(files) != 1:
        raise UnsupportedError(
            str(folder),
            expected="an OpenVINO export of Ultralytics (one .xml file)",
            got=f"{len(files)} of them",
            fix="export it with format=openvino or format=onnx",
        )
    model = openvino.Core().read_model(files[0])
    _check_graph(model, files[0], description)
    output = model.output(0).get_node().input_value(0)  # (B, 4 + C, N)
    rows = opset13.transpose(output, [0, 2, 1])  # (B, N, 4 + C)
    heads = []
    for name, (start, end) in {
        "box_regression": (0, 4),
        "class_logits": (4, 4 + len(description.class_names)),
    }.items():
        head = opset13.slice(rows, [start], [end], [1], [2])
        head.output(0).set_names({name})
        heads.append(opset13.result(head))
    model.input(0).set_names({"images"})
    adopted = openvino.Model(heads, model.get_parameters(), "adopted")
    adopted.set_rt_info(_manifest(description, files[0].stem).to_json(), METADATA_KEY)
    with atomic_directory(target) as temporary:
        openvino.save_model(adopted, temporary / files[0].name, compress_to_fp16=False)


def _check_graph(model: Any, path: Path, description: UltralyticsModel) -> None:
    shape = model.output(0).get_partial_shape()
    width = 4 + len(description.class_names)
    is_right = len(model.outputs) == 1 and shape.rank.is_static and len(shape) == 3
    if not is_right or not shape[1].is_static or shape[1].get_length() != width:
        raise UnsupportedError(
            str(path),
            expected=f"one output {OUTPUT_NAME} (B, {width}, N): 4 numbers of the box and {width - 4} scores",
            got=", ".join(str(output.get_partial_shape()) for output in model.outputs),
            fix="export a detection model without nms=True",
        )


def _manifest(description: UltralyticsModel, variant: str) -> Manifest:
    from boxwright import __version__

    return Manifest(
        family="ultralytics",
        variant=variant,
        class_names=description.class_names,
        preprocess=preset(PREPROCESS, description.size_hw),
        decode=Boxes(
            num_classes=len(description.class_names),
            score_activation="none",
            box_format="cxcywh",
            nms=NmsSpec(),
        ),
        stage="boxes",
        boxwright_version=__version__,
    )


def _describe(document: Any, path: Path) -> UltralyticsModel:
    if not isinstance(document, dict):
        raise _not_theirs(path, type(document).__name__)
    names, size = document.get("names"), document.get("imgsz")
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    size = [size, size] if isinstance(size, int) else size
    if not isinstance(names, list) or not names or not isinstance(size, list) or len(size) != 2:
        raise _not_theirs(path, f"names {names!r:.60} and imgsz {size!r:.60}")
    task, arguments = document.get("task", "detect"), document.get("args")
    has_nms = bool(arguments.get("nms")) if isinstance(arguments, dict) else False
    if task != "detect" or has_nms:
        raise UnsupportedError(
            str(path),
            expected="a detector without NMS in it",
            got=f"the task {task!r}" if task != "detect" else "one exported with nms=True",
            fix="export a detection model without nms=True",
        )
    return UltralyticsModel(
        class_names=tuple(str(name) for name in names),
        size_hw=(int(size[0]), int(size[1])),
        description=str(document.get("description", "")),
    )


def _not_theirs(path: Path, got: str) -> ModelFileError:
    return ModelFileError(
        str(path), expected="what Ultralytics writes: names, imgsz, task", got=got, fix="export the model again"
    )
