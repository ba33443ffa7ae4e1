"""Writing a quantized model with its manifest."""

from __future__ import annotations

from pathlib import Path

import onnx

from boxwright.core.files import atomic_file
from boxwright.core.manifest import METADATA_KEY, Manifest


def write_model(proto: onnx.ModelProto, manifest: Manifest, path: Path) -> None:
    """Write a model whole or not at all, with this manifest in place of the one that it has.

    Raises:
        OutputError: where it cannot be written.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    kept = [entry for entry in copy.metadata_props if entry.key != METADATA_KEY]
    del copy.metadata_props[:]
    copy.metadata_props.extend(kept)
    copy.metadata_props.add(key=METADATA_KEY, value=manifest.to_json())
    with atomic_file(path) as temporary:
        temporary.write_bytes(copy.SerializeToString())
