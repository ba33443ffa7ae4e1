"""The real TensorRT library, where one is here: it imports without a GPU, and has what the adapter asks it for.

BOXWRIGHT_TENSORRT_PYTHON is a command that starts a Python with the package `tensorrt`: a script, say, that sets
PYTHONPATH and LD_LIBRARY_PATH and calls python3.10, which the 8.5.3 of the Python index is for. Without it, the package
of this Python is asked.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recorded_tensorrt import SIGNATURES

RECORD = Path(__file__).parents[1] / "tensorrt_api" / "record.py"
SOURCES = Path(__file__).parents[2] / "src"
COMMAND = shlex.split(os.environ.get("BOXWRIGHT_TENSORRT_PYTHON", ""))
if not COMMAND and importlib.util.find_spec("tensorrt") is not None:
    COMMAND = [sys.executable]
pytestmark = pytest.mark.skipif(
    not COMMAND, reason="no package tensorrt here (BOXWRIGHT_TENSORRT_PYTHON names a Python that has one)"
)
# Imports the package, asks it for everything by the recorder's own words, and tries what wants a GPU.
PROGRAM = """
import importlib.util, json, sys
import tensorrt
spec = importlib.util.spec_from_file_location("record", sys.argv[1])
record = importlib.util.module_from_spec(spec)
spec.loader.exec_module(record)
lines = []

class Log(tensorrt.ILogger):
    def __init__(self):
        tensorrt.ILogger.__init__(self)
    def log(self, severity, msg):
        lines.append(severity.name + " " + msg)

class Calibrator(tensorrt.IInt8EntropyCalibrator2 if hasattr(tensorrt, "IInt8EntropyCalibrator2") else object):
    pass

log = Log()
tensorrt.init_libnvinfer_plugins(log, "")
registry = tensorrt.get_plugin_registry()
creators = getattr(registry, "plugin_creator_list", None) or registry.all_creators
try:
    builder = str(tensorrt.Builder(log))
except TypeError as error:
    builder = "TypeError: " + str(error)
print(json.dumps({
    "version": tensorrt.__version__,
    "recorded": record.record(tensorrt),
    "plugins": sorted({creator.name for creator in creators}),
    "builder": builder,
    "lines": lines,
}))
"""


# Boxwright's own adapter on the real module: what it makes of the module's classes, and what it says without a GPU.
ADAPTER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tensorrt
from boxwright.core.errors import BoxwrightError
from boxwright.export.tensorrt_api import BuilderApi
from boxwright.export.tensorrt_builder import BuildTask, build
from boxwright.export.tensorrt_options import EngineOptions
from boxwright.runtimes.tensorrt_library import load_plugins, tensorrt_log

class Batches:
    batch_size = 2
    def next_addresses(self, names):
        return None
    def read_cache(self):
        return None
    def write_cache(self, content):
        pass

api = BuilderApi.of(tensorrt)
load_plugins(tensorrt, decode_nms=False, needed_for="the test")
typing = api.typing(needs_weak=False)
size = api.calibrators.calibrator(tensorrt, Batches()).get_batch_size() if api.has_calibrators else 2
task = BuildTask(onnx_path=Path("m.onnx"), nodes=(), source="m.onnx", precisions=(), typing=typing, may_be_half=None,
                 batches=None, batch=1, options=EngineOptions())
try:
    build(api, task, print)
    said = "a builder that starts"
except BoxwrightError as error:
    said = str(error)
ways = [type(way).__name__ for way in (typing, api.errors, api.progress, api.calibrators)]
print(json.dumps({"ways": ways, "flags": typing.network_flags(tensorrt), "batch_size": size, "said": said}))
"""


def ask(program: str, argument: Path) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    command = [*COMMAND, "-c", program, argument]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    answer: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return answer


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    return ask(PROGRAM, RECORD)


def recorded_for(version: str) -> dict[str, Any]:
    """The record of this release, or of the newest one before it."""
    numbers = [int(part) for part in version.split(".")[:3]]
    fitting = [known for known in SIGNATURES if [int(part) for part in known.split(".")] <= numbers]
    return SIGNATURES[fitting[-1]]


def test_it_has_what_was_recorded(real: dict[str, Any]) -> None:
    """Names, parameters and numbers of enums; a release between two recorded ones may have more than the older."""
    recorded = recorded_for(real["version"])
    is_recorded = ".".join(real["version"].split(".")[:3]) in SIGNATURES
    for part in ("classes", "enums"):
        for name, members in recorded[part].items():
            found = real["recorded"][part][name]
            if is_recorded:
                assert found == members, name
            else:
                assert set(members) <= set(found), name


def test_its_registry_has_the_plugins_that_the_parser_asks_for(real: dict[str, Any]) -> None:
    """RoiAlign is a plugin in 8.5; EfficientNMS is what ours is compared with."""
    assert "EfficientNMS_TRT" in real["plugins"]
    if real["version"].startswith("8.5"):
        assert "ROIAlign_TRT" in real["plugins"]


def test_without_a_gpu_a_builder_says_so_in_the_log(real: dict[str, Any]) -> None:
    """The words that `tensorrt_builder` makes an error of: a TypeError without a reason, and the reason in the log."""
    if not real["builder"].startswith("TypeError"):
        pytest.skip("there is a GPU here")
    assert "factory function returned nullptr" in real["builder"]
    assert any("CUDA initialization failure" in line for line in real["lines"])


def test_the_adapter_on_it(real: dict[str, Any]) -> None:
    if not real["builder"].startswith("TypeError"):
        pytest.skip("there is a GPU here")
    answer = ask(ADAPTER, SOURCES)
    is_8 = real["version"].startswith("8.")
    assert answer["ways"][:3] == (
        ["WeakTyping", "NodeIndices", "NoMonitor"] if is_8 else ["StrongTyping", "NodeNames", "ProgressMonitor"]
    )
    assert answer["batch_size"] == 2 and answer["flags"] > 0
    assert answer["said"].startswith("TensorRT engine of m.onnx: expected a TensorRT builder that starts, got CUDA")
    assert "\n" not in answer["said"]
