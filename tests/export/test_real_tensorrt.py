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


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    finished = subprocess.run(
        [*COMMAND, "-c", PROGRAM, RECORD], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    answer: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return answer


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
