"""From ONNX to OpenVINO's IR: `<name>_openvino_model/` with the manifest and OpenVINO's own `model_info` inside."""

from __future__ import annotations

from pathlib import Path

from boxwright.core.errors import MissingDependencyError, UnsupportedError
from boxwright.core.manifest import METADATA_KEY, Manifest
from boxwright.core.preprocess import Preprocess
from boxwright.export.decode_nms.function import THRESHOLD_NAMES
from boxwright.runtimes.model_file import onnx_without_initializers
from boxwright.runtimes.openvino import load_plugin_if_built
from boxwright.runtimes.openvino_plugin import mentions_decode_nms

WEIGHTS_PRECISIONS = ("fp32", "fp16")


def convert_to_openvino(onnx_path: Path, directory: Path, manifest: Manifest, *, name: str, precision: str) -> None:
    """Convert an ONNX file and write `name`.xml and `name`.bin into an existing folder.

    The defaulted thresholds become plain inputs, since OpenVINO would make constants of them.

    Args:
        onnx_path: with the manifest's graph.
        directory: to write to.
        manifest: to put inside.
        name: of the files.
        precision: of the stored weights: "fp32", or "fp16" for half the size.

    Raises:
        UnsupportedError: where OpenVINO cannot read the graph.
        MissingDependencyError: where openvino is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError("openvino", extra="openvino", needed_for="--format openvino") from error
    core = openvino.Core()
    if mentions_decode_nms(onnx_path):
        load_plugin_if_built(core)
    try:
        if manifest.stage == "detections":
            model = core.read_model(onnx_without_initializers(onnx_path, THRESHOLD_NAMES))
        else:
            model = core.read_model(onnx_path)
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UnsupportedError(
            str(onnx_path),
            expected="a graph that OpenVINO reads",
            got=lines[-1].strip()[:300] if lines else "an error without a message",
            fix="export with --nms graph or --nms none for OpenVINO",
        ) from error
    model.set_rt_info(manifest.to_json(), [METADATA_KEY])
    for key, value in _model_info(manifest).items():
        model.set_rt_info(value, ["model_info", key])
    openvino.save_model(model, str(directory / f"{name}.xml"), compress_to_fp16=precision == "fp16")


def _model_info(manifest: Manifest) -> dict[str, str]:
    """What OpenVINO's own tools read: class names, and how pixels become the input where the graph does not do that."""
    info = {
        "model_type": manifest.variant,
        "labels": " ".join(name.replace(" ", "_") for name in manifest.class_names),
        "confidence_threshold": str(manifest.score_threshold),
        "iou_threshold": str(manifest.iou_threshold),
    }
    return info if manifest.input_kind == "pixels" else {**info, **_preprocess_info(manifest.preprocess)}


def _preprocess_info(preprocess: Preprocess) -> dict[str, str]:
    resize = {"letterbox": "fit_to_window_letterbox", "stretch": "standard"}.get(preprocess.resize, "fit_to_window")
    info = {
        "resize_type": resize,
        "pad_value": str(int(preprocess.pad_value[0])),
        "reverse_input_channels": str(preprocess.channel_order == "RGB"),
        "mean_values": " ".join(f"{value / preprocess.scale:.6g}" for value in preprocess.mean),
        "scale_values": " ".join(f"{value / preprocess.scale:.6g}" for value in preprocess.std),
    }
    if preprocess.size_hw is not None:
        info["orig_height"], info["orig_width"] = map(str, preprocess.size_hw)
    return info
