"""The OpenVINO extension that runs `boxwright::DecodeNMS` with the compiled kernel: built on this machine, and found.

An extension fits one version of OpenVINO, so it is compiled from csrc/ against the installed one and kept in the user's
cache under that version and the digest of its sources.
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from boxwright.core.errors import MissingDependencyError, UnsupportedError
from boxwright.core.files import atomic_directory

BUILD_COMMAND = "boxwright doctor --build-plugins"
_LIBRARY = "libboxwright_openvino.so"
_LOG = "build.log"
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
    if _sources() is None:
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


def build_openvino_plugin() -> Path:
    """Compile the extension against the installed OpenVINO, unless that was done before.

    Returns:
        The library in the user's cache.

    Raises:
        MissingDependencyError: where openvino is not installed.
        UnsupportedError: where the sources, CMake or a C++ compiler are missing, or the compiler fails.
    """
    try:
        import openvino  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("openvino", extra="openvino", needed_for=BUILD_COMMAND) from error
    sources = _sources()
    if sources is None:
        raise _cannot_build("the C++ sources in the package", "a package without them", "reinstall boxwright")
    found = find_openvino_plugin()
    if found is not None:
        return found
    cmake_files = Path(openvino.__file__).parent / "cmake"
    cmake = _program("cmake")
    if cmake is None:
        raise _cannot_build("the program cmake", "none on the PATH", "run: pip install cmake")
    if not (os.environ.get("CXX") or any(shutil.which(name) for name in ("c++", "g++", "clang++"))):
        raise _cannot_build("a C++17 compiler", "none on the PATH", "install g++, e.g. with apt install g++ make")
    folder = _plugin_folder()
    with atomic_directory(folder) as temporary, tempfile.TemporaryDirectory(prefix="boxwright-build-") as build:
        configure = ["-S", str(sources), "-B", build, "-DCMAKE_BUILD_TYPE=Release", f"-DOpenVINO_DIR={cmake_files}"]
        if _program("ninja"):
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_program('ninja')}"]
        log = _run([cmake, *configure]) + _run([cmake, "--build", build, "--parallel", "2"])
        (temporary / _LOG).write_text(log, encoding="utf-8")
        shutil.copy2(Path(build) / _LIBRARY, temporary / _LIBRARY)
    return folder / _LIBRARY


def _run(command: list[str]) -> str:
    """What a build step said."""
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if finished.returncode != 0:
        lines = [line.strip() for line in finished.stdout.splitlines() if line.strip()]
        telling = [line for line in lines if "error" in line.lower()] or lines or ["no message"]
        raise _cannot_build(
            "a build without errors", telling[0][:300], "mend what it names, or export with --nms graph"
        )
    return finished.stdout


def _cannot_build(expected: str, got: str, fix: str) -> UnsupportedError:
    return UnsupportedError(BUILD_COMMAND, expected=expected, got=got, fix=fix)


def _program(name: str) -> str | None:
    """A program on the PATH or, as pip installs some, beside the interpreter."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _sources() -> Path | None:
    """csrc/ inside the installed package, or in the checkout that it runs from."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "csrc", package.parents[1] / "csrc"):
        if (folder / "plugin_openvino.cpp").is_file():
            return folder
    return None


def _plugin_folder() -> Path:
    # No path that is not absolute counts, says the XDG specification.
    given = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return cache / "boxwright" / "plugins" / f"openvino-{_openvino_version()}-{platform.machine()}-{_digest()}"


def _openvino_version() -> str:
    import openvino

    # For example 2026.4.1-21023-abc; a branch in the name of a build can hold slashes.
    return "".join(character if character.isalnum() or character in ".-" else "_" for character in openvino.__version__)


@functools.lru_cache(maxsize=1)
def _digest() -> str:
    """Of the sources, in short."""
    sources = _sources()
    assert sources is not None
    digest = hashlib.sha256()
    for path in sorted(sources.iterdir()):
        if path.suffix in (".h", ".cpp", ".cmake") or path.name == "CMakeLists.txt":
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
