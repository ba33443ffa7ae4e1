"""The part of TensorRT 8.5's interface that is written down here, held to NVIDIA's own header where that is here."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tensorrt_installations import WRITTEN_DOWN, cuda_include_dir, has_all_headers, tensorrt_roots

CUDA_INCLUDE_DIR = cuda_include_dir()
CLASSES = """
Dims32 PluginTensorDesc DynamicPluginTensorDesc IDimensionExpr IExprBuilder DimsExprs INetworkDefinition IPluginV2
IPluginV2Ext IPluginV2DynamicExt PluginField PluginFieldCollection IPluginCreator IPluginRegistry ILogger
apiv::VDimensionExpr apiv::VExprBuilder
""".split()
ENUMS = {
    "DataType": "kFLOAT kHALF kINT8 kINT32 kBOOL kUINT8",
    "TensorFormat": "kLINEAR kCHW2 kHWC8 kCHW4 kCHW16 kCHW32",
    "PluginFieldType": "kFLOAT16 kFLOAT32 kFLOAT64 kINT8 kINT16 kINT32 kCHAR kDIMS kUNKNOWN",
    "ILogger::Severity": "kINTERNAL_ERROR kERROR kWARNING kINFO kVERBOSE",
}


def original() -> Path | None:
    """The folder of NVIDIA's header, of the release that was written down."""
    for root in tensorrt_roots():
        version = (root / "include" / "NvInferVersion.h").read_text(encoding="utf-8")
        if has_all_headers(root) and re.search(r"MAJOR 8\b[^#]*#define NV_TENSORRT_MINOR 5\b", version):
            return root / "include"
    return None


def layout_of(include_dir: Path, folder: Path) -> tuple[str, dict[str, list[str]]]:
    """The sizes and tables of functions of all classes, as the compiler lays them out, and the values of the enums."""
    folder.mkdir()
    values = [f"static_cast<int>(nvinfer1::{name}::{value})" for name, text in ENUMS.items() for value in text.split()]
    # A class that nobody uses has no table.
    used = [f"nvinfer1::{name}* use_{number};" for number, name in enumerate(CLASSES)]
    (folder / "layout.cpp").write_text(
        "#include <NvInfer.h>\n#include <cstdio>\n" + "\n".join(used) + "\nint main() {\n"
        + "".join(f'    std::printf("%d ", {value});\n' for value in values) + "}\n"
    )  # fmt: skip
    command = ["g++", "-std=c++17", "-w", "-fdump-lang-class", "-isystem", include_dir]
    command += ["-isystem", CUDA_INCLUDE_DIR, "layout.cpp", "-o", "layout"]
    subprocess.run([str(part) for part in command], cwd=folder, check=True)
    dump = next(folder.glob("*.class")).read_text()
    numbers = subprocess.run([folder / "layout"], capture_output=True, text=True, check=True).stdout
    layouts = {}
    for name in CLASSES:
        size = re.search(rf"^Class nvinfer1::{name}\n(.*\n.*)\n", dump, re.MULTILINE)
        table = re.search(rf"^Vtable for nvinfer1::{name}\n((?:.+\n)+)", dump, re.MULTILINE)
        assert size is not None, name
        entries = re.findall(r"^\d+ .*$", table[1], re.MULTILINE) if table else []
        layouts[name] = [size[1], *(re.sub(r"\s+", " ", entry) for entry in entries)]
    return numbers, layouts


@pytest.mark.skipif(
    original() is None or CUDA_INCLUDE_DIR is None or shutil.which("g++") is None,
    reason="no headers of TensorRT 8.5 (BOXWRIGHT_TENSORRT_ROOT), no CUDA headers or no g++",
)
def test_it_is_laid_out_as_nvidia_s(tmp_path: Path) -> None:
    header = original()
    assert header is not None
    numbers, layouts = layout_of(header, tmp_path / "original")
    own_numbers, own_layouts = layout_of(WRITTEN_DOWN, tmp_path / "own")
    assert own_numbers == numbers
    assert len(layouts["IPluginV2DynamicExt"]) > 20 and len(layouts["IPluginCreator"]) > 8
    for name in CLASSES:
        assert own_layouts[name] == layouts[name], name
