"""A folder for NVIDIA's DeepStream: the ONNX file, its labels, nvinfer's configuration, and a parser of its outputs.

nvinfer builds the engine from the ONNX file by itself; thresholds of the graph become constants in it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from boxwright.core.errors import UnsupportedError
from boxwright.core.files import atomic_directory
from boxwright.core.manifest import Manifest

CONFIG_NAME, LABELS_NAME, MODEL_NAME = "config_infer.txt", "labels.txt", "model.onnx"
PARSER_NAME, PARSER_LIBRARY = "nvdsinfer_boxwright.cpp", "libnvdsinfer_boxwright.so"
_NETWORK_MODES = {"fp32": 0, "int8": 1, "fp16": 2}
DEEPSTREAM_PRECISIONS = tuple(_NETWORK_MODES)
_RESIZES = {"stretch": (0, 0), "letterbox_topleft": (1, 0), "letterbox": (1, 1)}


def write_deepstream(
    directory: Path, manifest: Manifest, write: Callable[[Path], None], *, batch: int, precision: str
) -> Path:
    """Write the folder whole or not at all.

    Args:
        directory: to write.
        manifest: of the model, at stage `detections`.
        write: writes the ONNX file to a path.
        batch: images in a batch.
        precision: that nvinfer shall build the engine in.

    Returns:
        The path of the ONNX file.

    Raises:
        UnsupportedError: where nvinfer cannot preprocess as the model wants.
    """
    config = _config(manifest, batch, precision)
    with atomic_directory(directory) as temporary:
        write(temporary / MODEL_NAME)
        (temporary / LABELS_NAME).write_text("".join(f"{name}\n" for name in manifest.class_names), encoding="utf-8")
        (temporary / CONFIG_NAME).write_text(config, encoding="utf-8")
        source = Path(__file__).with_name("deepstream_parser.cpp").read_text(encoding="utf-8")
        (temporary / PARSER_NAME).write_text(source, encoding="utf-8")
    return directory / MODEL_NAME


def _config(manifest: Manifest, batch: int, precision: str) -> str:
    """The text of nvinfer's configuration: pixels become net-scale-factor * (x - offset)."""
    preprocess = manifest.preprocess
    if manifest.stage != "detections":
        raise _cannot("a model that decodes by itself", f"one at stage {manifest.stage}", "leave out --nms none")
    if manifest.input_kind == "pixels":
        raise _cannot("a model that takes tensors", "one that takes pixels", "leave out --embed-preprocess")
    if preprocess.resize not in _RESIZES or preprocess.size_hw is None:
        raise _cannot("a letterbox or a stretch to one size", preprocess.resize, "use another model")
    if len(set(preprocess.std)) != 1:
        deviations = ", ".join(f"{value:g}" for value in preprocess.std)
        raise _cannot("one scale for all channels", f"the deviations {deviations}", "train with others")
    keeps_ratio, is_centred = _RESIZES[preprocess.resize]
    settings = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": 1,
        "network-type": 0,
        "onnx-file": MODEL_NAME,
        "model-engine-file": f"{MODEL_NAME}_b{batch}_gpu0_{precision}.engine",
        "labelfile-path": LABELS_NAME,
        "batch-size": batch,
        "network-mode": _NETWORK_MODES[precision],
        "num-detected-classes": len(manifest.class_names),
        "infer-dims": f"3;{preprocess.size_hw[0]};{preprocess.size_hw[1]}",
        "model-color-format": 0 if preprocess.channel_order == "RGB" else 1,
        "net-scale-factor": f"{preprocess.scale / preprocess.std[0]:.9g}",
        "offsets": ";".join(f"{value / preprocess.scale:.9g}" for value in preprocess.mean),
        "maintain-aspect-ratio": keeps_ratio,
        "symmetric-padding": is_centred,
        "cluster-mode": 4,
        "parse-bbox-func-name": "NvDsInferParseBoxwright",
        "custom-lib-path": PARSER_LIBRARY,
    }
    lines = [
        f"# {manifest.variant} for nvinfer. Compile the parser first, here:",
        "#   g++ -shared -fPIC -O2 -I/opt/nvidia/deepstream/deepstream/sources/includes -I/usr/local/cuda/include \\",
        f"#       -o {PARSER_LIBRARY} {PARSER_NAME}",
    ]
    if keeps_ratio and any(preprocess.pad_value):
        lines.append(f"# nvinfer pads with black, the model was trained with {preprocess.pad_value[0]:g}.")
    lines += ["[property]", *(f"{key}={value}" for key, value in settings.items())]
    lines += ["", "[class-attrs-all]", f"pre-cluster-threshold={manifest.score_threshold:g}"]
    return "\n".join(lines) + "\n"


def _cannot(expected: str, got: str, fix: str) -> UnsupportedError:
    return UnsupportedError("--format deepstream", expected=expected, got=got, fix=fix)
