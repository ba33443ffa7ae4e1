"""Writes signatures.json: what the Python modules of TensorRT's generations really offer.

The wheels `tensorrt_bindings` (8.6) and `tensorrt_cu12_bindings` (10, 11) of the Python package index hold the module
itself, `tensorrt.so`, which imports without a GPU, and without the gigabyte of libraries behind it where empty ones
stand in for them:

    pip download --no-deps --python-version 3.11 --only-binary=:all: tensorrt-cu12-bindings==10.3.0    # and unzip
    python3.11 record.py signatures.json 10.3.0=.../tensorrt_bindings/tensorrt.so 11.1.0=...

8.5.3 is a whole wheel for CPython 3.10 (`tensorrt==8.5.3.1`); record it with that Python. Entries that are in the file
already stay.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# What Boxwright touches, and what stands near it.
CLASSES = (
    "Builder IBuilderConfig IOptimizationProfile INetworkDefinition ILayer ITensor OnnxParser ParserError "
    "Logger ILogger ITimingCache IInt8EntropyCalibrator2 IInt8MinMaxCalibrator IProgressMonitor IHostMemory Runtime "
    "ICudaEngine IExecutionContext IPluginRegistry IErrorRecorder EngineInspector IGpuAllocator IOutputAllocator "
    "IProfiler"
)
ENUMS = (
    "BuilderFlag NetworkDefinitionCreationFlag OnnxParserFlag MemoryPoolType TacticSource DeviceType DataType "
    "TensorIOMode TensorLocation TensorFormat ProfilingVerbosity LayerType CalibrationAlgoType "
    "HardwareCompatibilityLevel ExecutionContextAllocationStrategy LayerInformationFormat EngineCapability"
)
FUNCTIONS = "init_libnvinfer_plugins get_plugin_registry get_builder_plugin_registry nptype volume"
EMPTY_LIBRARIES = {
    "nvinfer": "createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL "
    "getBuilderPluginRegistry getPluginRegistry",
    "nvonnxparser": "createNvOnnxParser_INTERNAL createNvOnnxParserRefitter_INTERNAL getNvOnnxParserVersion",
    "nvinfer_plugin": "initLibNvInferPlugins",
    "nvparsers": "_ZN11nvuffparser15createUffParserEv _ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi "
    "_ZN14nvcaffeparser117createCaffeParserEv _ZN14nvcaffeparser123shutdownProtobufLibraryEv",
}


def load_module(library: Path, major: str, folder: Path) -> Any:
    """Import tensorrt.so; where its libraries are not found, over empty ones."""
    for name, functions in EMPTY_LIBRARIES.items():
        source = folder / "empty.c"
        source.write_text("".join(f"void *{function}(void) {{ return 0; }}\n" for function in functions.split()))
        soname = f"lib{name}.so.{major}"
        real = library.parent / soname
        if not real.exists():
            command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", source, "-o", folder / soname]
            subprocess.run(command, check=True)
            ctypes.CDLL(str(folder / soname), ctypes.RTLD_GLOBAL)
    loader = importlib.machinery.ExtensionFileLoader("tensorrt", str(library))
    spec = importlib.util.spec_from_loader("tensorrt", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def parameters(doc: str | None, name: str) -> list[list[str]]:
    """The parameters of each overload, from the first lines of pybind11's docstring; `=` ends one with a default."""
    found = []
    for match in re.finditer(rf"^(?:\d+\. )?{re.escape(name)}\((.*)\) -> .*$", doc or "", re.MULTILINE):
        texts = re.split(r", (?=\w+:|\*)", match[1]) if match[1] else []
        names = [re.split(r"[:=]", text)[0].strip() + ("=" if " = " in text else "") for text in texts]
        found.append([parameter for parameter in names if parameter != "self"])
    return found


def record_class(cls: Any) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name in sorted(dir(cls)):
        if name.startswith("_") and name != "__init__":
            continue
        member = getattr(cls, name)
        if isinstance(member, property):
            members[name] = "property" if member.fset is None else "settable"
        elif callable(member):
            signatures = parameters(member.__doc__, name)
            if name != "__init__" or signatures:
                members[name] = signatures
        else:
            members[name] = "value"
    return members


def record(module: Any) -> dict[str, Any]:
    return {
        "classes": {name: record_class(getattr(module, name)) for name in CLASSES.split() if hasattr(module, name)},
        "enums": {
            name: {member: int(value) for member, value in getattr(module, name).__members__.items()}
            for name in ENUMS.split()
            if hasattr(module, name)
        },
        "functions": {
            name: parameters(getattr(module, name).__doc__, name) for name in FUNCTIONS.split() if hasattr(module, name)
        },
    }


def main(target: Path, entries: list[str]) -> None:
    recorded = json.loads(target.read_text()) if target.exists() else {}
    for entry in entries:
        version, _, library = entry.partition("=")
        with tempfile.TemporaryDirectory() as folder:
            recorded[version] = record(load_module(Path(library), version.split(".")[0], Path(folder)))
    ordered = dict(sorted(recorded.items(), key=lambda item: [int(part) for part in item[0].split(".")]))
    lines = []
    for version, parts in ordered.items():
        inner = []
        for part, names in parts.items():
            rows = [f"   {json.dumps(name)}: {json.dumps(value)}" for name, value in names.items()]
            inner.append(f"  {json.dumps(part)}: {{\n" + ",\n".join(rows) + "\n  }")
        lines.append(f" {json.dumps(version)}: {{\n" + ",\n".join(inner) + "\n }")
    target.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
