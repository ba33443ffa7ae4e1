"""Engine plugins: compiled from csrc/ on the machine that runs the engine, and kept in the user's cache.

A plugin fits one version of its engine, so the cache keeps it under that version and the digest of its sources.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from boxwright.core.errors import UnsupportedError
from boxwright.core.files import atomic_directory, cache_dir

BUILD_COMMAND = "boxwright doctor --build-plugins"
_LOG = "build.log"
_SOURCE_SUFFIXES = (".h", ".cpp", ".cu", ".cmake")


def cannot_build(expected: str, got: str, fix: str) -> UnsupportedError:
    """The error of a build that lacks something."""
    return UnsupportedError(BUILD_COMMAND, expected=expected, got=got, fix=fix)


def find_program(name: str) -> str | None:
    """A program on the PATH or, as pip installs some, beside the interpreter."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def find_sources(plugin_file: str) -> Path | None:
    """csrc/ inside the installed package, or in the checkout that it runs from; None where it lacks the file."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "csrc", package.parents[1] / "csrc"):
        if (folder / plugin_file).is_file():
            return folder
    return None


def source_digest(sources: Path, *, without: Collection[str] = ()) -> str:
    """A short digest of the C++ files, but those whose names match a pattern of other engines."""
    digest = hashlib.sha256()
    for path in sorted(sources.rglob("*")):
        name = path.relative_to(sources).as_posix()
        is_source = path.suffix in _SOURCE_SUFFIXES or path.name == "CMakeLists.txt"
        if is_source and not any(fnmatch.fnmatch(name, pattern) for pattern in ("fuzz/*", *without)):
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def plugin_folder(engine: str, version: str, digest: str) -> Path:
    """Where the cache keeps the plugin for this version of an engine, of these sources."""
    # For example 2026.4.1-21023-abc; a branch in the name of a build can hold slashes.
    name = "".join(character if character.isalnum() or character in ".-" else "_" for character in version)
    return cache_dir() / "plugins" / f"{engine}-{name}-{platform.machine()}-{digest}"


def build_plugin(sources: Path, folder: Path, library: str, options: Collection[str]) -> Path:
    """Compile the plugins of csrc/CMakeLists.txt that the options name.

    Args:
        sources: csrc/.
        folder: in the cache, that the library comes into.
        library: its file name.
        options: for CMake.

    Raises:
        UnsupportedError: where CMake or a C++ compiler is missing, or the compiler fails.
    """
    cmake, ninja = find_program("cmake"), find_program("ninja")
    if cmake is None:
        raise cannot_build("the program cmake", "none on the PATH", "run: pip install cmake")
    if not (os.environ.get("CXX") or any(shutil.which(name) for name in ("c++", "g++", "clang++"))):
        raise cannot_build("a C++17 compiler", "none on the PATH", "install g++, e.g. with apt install g++ make")
    with atomic_directory(folder) as temporary, tempfile.TemporaryDirectory(prefix="boxwright-build-") as build:
        configure = ["-S", str(sources), "-B", build, "-DCMAKE_BUILD_TYPE=Release", *options]
        if ninja:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        log = _run([cmake, *configure]) + _run([cmake, "--build", build, "--parallel", "2"])
        (temporary / _LOG).write_text(log, encoding="utf-8")
        shutil.copy2(Path(build) / library, temporary / library)
    return folder / library


def _run(command: list[str]) -> str:
    """What a build step said."""
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if finished.returncode != 0:
        lines = [line.strip() for line in finished.stdout.splitlines() if line.strip()]
        telling = [line for line in lines if "error" in line.lower()] or lines or ["no message"]
        raise cannot_build("a build without errors", telling[0][:300], "mend what it names, or export with --nms graph")
    return finished.stdout
