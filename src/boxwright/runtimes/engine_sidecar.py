"""What lies beside a TensorRT engine as `<file>.manifest.json`: the manifest, and what the engine was built for.

The engine itself stays a plain file that stock tools load, so its description cannot be inside. An engine fits one GPU
architecture and one version of TensorRT; TensorRT says of another no more than that it failed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boxwright.core.codec import from_jsonable, to_jsonable
from boxwright.core.errors import ManifestError, ModelFileError
from boxwright.core.files import write_text
from boxwright.core.manifest import Manifest, Precision

SIDECAR_SUFFIX = ".manifest.json"
SCHEMA_VERSION = 1
# Engines that were built for several GPUs run on this architecture and newer ones.
_OLDEST_COMPATIBLE_CAPABILITY = (8, 0)


@dataclass(frozen=True, kw_only=True)
class EngineSidecar:
    """What is known of an engine.

    Attributes:
        manifest: of the model.
        tensorrt_version: that built it, e.g. "10.9.0.34".
        gpu_name: that it was built on.
        compute_capability: of that GPU, e.g. "9.0".
        precision: that the builder was asked for.
        engine_sha256: of the engine file.
        rebuild_command: that would build it again.
        needs_plugin: whether it has the node DecodeNMS.
        hardware_compatible: whether it was built for other GPUs too (Ampere and newer).
        version_compatible: whether it was built for other versions of TensorRT too.
        dla_core: of a Jetson, that it was built for.
        batch_sizes: the smallest and the largest batch that it takes.
        fixed_thresholds: those that are constants in it, by name; the others are inputs.
        build_options: what else the builder was told, in words.
        schema_version: of this description.
    """

    manifest: Manifest
    tensorrt_version: str
    gpu_name: str
    compute_capability: str
    precision: Precision
    engine_sha256: str
    rebuild_command: str
    needs_plugin: bool = False
    hardware_compatible: bool = False
    version_compatible: bool = False
    dla_core: int | None = None
    batch_sizes: tuple[int, int] = (1, 1)
    fixed_thresholds: dict[str, float] = field(default_factory=dict)
    build_options: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """One JSON document, for people too."""
        return json.dumps(to_jsonable(self), ensure_ascii=False, allow_nan=False, indent=1)

    @classmethod
    def from_json(cls, text: str, source: str) -> EngineSidecar:
        """The inverse of `to_json`.

        Args:
            text: JSON.
            source: named in errors.

        Raises:
            ManifestError: where it is no JSON, of a newer schema, or has unknown or missing keys or wrong values.
        """
        try:
            data: Any = json.loads(text)
        except ValueError as error:
            raise ManifestError(
                source, expected="the description of an engine in JSON", got=str(error), fix="export the model again"
            ) from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ManifestError(
                source, expected=f"schema version {SCHEMA_VERSION} or older", got=str(version), fix="update boxwright"
            )
        return from_jsonable(cls, data, source)


def sidecar_path(engine: str | os.PathLike[str]) -> Path:
    """Where the description of an engine lies."""
    path = Path(engine)
    return path.with_name(path.name + SIDECAR_SUFFIX)


def read_sidecar(engine: str | os.PathLike[str]) -> EngineSidecar:
    """The description beside an engine.

    Raises:
        ManifestError: where there is none, or one that cannot be used.
    """
    path = sidecar_path(engine)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ManifestError(
            str(engine),
            expected=f"its description {path.name} beside it",
            got="no such file",
            fix="copy that file too, or build the engine with: boxwright export MODEL.onnx --format tensorrt",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "bytes that are no text"
        raise ManifestError(str(path), expected="a file that can be read", got=reason, fix="get an intact copy") from (
            error
        )
    return EngineSidecar.from_json(text, str(path))


def write_sidecar(engine: str | os.PathLike[str], sidecar: EngineSidecar) -> None:
    """Write the description of an engine beside it, whole or not at all."""
    write_text(sidecar_path(engine), sidecar.to_json() + "\n")


def built_precision(path: str | os.PathLike[str]) -> Precision | None:
    """What an engine was built for; None for other files, and where its description says nothing."""
    try:
        return read_sidecar(path).precision if sidecar_path(path).is_file() else None
    except ManifestError:  # whoever opens it will say what is wrong with it
        return None


def check_intact(engine: str | os.PathLike[str], content: bytes, sidecar: EngineSidecar) -> None:
    """Raise `ModelFileError` where a file is not the one that its sidecar describes."""
    got = f"{len(content)} bytes with another checksum" if content else "an empty file"
    if not content or hashlib.sha256(content).hexdigest() != sidecar.engine_sha256:
        raise ModelFileError(
            str(engine),
            expected="the engine that its .manifest.json describes",
            got=got,
            fix=f"copy both files again, or run: {sidecar.rebuild_command}",
        )


def check_fits_machine(
    engine: str | os.PathLike[str],
    sidecar: EngineSidecar,
    *,
    tensorrt_version: str,
    gpu_name: str,
    compute_capability: str,
) -> None:
    """Raise `ModelFileError`, with the command that rebuilds it, where an engine was built for something else.

    Args:
        engine: named in the error.
        sidecar: of the engine.
        tensorrt_version: that is here.
        gpu_name: that it shall run on.
        compute_capability: of that GPU.
    """
    differences: Mapping[str, tuple[str, str, bool]] = {
        "version": (
            f"TensorRT {sidecar.tensorrt_version}",
            f"TensorRT {tensorrt_version}",
            _fits_version(sidecar, tensorrt_version),
        ),
        "gpu": (
            f"{sidecar.gpu_name} (compute capability {sidecar.compute_capability})",
            f"{gpu_name} ({compute_capability})",
            _fits_gpu(sidecar, compute_capability),
        ),
    }
    wrong = [(built, here) for built, here, fits in differences.values() if not fits]
    if wrong:
        raise ModelFileError(
            str(engine),
            expected="an engine for " + " and ".join(here for _, here in wrong),
            got="one for " + " and ".join(built for built, _ in wrong),
            fix=f"run here: {sidecar.rebuild_command}",
        )


def _fits_version(sidecar: EngineSidecar, here: str) -> bool:
    """Whether TensorRT would take it: the same release, whose builds differ in the fourth number alone."""
    built, now = _numbers(sidecar.tensorrt_version), _numbers(here)
    if sidecar.version_compatible:
        return built[:1] == now[:1] and built <= now
    return built[:3] == now[:3]


def _fits_gpu(sidecar: EngineSidecar, here: str) -> bool:
    if sidecar.hardware_compatible:
        return _numbers(here) >= _OLDEST_COMPATIBLE_CAPABILITY
    return sidecar.compute_capability == here


def _numbers(version: str) -> tuple[int, ...]:
    digits = [part for part in version.replace("+", ".").split(".") if part.isdigit()]
    return tuple(int(part) for part in digits)
