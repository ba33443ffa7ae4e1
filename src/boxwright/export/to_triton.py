"""A model repository for NVIDIA's Triton Inference Server.

    <out>/<name>/config.pbtxt          what goes in and out, batching, and the manifest for clients
    <out>/<name>/1/model.onnx          or model.plan, or model.xml and model.bin

A further export of that name becomes version 2, and so on. Other models of the repository stay as they are.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from boxwright.core.errors import InputError, ModelFileError, OutputError, UnsupportedError
from boxwright.core.files import atomic_directory
from boxwright.core.manifest import METADATA_KEY, Manifest
from boxwright.runtimes.engine_sidecar import read_sidecar, sidecar_path
from boxwright.runtimes.model_file import inspect_onnx, locate_model_file

ENGINE_SUFFIXES = (".engine", ".plan")
# What runs a model there: the first two an ONNX file, the last an engine.
TRITON_BACKENDS = ("onnxruntime", "openvino", "tensorrt")
# Where the file leaves the batch open: as `Detector` does.
_MOST_IMAGES_A_BATCH = 16
_QUEUE_DELAY_US = 100
_PLUGIN_NOTES = (
    "# It has the node DecodeNMS. Start the server with Boxwright's plugin, which 'boxwright doctor",
    "# --build-plugins' compiles for its TensorRT:",
    "#   tritonserver --backend-config=tensorrt,plugins=/PATH/libboxwright_tensorrt.so ...",
    "# or with LD_PRELOAD=/PATH/libboxwright_tensorrt.so in its environment.",
)
_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
}


@dataclass(frozen=True, kw_only=True)
class TritonTensor:
    """An input or output as Triton names it; -1 where a dimension is open."""

    name: str
    data_type: str
    shape: tuple[int, ...]


def is_packable(source: Path) -> bool:
    """Whether a source goes into a repository as it is: a TensorRT engine, or an OpenVINO model."""
    return source.suffix.lower() in (*ENGINE_SUFFIXES, ".xml") or source.is_dir()


def write_triton_onnx(
    repository: Path, name: str, manifest: Manifest, write: Callable[[Path], None], *, backend: str
) -> Path:
    """Add an ONNX model to a repository, as the next version where there is one of that name.

    Args:
        repository: made where it is not there.
        name: of the model.
        manifest: of it.
        write: writes the ONNX file to a path.
        backend: of Triton: "onnxruntime", or "openvino".

    Returns:
        The path of the ONNX file.
    """

    def fill(folder: Path) -> str:
        write(folder / "model.onnx")
        inputs, outputs = _onnx_tensors(folder / "model.onnx")
        is_open = all(tensor.shape[:1] == (-1,) for tensor in (*inputs, *outputs))
        largest = _MOST_IMAGES_A_BATCH if is_open else 0
        return _config(name, backend, "model.onnx", manifest, inputs=inputs, outputs=outputs, largest_batch=largest)

    return _add_version(repository, name, fill) / "model.onnx"


def pack_for_triton(repository: Path, name: str, source: Path) -> Manifest:
    """Add a TensorRT engine or an OpenVINO model to a repository as it is.

    Returns:
        Its manifest.

    Raises:
        ManifestError, ModelFileError: where the source cannot be used.
        UnsupportedError: where Triton could not feed it.
    """
    if source.suffix.lower() in ENGINE_SUFFIXES:
        return _pack_engine(repository, name, source)
    return _pack_openvino(repository, name, locate_model_file(source))


def _pack_engine(repository: Path, name: str, source: Path) -> Manifest:
    if not source.is_file():
        raise ModelFileError(str(source), expected="an engine", got="a path that does not exist", fix="check the path")
    if not sidecar_path(source).is_file() and source.with_suffix(".onnx").is_file():
        return _pack_engine_of_trtexec(repository, name, source)
    sidecar = read_sidecar(source)
    if sidecar.manifest.stage == "detections" and not sidecar.fixed_thresholds:
        raise UnsupportedError(
            f"{source} for Triton",
            expected="an engine whose thresholds are built in, since Triton feeds no single numbers",
            got="one with thresholds as inputs",
            fix="build it with --fixed-thresholds, or in one step: boxwright export MODEL.onnx --format triton "
            "--triton-backend tensorrt",
        )

    def fill(folder: Path) -> str:
        shutil.copyfile(source, folder / "model.plan")
        shutil.copyfile(sidecar_path(source), sidecar_path(folder / "model.plan"))
        smallest, largest = sidecar.batch_sizes
        config = _config(name, "tensorrt", "model.plan", sidecar.manifest, largest_batch=largest * (smallest < largest))
        notes = [
            f"# Built for {sidecar.gpu_name} with TensorRT {sidecar.tensorrt_version}, which this Triton must have.",
            f"# Build it again with: {sidecar.rebuild_command}",
            *(_PLUGIN_NOTES if sidecar.needs_plugin else ()),
        ]
        return "\n".join(notes) + "\n" + config

    _add_version(repository, name, fill)
    return sidecar.manifest


def _pack_engine_of_trtexec(repository: Path, name: str, source: Path) -> Manifest:
    """Its thresholds are constants; its manifest is that of the ONNX file that it was built from."""
    onnx_file = source.with_suffix(".onnx")
    manifest = Manifest.from_json(inspect_onnx(onnx_file).metadata.get(METADATA_KEY, ""), str(onnx_file))

    def fill(folder: Path) -> str:
        shutil.copyfile(source, folder / "model.plan")
        return _config(name, "tensorrt", "model.plan", manifest, largest_batch=None)

    _add_version(repository, name, fill)
    return manifest


def _pack_openvino(repository: Path, name: str, source: Path) -> Manifest:
    from boxwright.bench.candidate import read_manifest

    manifest = read_manifest(source)
    if manifest is None:
        raise ModelFileError(
            str(source), expected="an OpenVINO model of Boxwright", got="one without a manifest", fix="export it again"
        )
    if manifest.stage == "detections":
        raise UnsupportedError(
            f"{source} for Triton",
            expected="an OpenVINO model without thresholds as inputs, since Triton feeds no single numbers",
            got="one with them",
            fix="pass the ONNX file with --format triton --triton-backend openvino",
        )

    def fill(folder: Path) -> str:
        shutil.copyfile(source, folder / "model.xml")
        shutil.copyfile(source.with_suffix(".bin"), folder / "model.bin")
        return _config(name, "openvino", "model.xml", manifest)

    _add_version(repository, name, fill)
    return manifest


def _onnx_tensors(path: Path) -> tuple[tuple[TritonTensor, ...], tuple[TritonTensor, ...]]:
    """The inputs that have no value of their own, which a server need not be told of, and the outputs."""
    graph = onnx.load(str(path), load_external_data=False).graph
    defaulted = set(inspect_onnx(path).defaulted_input_names)
    inputs = tuple(_onnx_tensor(value) for value in graph.input if value.name not in defaulted)
    return inputs, tuple(_onnx_tensor(value) for value in graph.output)


def _onnx_tensor(value: onnx.ValueInfoProto) -> TritonTensor:
    tensor = value.type.tensor_type
    shape = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim)
    return TritonTensor(name=value.name, data_type=_TYPES[tensor.elem_type], shape=shape)


def _config(
    name: str,
    backend: str,
    file_name: str,
    manifest: Manifest,
    *,
    inputs: Sequence[TritonTensor] = (),
    outputs: Sequence[TritonTensor] = (),
    largest_batch: int | None = 0,
) -> str:
    """The text of config.pbtxt, without batching where `largest_batch` is 0.

    Triton asks the file for the tensors that are not listed, and for the largest batch where that is None.
    """
    batches = largest_batch is not None and largest_batch > 1
    lines = [
        f"name: {_quoted(name)}",
        f'backend: "{backend}"',
        f'default_model_filename: "{file_name}"',
        *([] if largest_batch is None else [f"max_batch_size: {largest_batch}"]),
        *(_tensor_text("input", tensor, batches) for tensor in inputs),
        *(_tensor_text("output", tensor, batches) for tensor in outputs),
    ]
    if batches:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {_QUEUE_DELAY_US} }}")
    # Clients preprocess by it: GET v2/models/<name>/config.
    value = _quoted(manifest.to_json())
    lines.append(f'parameters {{ key: "{METADATA_KEY}" value {{ string_value: {value} }} }}')
    return "\n".join(lines) + "\n"


def _tensor_text(kind: str, tensor: TritonTensor, batches: bool) -> str:
    sizes = tensor.shape[1:] if batches else tensor.shape
    dims = ", ".join(map(str, sizes))
    return f"{kind} {{ name: {_quoted(tensor.name)} data_type: {tensor.data_type} dims: [ {dims} ] }}"


def _quoted(text: str) -> str:
    """A string of Protocol Buffers' text format, which knows JSON's escapes but for those of other characters."""
    return json.dumps(text, ensure_ascii=False)


def _add_version(repository: Path, name: str, fill: Callable[[Path], str]) -> Path:
    """Write the model's folder anew with one more version in it; `fill` writes that version and gives the config."""
    if re.fullmatch(r"[\w.-]+", name) is None:
        raise InputError(
            "name of the source",
            expected="letters, digits, '_', '-' and '.'",
            got=repr(name),
            fix="rename it for Triton",
        )
    model = repository / name
    if model.exists() and not (model / "config.pbtxt").is_file():
        raise OutputError(
            str(model), expected="a free place, or a model of Triton", got="something else", fix="pass another --out"
        )
    versions = [folder for folder in model.glob("*") if folder.is_dir() and folder.name.isdigit()]
    number = max((int(folder.name) for folder in versions), default=0) + 1
    with atomic_directory(model) as temporary:
        for version in versions:
            shutil.copytree(version, temporary / version.name)
        (temporary / str(number)).mkdir()
        config = fill(temporary / str(number))
        (temporary / "config.pbtxt").write_text(config, encoding="utf-8")
    return model / str(number)
