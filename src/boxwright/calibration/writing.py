"""Writing quantized models with their manifests."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from boxwright.core.errors import OutputError
from boxwright.core.files import atomic_file, check_not_source, check_writable
from boxwright.core.manifest import METADATA_KEY, Manifest


def check_target(path: Path, source: str | os.PathLike[str]) -> None:
    """Raise `OutputError` now where a model could not be written later, or would replace its source."""
    if path.is_dir():
        raise OutputError(str(path), expected="a file, or none yet", got="a folder", fix="pass another --out")
    check_not_source(path, source)
    check_writable(path)


def write_model(proto: onnx.ModelProto, manifest: Manifest, path: Path) -> None:
    """Write a model whole or not at all, with this manifest in place of the one that it has.

    Raises:
        OutputError: where it cannot be written.
    """
    write_models([(proto, manifest, path)])


def write_models(models: Sequence[tuple[onnx.ModelProto, Manifest, Path]]) -> None:
    """Write several models, each as `write_model` does, all of them or none.

    Raises:
        OutputError: where one cannot be written; then all paths hold what they held before.
    """
    with _restored_on_failure([path for _, _, path in models]), contextlib.ExitStack() as stack:
        for proto, manifest, path in models:
            temporary = stack.enter_context(atomic_file(path))
            temporary.write_bytes(_with_manifest(proto, manifest).SerializeToString())


def _with_manifest(proto: onnx.ModelProto, manifest: Manifest) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    kept = [entry for entry in copy.metadata_props if entry.key != METADATA_KEY]
    del copy.metadata_props[:]
    copy.metadata_props.extend(kept)
    copy.metadata_props.add(key=METADATA_KEY, value=manifest.to_json())
    return copy


@contextlib.contextmanager
def _restored_on_failure(paths: Sequence[Path]) -> Iterator[None]:
    """Give files back what they held where the block fails: of several renames a later one may be refused."""
    if len(paths) < 2:  # a single file is replaced in one step
        yield
        return
    before = {path: path.read_bytes() if path.is_file() else None for path in paths}
    try:
        yield
    except BaseException:
        for path, content in before.items():
            with contextlib.suppress(OSError):
                _restore(path, content)
        raise


def _restore(path: Path, content: bytes | None) -> None:
    if content is None:
        if path.is_file():
            path.unlink()
    elif path.read_bytes() != content:
        temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
        temporary.write_bytes(content)
        os.replace(temporary, path)
