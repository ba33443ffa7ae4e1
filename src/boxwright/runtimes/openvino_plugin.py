"""The OpenVINO extension that runs `boxwright::DecodeNMS` with the compiled kernel: built on this machine, and found.

An extension fits one version of OpenVINO, so it is compiled from csrc/ against the installed one and kept in the user's
cache under that version and the digest of its sources.
"""

from __future__ import annotations

import functools
import mmap
import os
from pathlib import Path

from boxwright.core.errors import MissingDependencyError, UnsupportedError
from boxwright.runtimes.plugin_build import (
    BUILD_COMMAND,
    build_plugin,
    cannot_build,
    find_sources,
    plugin_folder,
    source_digest,
)

_LIBRARY = "libboxwright_openvino.so"
_SOURCE = "plugin_openvino.cpp"
_OTHER_ENGINES = ("plugin_tensorrt*", "*cuda*")
_NODE = b"DecodeNMS"


def mentions_decode_nms(path: Path) -> bool:
    """Whether a model file can have the node: its name stands in the bytes."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(_NODE) >= 0


def find_openvino_plugin() -> Path | None:
    """The extension for the installed OpenVINO and these sources, or None where it was not built."""
    if find_sources(_SOURCE) is None:
        return None
    library = _plugin_folder() / _LIBRARY
    return library if library.is_file() else None


def require_openvino_plugin(needed_for: str) -> Path:
    """The extension for the installed OpenVINO.

    Args:
        needed_for: named in the error.

    Raises:
        UnsupportedError: where it was not built, with the command that builds it.
    """
    library = find_openvino_plugin()
    if library is None:
        raise UnsupportedError(
            needed_for,
            expected="Boxwright's extension of OpenVINO for the node boxwright.DecodeNMS",
            got="none for the installed version",
            fix=f"run: {BUILD_COMMAND}, or export with --nms graph",
        )
    return library


def build_openvino_plugin() -> tuple[Path, bool]:
    """Compile the extension against the installed OpenVINO, unless that was done before.

    Returns:
        The library in the user's cache, and whether it was built now.

    Raises:
        MissingDependencyError: where openvino is not installed.
        UnsupportedError: where the sources, CMake or a C++ compiler are missing, or the compiler fails.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError("openvino", extra="openvino", needed_for=BUILD_COMMAND) from error
    sources = find_sources(_SOURCE)
    if sources is None:
        raise cannot_build("the C++ sources in the package", "a package without them", "reinstall boxwright")
    found = find_openvino_plugin()
    if found is not None:
        return found, False
    cmake_files = Path(openvino.__file__).parent / "cmake"
    return build_plugin(sources, _plugin_folder(), _LIBRARY, [f"-DOpenVINO_DIR={cmake_files}"]), True


def _plugin_folder() -> Path:
    import openvino

    return plugin_folder("openvino", openvino.__version__, _digest())


@functools.lru_cache(maxsize=1)
def _digest() -> str:
    sources = find_sources(_SOURCE)
    assert sources is not None
    return source_digest(sources, without=_OTHER_ENGINES)
