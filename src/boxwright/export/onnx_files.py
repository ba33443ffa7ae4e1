"""Reading and writing ONNX files with the manifest inside."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import onnx_ir as ir

from boxwright.core.errors import ManifestError, ModelFileError
from boxwright.core.files import atomic_file
from boxwright.core.manifest import METADATA_KEY, Manifest
from boxwright.runtimes.model_file import inspect_onnx

INPUT_NAME = "images"
# Protobuf holds at most 2 GiB; larger tensors go into a file beside the model.
_MOST_BYTES_INSIDE = 2**31 - 2**20


def read_onnx(path: Path) -> ir.Model:
    """Read an ONNX file, its external data too.

    Raises:
        ModelFileError: where it is not there, cut off or no ONNX, or its data lie outside its folder.
    """
    inspect_onnx(path)
    try:
        return ir.from_proto(onnx.load(path))
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise ModelFileError(
            str(path),
            expected="a whole ONNX file",
            got=str(error).splitlines()[0],
            fix="export or copy it again",
        ) from error


def write_onnx(model: ir.Model, path: Path) -> None:
    """Write a model whole or not at all; above 2 GiB its weights go into `<name>.data` beside it.

    Raises:
        OutputError: where it cannot be written.
    """
    num_bytes = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if num_bytes < _MOST_BYTES_INSIDE:
        content = ir.to_proto(model).SerializeToString()
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)
        return
    data_name = f"{path.name}.data"
    with atomic_file(path.with_name(data_name)) as temporary_data, atomic_file(path) as temporary:
        onnx.save(
            ir.to_proto(model),
            temporary,
            save_as_external_data=True,
            location=temporary_data.name,
            size_threshold=1024,
        )
        # The data get their final name only now, so the model must point there already.
        proto = onnx.load(temporary, load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = data_name
        temporary.write_bytes(proto.SerializeToString())


def read_manifest(model: ir.Model, source: str) -> Manifest:
    """The manifest in a model.

    Raises:
        ManifestError: where there is none, or one that this version does not understand.
    """
    text = model.metadata_props.get(METADATA_KEY)
    if text is None:
        raise ManifestError(
            source,
            expected="a manifest in the model's metadata",
            got="none",
            fix="adopt the file with --head, --labels and --preprocess",
        )
    return Manifest.from_json(text, source)


def set_manifest(model: ir.Model, manifest: Manifest) -> None:
    """Put a manifest into a model in place of the one that is there."""
    model.metadata_props[METADATA_KEY] = manifest.to_json()


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
