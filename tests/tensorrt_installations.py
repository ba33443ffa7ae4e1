"""Where tests find TensorRT's headers and library, and CUDA's headers.

BOXWRIGHT_TENSORRT_ROOT names folders with `include/NvInfer.h` and, where the library is there, `lib`, between colons;
or folders of such folders. `.ci/tensorrt_kit` makes one, of the library of 8.5.3 and the headers written down here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

WRITTEN_DOWN = Path(__file__).parent / "csrc" / "tensorrt_8_interface"


def tensorrt_roots() -> list[Path]:
    """All installations that are named and have headers."""
    given = [Path(entry) for entry in os.environ.get("BOXWRIGHT_TENSORRT_ROOT", "").split(os.pathsep) if entry]
    candidates = [path for folder in given for path in (folder, *sorted(folder.glob("*/")))]
    return [path for path in candidates if (path / "include" / "NvInfer.h").is_file()]


def has_all_headers(root: Path) -> bool:
    """Whether an installation has NVIDIA's headers, and not those alone that a plugin needs."""
    return (root / "include" / "NvInferRuntime.h").is_file()


def libraries(name: str) -> list[Path]:
    """The files of a pattern, such as `libnvinfer.so.*`, one of each installation that has it."""
    found = [sorted(root.glob(f"lib/{name}")) for root in tensorrt_roots()]
    return [paths[0] for paths in found if paths]


def cuda_include_dir() -> Path | None:
    """The folder of cuda_runtime_api.h."""
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"]
    folders += [Path(path) / "nvidia" / "cu13" / "include" for path in sys.path]  # a package that torch brings
    return next((folder for folder in folders if (folder / "cuda_runtime_api.h").is_file()), None)
