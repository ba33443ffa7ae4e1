"""The TensorRT plugin that runs `boxwright::DecodeNMS` with the CUDA kernel: built on this machine, and found.

It is compiled from csrc/ with nvcc against the TensorRT installed here: the one that the environment variable
TENSORRT_ROOT names, or one in the places where NVIDIA's packages, JetPack among them, put it. Its code is for every GPU
that both Boxwright and this nvcc know, so that a plugin stays right when the GPU is changed.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from boxwright.core.errors import UnsupportedError
from boxwright.runtimes.plugin_build import (
    BUILD_COMMAND,
    build_plugin,
    cannot_build,
    find_sources,
    plugin_folder,
    source_digest,
)

ROOT_VARIABLE = "TENSORRT_ROOT"
_LIBRARY = "libboxwright_tensorrt.so"
_SOURCE = "plugin_tensorrt.cpp"
_OTHER_ENGINES = ("plugin_openvino*", "bindings.cpp", "letterbox*")
_USUAL_ROOTS = ("/usr", "/usr/local/tensorrt", "/usr/local/TensorRT", "/opt/tensorrt", "/usr/src/tensorrt")
# Compute capabilities: Xavier, Turing, Ampere, Orin, Ada, Hopper, Blackwell, Thor. Older GPUs are not served by
# TensorRT 10, and each toolkit knows some of these.
_WANTED_ARCHITECTURES = (72, 75, 80, 86, 87, 89, 90, 100, 110, 120)
_OLDEST_VERSION = (8, 5)


@dataclass(frozen=True, kw_only=True)
class TensorRtInstallation:
    """What a plugin is compiled against.

    Attributes:
        include_dir: of NvInfer.h.
        library: libnvinfer.
        version: of both, such as "8.5.3".
    """

    include_dir: Path
    library: Path
    version: str


def find_tensorrt_plugin(version: str) -> Path | None:
    """The plugin for a version of TensorRT ("8.5.3", or "8.5.3.1") and these sources, None where it was not built."""
    if find_sources(_SOURCE) is None:
        return None
    library = _plugin_folder(version) / _LIBRARY
    return library if library.is_file() else None


def require_tensorrt_plugin(version: str, needed_for: str) -> Path:
    """The plugin for a version of TensorRT.

    Args:
        version: of the TensorRT that will load it.
        needed_for: named in the error.

    Raises:
        UnsupportedError: where it was not built, with the command that builds it.
    """
    library = find_tensorrt_plugin(version)
    if library is None:
        raise UnsupportedError(
            needed_for,
            expected="Boxwright's plugin of TensorRT for the node boxwright.DecodeNMS",
            got=f"none for version {version}",
            fix=f"run: {BUILD_COMMAND}, or export with --nms graph",
        )
    return library


def build_tensorrt_plugin() -> tuple[Path, bool]:
    """Compile the plugin against the installed TensorRT, unless that was done before.

    Returns:
        The library in the user's cache, and whether it was built now.

    Raises:
        UnsupportedError: where TensorRT's headers, its library, nvcc, CMake or a C++ compiler are missing, or a
            compiler fails.
    """
    sources = find_sources(_SOURCE)
    if sources is None:
        raise cannot_build("the C++ sources in the package", "a package without them", "reinstall boxwright")
    installation = find_installation()
    found = find_tensorrt_plugin(installation.version)
    if found is not None:
        return found, False
    nvcc = _find_nvcc()
    options = [
        "-DBOXWRIGHT_PLUGIN_OPENVINO=OFF",
        "-DBOXWRIGHT_PLUGIN_TENSORRT=ON",
        f"-DTENSORRT_INCLUDE_DIR={installation.include_dir}",
        f"-DTENSORRT_LIBRARY={installation.library}",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(map(str, _architectures(nvcc)))}",
    ]
    return build_plugin(sources, _plugin_folder(installation.version), _LIBRARY, options), True


def find_installation() -> TensorRtInstallation:
    """TensorRT's headers and library on this machine.

    Raises:
        UnsupportedError: where there are none, they do not fit each other, or they are too old.
    """
    given = os.environ.get(ROOT_VARIABLE)
    # CMake would look for what is relative elsewhere.
    roots = [Path(given).absolute()] if given else [Path(root) for root in _USUAL_ROOTS]
    where = f"{ROOT_VARIABLE}={given}" if given else "the usual places"
    include_dir = next((path for root in roots for path in _include_dirs(root) if (path / "NvInfer.h").is_file()), None)
    if include_dir is None:
        raise cannot_build(
            "TensorRT's headers (NvInfer.h) for its plugin",
            f"none in {where}",
            f"unpack NVIDIA's archive and set {ROOT_VARIABLE} to its folder, or install libnvinfer-headers-dev",
        )
    version = _version_of(include_dir)
    parts = tuple(int(part) for part in version.split("."))
    if parts[:2] < _OLDEST_VERSION:
        raise cannot_build("TensorRT 8.5 or newer", version, "install a newer TensorRT")
    library = _find_library(roots, parts[0])
    if library is None:
        raise cannot_build(
            f"TensorRT's library libnvinfer.so.{parts[0]}, which fits the headers in {include_dir}",
            f"none in {where}",
            f"set {ROOT_VARIABLE} to a folder with both",
        )
    return TensorRtInstallation(include_dir=include_dir, library=library, version=version)


def _multiarch() -> str:
    return f"{platform.machine()}-linux-gnu"


def _include_dirs(root: Path) -> list[Path]:
    return [root / "include", root / "include" / _multiarch(), root]


def _find_library(roots: list[Path], major: int) -> Path | None:
    folders = [
        root / part for root in roots for part in ("lib", "lib64", f"lib/{_multiarch()}", f"targets/{_multiarch()}/lib")
    ]
    # The packages of the Python index bring the library without headers.
    for package in ("tensorrt_libs", "tensorrt"):
        spec = importlib.util.find_spec(package)
        folders += [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    for folder in folders:
        library = folder / f"libnvinfer.so.{major}"
        if library.is_file():
            return library.resolve()
    return None


def _version_of(include_dir: Path) -> str:
    """From NvInferVersion.h, whose macros are named in one way up to 10.13 and in another since."""
    text = (include_dir / "NvInferVersion.h").read_text(encoding="utf-8", errors="replace")
    numbers = []
    for part in ("MAJOR", "MINOR", "PATCH"):
        match = re.search(rf"#define (?:NV_TENSORRT_{part}|TRT_{part}_ENTERPRISE) (\d+)", text)
        if match is None:
            raise cannot_build(
                "a version of TensorRT", f"none in {include_dir / 'NvInferVersion.h'}", "install TensorRT again"
            )
        numbers.append(match[1])
    return ".".join(numbers)


def _find_nvcc() -> str:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home) / "bin"))
    if nvcc is None:
        raise cannot_build(
            "NVIDIA's compiler nvcc for the TensorRT plugin",
            f"none on the PATH or in {home}/bin",
            "install the CUDA toolkit, or set CUDA_HOME to where it is",
        )
    return nvcc


def _architectures(nvcc: str) -> list[int]:
    """The GPUs that code is made for."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], stdout=subprocess.PIPE, text=True, check=False).stdout
    known = {int(number) for number in re.findall(r"compute_(\d+)\b", listed)}
    chosen = [number for number in _WANTED_ARCHITECTURES if number in known]
    if not chosen:
        raise cannot_build(
            f"an nvcc that knows one of the GPUs {', '.join(map(str, _WANTED_ARCHITECTURES))}",
            f"{nvcc}, which knows {', '.join(map(str, sorted(known))) or 'none'}",
            "install another CUDA toolkit",
        )
    return chosen


def _plugin_folder(version: str) -> Path:
    return plugin_folder("tensorrt", ".".join(version.split(".")[:3]), _digest())


@functools.lru_cache(maxsize=1)
def _digest() -> str:
    sources = find_sources(_SOURCE)
    assert sources is not None
    return source_digest(sources, without=_OTHER_ENGINES)
